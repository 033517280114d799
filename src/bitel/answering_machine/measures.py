"""Measures 20 ms frames of audio: their level, and how much they are a single tone.

Frames of many calls are measured in one step with numpy, which costs a tenth of one call at a
time. What a frame means for a call is decided from these measures, in `detector` and `beep`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from bitel.g711 import SAMPLE_RATE, Pcm, alaw_decode, ulaw_decode

FRAME_SAMPLES: Final = 160
"""Samples of a frame of 20 ms."""
FRAME_SECONDS: Final = FRAME_SAMPLES / SAMPLE_RATE

LOWEST_LEVEL: Final = -75.0
"""Level in dBov of digital silence, and of all that is softer. G.711's step is at about -72."""

# The spectrum is that of the frame and the one before: 40 ms resolve the harmonics of a voice.
_WINDOW: Final = np.hanning(2 * FRAME_SAMPLES).astype(np.float32)
_FFT: Final = 512
_BIN: Final = SAMPLE_RATE / _FFT  # Hz
_FIRST_BIN: Final = 10  # 156 Hz: below are hum and what telephones filter out
_LAST_BIN: Final = 244  # 3.8 kHz
_LOBE_BINS: Final = np.arange(-4, 5)  # around a peak: the main lobe of the window


class FrameMeasures(NamedTuple):
    """What the detectors know of a frame."""

    level: float
    """Root mean square in dBov: dB below that of a full-scale square wave (RFC 6464)."""
    frequency: float
    """Of the strongest spectral line, in Hz."""
    dominance: float
    """dB by which that line exceeds all others."""
    purity: float
    """Share of the energy from 156 Hz to 3.8 kHz that is in that line, 0 to 1."""


class FrameWindow:
    """Cuts the audio of one call into frames of 20 ms, each with the frame before it.

    Payloads may have any length; what is left of one is continued by the next. `law` is "A" or "U".
    """

    def __init__(self, law: str = "A") -> None:
        self._decode = alaw_decode if law == "A" else ulaw_decode
        self._before: Pcm = np.zeros(FRAME_SAMPLES, np.int16)
        self._rest: Pcm = np.zeros(0, np.int16)

    def push(self, payload: bytes) -> list[Pcm]:
        """The windows of 320 samples that this G.711 payload completes, one for each frame."""
        return self.push_pcm(self._decode(np.frombuffer(payload, np.uint8)))

    def push_pcm(self, samples: Pcm) -> list[Pcm]:
        """The same for linear samples."""
        if len(self._rest):
            samples = np.concatenate((self._rest, samples))
        audio = np.concatenate((self._before, samples))
        frames = len(samples) // FRAME_SAMPLES
        end = frames * FRAME_SAMPLES
        windows = [audio[at : at + 2 * FRAME_SAMPLES] for at in range(0, end, FRAME_SAMPLES)]
        self._before = audio[end : end + FRAME_SAMPLES]
        self._rest = samples[end:]
        return windows

    def lose(self) -> None:
        """Forget what was before a lost packet: the next frame does not continue it."""
        self._before = np.zeros(FRAME_SAMPLES, np.int16)
        self._rest = np.zeros(0, np.int16)


def measure(windows: Sequence[Pcm]) -> list[FrameMeasures]:
    """Measure frames, of any calls, in the order given. Each comes as `FrameWindow` gives it."""
    if not windows:
        return []
    audio = np.stack(windows).astype(np.float32) * np.float32(1 / 32768)
    frames = audio[:, FRAME_SAMPLES:]
    power = np.einsum("ij,ij->i", frames, frames) / FRAME_SAMPLES
    level = np.maximum(10 * np.log10(power + 1e-9), LOWEST_LEVEL)
    spectrum = np.fft.rfft(audio * _WINDOW, _FFT)[:, _FIRST_BIN:_LAST_BIN]
    energy = spectrum.real**2 + spectrum.imag**2 + 1e-12
    rows = np.arange(len(windows))
    peak = energy.argmax(axis=1)
    inner = np.clip(peak, 1, energy.shape[1] - 2)
    left, middle, right = (np.log(energy[rows, inner + at]) for at in (-1, 0, 1))
    # The vertex of the parabola through three points of the logarithm.
    curve = left - 2 * middle + right
    offset = np.where(curve < -1e-6, 0.5 * (left - right) / np.minimum(curve, -1e-6), 0.0)
    frequency = (inner + _FIRST_BIN + np.clip(offset, -1, 1)) * _BIN
    strongest = energy[rows, peak]
    total = energy.sum(axis=1)
    rest = energy.copy()
    # A clipped tone has odd harmonics, folded at half the sampling rate; a voice also even ones.
    for harmonic in (1, 3, 5):
        folded = (inner + _FIRST_BIN + np.clip(offset, -1, 1)) * harmonic % _FFT
        place = np.rint(np.minimum(folded, _FFT - folded)).astype(np.intp) - _FIRST_BIN
        lobe = np.clip(place[:, None] + _LOBE_BINS, 0, energy.shape[1] - 1)
        rest[rows[:, None], lobe] = 1e-12
    dominance = 10 * np.log10(strongest / rest.max(axis=1))
    purity = 1 - rest.sum(axis=1) / total
    return [
        FrameMeasures._make(each)
        for each in np.stack((level, frequency, dominance, purity), axis=1).tolist()
    ]
