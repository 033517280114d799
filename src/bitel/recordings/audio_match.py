"""Compares a recording with what was received of it: correlation, offset, gaps and coverage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bitel.g711 import SAMPLE_RATE, Pcm

FRAME: Final = SAMPLE_RATE // 100
"""Samples of 10 ms, the unit of gaps."""

SILENCE_RMS: Final = 64.0
"""Root mean square below which 10 ms are silent, about -54 dB of full scale."""

MATCHING: Final = 0.5
"""Correlation from which 10 ms count as received; noise and other audio stay well below."""


@dataclass(frozen=True, slots=True)
class Match:
    """How well a recording was received.

    `correlation`: -1 to 1, normalised, over the part where both overlap; 1 is the same waveform.
    `offset_samples`: where in `heard` the first sample of `sent` is; negative if it was cut off.
    `longest_gap_ms`: the longest stretch of sounding audio that was lost or replaced, in
    milliseconds, a multiple of 10; the silence of `sent` itself neither counts nor ends it.
    `covered`: the share of the sounding audio that was received, 0 to 1.
    """

    correlation: float
    offset_samples: int
    longest_gap_ms: float
    covered: float


def match(sent: Pcm, heard: Pcm) -> Match:
    """Find `sent` in `heard`, both at 8000 Hz, with silence or more around it on either side.

    There is one offset for the whole recording: if packets are missing and no silence takes their
    place, all audio after them counts as lost. Raises ValueError if `sent` is silent.
    """
    whole, received = sent.astype(np.float64), heard.astype(np.float64)
    frames = _frames(whole)
    sounding = _dot(frames, frames) > SILENCE_RMS**2 * FRAME
    if not sounding.any():
        raise ValueError("the recording that was sent is silent, so nothing can be compared")
    if not len(received):
        return Match(0.0, 0, int(sounding.sum()) * 10.0, 0.0)
    offset = _offset(whole, received)
    overlap = slice(max(0, -offset), max(0, min(len(whole), len(received) - offset)))
    aligned = np.zeros(len(whole))
    aligned[overlap] = received[max(0, offset) :][: overlap.stop - overlap.start]
    lost = sounding & (_correlations(frames, _frames(aligned)) < MATCHING)
    correlation = _correlations(whole[np.newaxis, overlap], aligned[np.newaxis, overlap])
    return Match(
        correlation=float(correlation[0]),
        offset_samples=offset,
        longest_gap_ms=_longest_run(lost[sounding]) * 10.0,
        covered=float(1 - lost.sum() / sounding.sum()),
    )


def _offset(sent: NDArray[np.float64], heard: NDArray[np.float64]) -> int:
    """Return the lag of the greatest cross-correlation, by FFT."""
    size = 1 << (len(sent) + len(heard) - 2).bit_length()
    spectrum = np.fft.rfft(heard, size) * np.conj(np.fft.rfft(sent, size))
    best = int(np.argmax(np.fft.irfft(spectrum, size)))
    return best if best < len(heard) else best - size


def _frames(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the samples as rows of 10 ms, the last one padded with silence."""
    rows = -(-len(samples) // FRAME)
    return np.pad(samples, (0, rows * FRAME - len(samples))).reshape(rows, FRAME)


def _dot(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the dot product of each row of `one` and the same row of `other`."""
    products: NDArray[np.float64] = np.einsum("ij,ij->i", one, other)
    return products


def _correlations(sent: NDArray[np.float64], heard: NDArray[np.float64]) -> NDArray[np.float64]:
    scale = np.sqrt(_dot(sent, sent) * _dot(heard, heard))
    return np.divide(_dot(sent, heard), scale, out=np.zeros(len(scale)), where=scale > 0)


def _longest_run(flags: NDArray[np.bool_]) -> int:
    """Return the length of the longest run of flags that are set."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flags.astype(np.int8), [0]))))
    return int((edges[1::2] - edges[::2]).max(initial=0))
