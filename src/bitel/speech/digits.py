"""A code read out digit by digit: ten clips per voice, and the playlist that a code makes.

The clips are cut once, free of silence and equally loud, so that a call only names files.
"""

from __future__ import annotations

import asyncio
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from bitel.g711 import ALAW_SILENCE, SAMPLE_RATE, ULAW_SILENCE
from bitel.recordings import wav
from bitel.recordings.decode import Decoded, decode
from bitel.recordings.limits import DecodeLimits
from bitel.recordings.loudness import Samples, levelled, trimmed
from bitel.recordings.storage import SUFFIXES, Law
from bitel.speech.engines import Engine, SpeechOptions, render

DIGITS: Final = "0123456789"
PACKET: Final = SAMPLE_RATE // 50
"""Samples of 20 ms: clips are whole packets, so that the gaps stay as long as they are meant."""
GAP_SECONDS: Final = 0.30
"""Silence between two digits; the clips' own edges make it 340 to 360 ms to the ear."""
PAUSE_SECONDS: Final = 0.96
"""Silence between two repetitions, likewise about a second."""

_GAP: Final = "gap"
_PAUSE: Final = "pause"
_SILENCE: Final[dict[Law, int]] = {"PCMA": ALAW_SILENCE, "PCMU": ULAW_SILENCE}
_FULL_SCALE: Final = 32768


async def render_set(engine: Engine, options: SpeechOptions, work: Path, into: Path) -> None:
    """Render all ten digits and the silences to clips in the folder `into`; both must exist.

    All of them go through one WAV and one decoding, each from a whole second on. Raises
    UnavailableError; `work` is for what is not kept.
    """
    spoken = await render(DIGITS, engine, work, options)
    sheet = work / "digits.wav"
    lengths = await asyncio.to_thread(_lay_out, spoken, sheet)
    decoded = await decode(sheet, work, DecodeLimits())
    await asyncio.to_thread(_cut, decoded, lengths, into)


def playlist(folder: Path, digits: str, law: Law, repeat: int, intro: Path | None) -> list[Path]:
    """Return the clips that read `digits` out `repeat` times, after `intro` if there is one.

    `folder` is what `render_set` filled. A gap goes before and after it all: a line may swallow
    the first and the last moment of a call.
    """
    gap, pause = _clip(folder, _GAP, law), _clip(folder, _PAUSE, law)
    clips = [] if intro is None else [intro]
    for repetition in range(repeat):
        for place, digit in enumerate(digits):
            clips += [pause if repetition and not place else gap, _clip(folder, digit, law)]
    return [*clips, gap]


def _clip(folder: Path, name: str, law: Law) -> Path:
    return folder / (name + SUFFIXES[law])


def _lay_out(spoken: Sequence[Path], sheet: Path) -> list[int]:
    """Write the clips to one WAV, each from a whole second on; return their lengths at 8 kHz."""
    rows: list[Samples] = []
    lengths: list[int] = []
    for path in spoken:
        samples, rate = _read(path)
        clip = levelled(trimmed(samples, rate), rate)
        lengths.append(_whole_packets(len(clip) / rate))
        rows.append(np.pad(clip, (0, _seconds(lengths[-1]) * rate - len(clip))))
    pcm = np.round(np.concatenate(rows) * _FULL_SCALE).astype(np.int16)
    wav.write(sheet, pcm, rate)
    return lengths


def _read(path: Path) -> tuple[Samples, int]:
    with wave.open(str(path), "rb") as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
        return samples / _FULL_SCALE, file.getframerate()


def _whole_packets(seconds: float) -> int:
    return -(-round(seconds * SAMPLE_RATE) // PACKET) * PACKET


def _seconds(length: int) -> int:
    """Return the whole seconds that a clip takes on the sheet, with some silence behind it."""
    return length // SAMPLE_RATE + 1


def _cut(decoded: Decoded, lengths: Sequence[int], into: Path) -> None:
    files: dict[Law, Path] = {"PCMA": decoded.alaw, "PCMU": decoded.ulaw}
    for law, path in files.items():
        codes = path.read_bytes()
        start = 0
        for digit, length in zip(DIGITS, lengths, strict=True):
            _clip(into, digit, law).write_bytes(codes[start : start + length])
            start += _seconds(length) * SAMPLE_RATE
        for name, seconds in ((_GAP, GAP_SECONDS), (_PAUSE, PAUSE_SECONDS)):
            silence = bytes([_SILENCE[law]]) * _whole_packets(seconds)
            _clip(into, name, law).write_bytes(silence)
