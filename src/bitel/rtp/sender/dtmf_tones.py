"""Detector of DTMF tones in audio (ITU-T Q.23, Q.24), for remotes that send no telephone events."""

from __future__ import annotations

from typing import Final

import numpy as np

from bitel.g711 import SAMPLE_RATE, alaw_decode, ulaw_decode
from bitel.rtp.stream_spec import Law
from bitel.rtp.telephone_event import MAX_DIGITS

ROWS: Final = (697.0, 770.0, 852.0, 941.0)
COLUMNS: Final = (1209.0, 1336.0, 1477.0, 1633.0)
PAD: Final = ("123A", "456B", "789C", "*0#D")
"""The keys, by the tones of their row and column."""

HOP: Final = 160  # samples between two windows
WINDOW: Final = 320  # samples; 25 Hz between two lines of its spectrum, 73 between two tones
SOFTEST: Final = 200.0
"""RMS of the softest tones, of 32768: about -44 dB, Q.24 asks for -29 dBm."""
PUREST: Final = 0.7
"""Part of the power that the two tones must have, which voices do not reach for long."""
APART: Final = 5.0
"""Factor of power between a tone and the others of its group, at least."""
TWIST: Final = 10.0
"""Factor of power between the two tones, at most (10 dB): lines damp high tones more."""
FOUND: Final = 2
"""Windows in a row in which a key must be found, so 60 ms."""
GONE: Final = 3
"""Windows in a row without it until it counts again: a lost packet spoils two."""
OFF: Final = (0.988, 1.0, 1.012)
"""Factors of the frequencies that are looked at; tones may be off by 1.5 % and 2 Hz (Q.24)."""

_times = np.arange(WINDOW) / SAMPLE_RATE
_tones = np.outer([*ROWS, *COLUMNS], OFF).ravel()
# One product gives what the Goertzel algorithm would for each tone.
_angles = 2 * np.pi * _tones[:, None] * _times
_LINES: Final = np.vstack((np.cos(_angles), np.sin(_angles))) * np.hamming(WINDOW)
_PEAK: Final = float(np.hamming(WINDOW).sum()) ** 2


class ToneDigits:
    """The digits of one call; `text` consists of "0123456789*#ABCD"."""

    def __init__(self, law: Law) -> None:
        self.text = ""
        self._decode = alaw_decode if law == "alaw" else ulaw_decode
        self._kept = np.zeros(0, np.float64)
        self._key = ""
        """The key that counts as pressed; empty: none."""
        self._candidate = ""
        self._windows = 0
        """Windows in which the candidate was found in a row."""

    def receive(self, codes: bytes) -> None:
        """Read a packet of G.711 audio; packets are to be given in the order of their arrival."""
        pcm = self._decode(np.frombuffer(codes, np.uint8)).astype(np.float64)
        samples = np.concatenate((self._kept, pcm))
        at = 0
        while at + WINDOW <= len(samples):
            self._note(key_of(samples[at : at + WINDOW]))
            at += HOP
        self._kept = samples[at:]

    def _note(self, key: str) -> None:
        if key != self._candidate:
            self._candidate, self._windows = key, 0
        self._windows += 1
        if self._windows == (FOUND if key else GONE) and key != self._key:
            self._key = key
            self.text = (self.text + key)[:MAX_DIGITS]


def key_of(window: np.ndarray[tuple[int], np.dtype[np.float64]]) -> str:
    """The key whose tones are in `WINDOW` samples; empty if none is."""
    total = float((window**2).mean())
    if total < SOFTEST**2:
        return ""
    # The mean power of each tone: of a sine of amplitude a, a² / 2.
    cosines, sines = (_LINES @ window).reshape(2, -1)
    powers = ((cosines**2 + sines**2) * (2 / _PEAK)).reshape(-1, len(OFF)).max(axis=1)
    rows, columns = powers[:4], powers[4:]
    row, column = int(rows.argmax()), int(columns.argmax())
    low, high = float(rows[row]), float(columns[column])
    if low + high < PUREST * total or not 1 / TWIST <= low / high <= TWIST:
        return ""
    others = float(np.delete(rows, row).max()), float(np.delete(columns, column).max())
    if others[0] * APART > low or others[1] * APART > high:
        return ""
    return PAD[row][column]
