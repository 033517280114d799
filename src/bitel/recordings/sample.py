"""Synthesizes a sample recording for tests and trials: a slow melody of a humming voice.

No part of it repeats, so that received audio can be aligned to the sample.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bitel.g711 import Pcm
from bitel.recordings import wav

RATE: Final = 16000
"""Sampling rate in Hz, so that the sample must be resampled as other recordings."""

PEAK: Final = 20000
SEED: Final = 20260101

# D minor pentatonic scale in the range of a voice, in Hz.
SCALE: Final = (220.0, 261.6, 293.7, 349.2, 392.0, 440.0, 523.3)
NOTE_SECONDS: Final = (0.28, 0.62)
HARMONICS: Final = 7
# Formants of an open "ah": centre and width in Hz, and height.
FORMANTS: Final = ((700.0, 200.0, 1.0), (1150.0, 250.0, 0.7), (2600.0, 400.0, 0.35))


def write_sample(path: Path, seconds: float = 6.0) -> None:
    """Write the sample as a 16 kHz mono WAV to `path`; always the same for equal `seconds`."""
    wav.write(path, synthesise(seconds), RATE)


def synthesise(seconds: float) -> Pcm:
    """Return `seconds` (above 0) of the sample: 16 bits at 16 kHz, faded over 10 ms at the ends."""
    if seconds <= 0:
        raise ValueError(f"a sample lasts longer than 0 s, not {seconds:g} s")
    random = np.random.default_rng(SEED)
    length = round(seconds * RATE)
    pitch, loudness = _melody(random, length)
    voice = _sing(pitch, random) * loudness
    voice += 0.02 * loudness * random.standard_normal(length)
    fade = np.minimum(1.0, np.minimum(np.arange(length), np.arange(length)[::-1]) / (0.01 * RATE))
    voice *= fade
    voice *= PEAK / max(float(np.abs(voice).max()), 1e-9)
    return voice.astype(np.int16)


def _melody(
    random: np.random.Generator, length: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the pitch in Hz and the loudness (0 to 1) at each sample."""
    pitch = np.empty(length)
    loudness = np.empty(length)
    start, note = 0, int(random.integers(len(SCALE)))
    while start < length:
        samples = min(int(random.uniform(*NOTE_SECONDS) * RATE), length - start)
        # Each note has its own pitch bend, so that no two are equal.
        bend = random.uniform(-0.03, 0.03)
        position = np.linspace(0.0, 1.0, samples)
        pitch[start : start + samples] = SCALE[note] * (1 + bend * position)
        loudness[start : start + samples] = 0.35 + 0.65 * np.sin(np.pi * position) ** 0.5
        start += samples
        step = int(random.choice([-2, -1, 1, 2, 3]))
        note = (note + step) % len(SCALE)
    return pitch, loudness


def _sing(pitch: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.float64]:
    """Return the sum of harmonics of `pitch`, weighted by the formants."""
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    voice = np.zeros(len(pitch))
    for harmonic in range(1, HARMONICS + 1):
        frequency = harmonic * pitch
        gain = 0.25 / harmonic + sum(
            height * np.exp(-(((frequency - centre) / width) ** 2))
            for centre, width, height in FORMANTS
        )
        voice += gain * np.sin(harmonic * phase + random.uniform(0, 2 * np.pi))
    return voice
