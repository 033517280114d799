"""Compares sent with received audio: correlation, offset and gaps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bitel.g711 import SAMPLE_RATE, Pcm

FRAME: Final = SAMPLE_RATE // 100
"""Samples of 10 ms, the resolution of gaps."""

SILENCE_RMS: Final = 64.0
"""Root mean square below which 10 ms are silent, about -54 dB of full scale."""

MATCHING: Final = 0.5
"""Correlation from which 10 ms count as received; noise and other audio are well below."""


@dataclass(frozen=True, slots=True)
class Match:
    """Result of comparing sent with received audio.

    `correlation`: normalized, -1 to 1, over the overlapping part; 1 is the same waveform.
    `offset_samples`: position of the first sent sample in the received audio; negative if cut off.
    `longest_gap_ms`: longest stretch of sounding audio that was lost or replaced, a multiple of
    10 ms; silence of the sent audio neither counts nor ends it.
    `covered`: share of the sounding audio that was received, 0 to 1.
    """

    correlation: float
    offset_samples: int
    longest_gap_ms: float
    covered: float


def match(sent: Pcm, received: Pcm) -> Match:
    """Find `sent` in `received`, both at 8000 Hz; `received` may be longer on both sides.

    There is one offset for all: if a gap shortened the audio, everything after it counts as lost.
    Raises ValueError if `sent` is silent.
    """
    whole = sent.astype(np.float64)
    sounding = _energy(_frames(whole)) > SILENCE_RMS**2 * FRAME
    if not sounding.any():
        raise ValueError("the recording that was sent is silent, so nothing can be compared")
    if not len(received):
        return Match(0.0, 0, int(sounding.sum()) * 10.0, 0.0)
    offset = _offset(whole, received.astype(np.float64))
    aligned = _aligned(received.astype(np.float64), offset, len(whole))
    overlap = slice(max(0, -offset), min(len(whole), len(received) - offset))
    matched = _correlations(_frames(whole), _frames(aligned)) >= MATCHING
    lost = sounding & ~matched
    return Match(
        correlation=_correlation(whole[overlap], aligned[overlap]),
        offset_samples=offset,
        longest_gap_ms=_longest_run(lost[sounding]) * 10.0,
        covered=float(1 - lost.sum() / sounding.sum()),
    )


def _offset(sent: NDArray[np.float64], received: NDArray[np.float64]) -> int:
    """Return the lag of the greatest cross-correlation, by FFT."""
    lags = len(sent) + len(received) - 1
    size = 1 << (lags - 1).bit_length()
    spectrum = np.fft.rfft(received, size) * np.conj(np.fft.rfft(sent, size))
    products = np.fft.irfft(spectrum, size)
    best = int(np.argmax(products))
    return best if best < len(received) else best - size


def _aligned(received: NDArray[np.float64], offset: int, length: int) -> NDArray[np.float64]:
    """Return `length` samples of `received` from `offset` on, padded with silence."""
    aligned = np.zeros(length)
    part = received[max(0, offset) : max(0, offset + length)]
    start = max(0, -offset)
    aligned[start : start + len(part)] = part
    return aligned


def _frames(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the samples as rows of 10 ms, the last one padded with silence."""
    rows = -(-len(samples) // FRAME)
    return np.pad(samples, (0, rows * FRAME - len(samples))).reshape(rows, FRAME)


def _energy(frames: NDArray[np.float64]) -> NDArray[np.float64]:
    energy: NDArray[np.float64] = np.einsum("ij,ij->i", frames, frames)
    return energy


def _correlations(sent: NDArray[np.float64], received: NDArray[np.float64]) -> NDArray[np.float64]:
    products = np.einsum("ij,ij->i", sent, received)
    scale = np.sqrt(_energy(sent) * _energy(received))
    correlations: NDArray[np.float64] = np.zeros(len(products))
    np.divide(products, scale, out=correlations, where=scale > 0)
    return correlations


def _correlation(sent: NDArray[np.float64], received: NDArray[np.float64]) -> float:
    return float(_correlations(sent[np.newaxis], received[np.newaxis])[0])


def _longest_run(flags: NDArray[np.bool_]) -> int:
    """Return the length of the longest run of set flags."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flags.astype(np.int8), [0]))))
    return int((edges[1::2] - edges[::2]).max(initial=0))
