"""A machine's ear for digits: cuts audio at its silences and names each piece by its likeness.

Likeness is the distance of log-mel spectra after dynamic time warping, so neither loudness nor
pace counts, and where in the audio a digit is does not either.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RATE = 8000
STEP = RATE // 100
WINDOW = RATE // 40
BANDS = 24
QUIET_DB = -45.0
"""Level of 10 ms under which they count as silence, in dB of full scale."""
SHORTEST_SILENCE = 0.2
"""Seconds; a shorter one, as in `eight`, belongs to the word."""

Signal = NDArray[np.float64]


@dataclass(frozen=True)
class Piece:
    """Audio between two silences; `start` and `end` in seconds."""

    start: float
    end: float
    samples: Signal


def pieces(samples: Signal) -> list[Piece]:
    """Cut `samples`, of full scale 1, at their silences."""
    frames = samples[: len(samples) // STEP * STEP].reshape(-1, STEP)
    loud = np.sqrt(np.mean(frames**2, axis=1)) > 10 ** (QUIET_DB / 20)
    found: list[Piece] = []
    start = end = -1
    for at in [*np.flatnonzero(loud).tolist(), None]:
        if start >= 0 and (at is None or (at - end) * STEP >= SHORTEST_SILENCE * RATE):
            part = samples[start * STEP : (end + 1) * STEP]
            found.append(Piece(start * STEP / RATE, (end + 1) * STEP / RATE, part))
            start = -1
        if at is not None:
            start, end = (at if start < 0 else start), at
    return found


def distance(one: Signal, other: Signal) -> float:
    """Return how unlike two pieces sound: 0 for the same, about 1 for unrelated words."""
    left, right = _features(one), _features(other)
    costs = np.linalg.norm(left[:, np.newaxis] - right, axis=2) / np.sqrt(left.shape[1])
    # Symmetric steps, a diagonal one counting twice: the sum is over as many weights as frames.
    best = np.full((len(left) + 1, len(right) + 1), np.inf)
    best[0, 0] = 0
    for i in range(len(left)):
        for j in range(len(right)):
            cost = costs[i, j]
            best[i + 1, j + 1] = min(
                best[i, j] + 2 * cost, best[i, j + 1] + cost, best[i + 1, j] + cost
            )
    return float(best[-1, -1]) / (len(left) + len(right))


def name(piece: Signal, templates: Mapping[str, Signal]) -> str:
    """Return the name of the template that is most like `piece`."""
    return min(templates, key=lambda key: distance(piece, templates[key]))


def _features(samples: Signal) -> NDArray[np.float64]:
    padded = np.pad(samples, (0, max(0, WINDOW - len(samples))))
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::STEP]
    power = np.abs(np.fft.rfft(windows * np.hanning(WINDOW), 256)) ** 2
    # A floor hides what quantisation adds where the voice has nothing.
    mel = np.log10(power @ _filters().T + 1e-4)
    features: NDArray[np.float64] = mel - mel.mean()
    return features


def _filters() -> NDArray[np.float64]:
    top = 2595 * np.log10(1 + 3600 / 700)
    bottom = 2595 * np.log10(1 + 150 / 700)
    edges = 700 * (10 ** (np.linspace(bottom, top, BANDS + 2) / 2595) - 1)
    frequencies = np.fft.rfftfreq(256, 1 / RATE)
    rising = (frequencies - edges[:-2, np.newaxis]) / np.diff(edges)[:-1, np.newaxis]
    falling = (edges[2:, np.newaxis] - frequencies) / np.diff(edges)[1:, np.newaxis]
    return np.maximum(0, np.minimum(rising, falling))
