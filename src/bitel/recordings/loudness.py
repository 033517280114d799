"""Spoken clips made fit to be put one after the other: no silence around them, equally loud."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Samples = NDArray[np.float64]
"""Samples of full scale 1."""

TARGET_DB: Final = -20.0
"""Level of a clip, root mean square of what a telephone carries, in dB of full scale."""
MAX_PEAK: Final = 0.89
"""Highest sample, -1 dB of full scale."""
FLOOR_DB: Final = -35.0
"""How far under its loudest 10 ms a clip still counts as speech."""
MARGIN_SECONDS: Final = 0.02
"""Kept before and after, so that soft onsets stay whole."""

_BAND: Final = (200.0, 3400.0)


def trimmed(samples: Samples, rate: int) -> Samples:
    """Cut the silence off both ends, fading over the margin that is left.

    Raises ValueError where all of it is silent.
    """
    frame = rate // 100
    rows = -(-len(samples) // frame)
    padded = np.pad(samples, (0, rows * frame - len(samples))).reshape(rows, frame)
    power = np.mean(padded**2, axis=1) if rows else np.zeros(1)
    if not power.max() > 0:
        raise ValueError("a silent clip has no speech to be trimmed to")
    speech = np.flatnonzero(power > power.max() * 10 ** (FLOOR_DB / 10))
    margin = round(rate * MARGIN_SECONDS)
    start = max(0, int(speech[0]) * frame - margin)
    end = min(len(samples), (int(speech[-1]) + 1) * frame + margin)
    kept = samples[start:end].copy()
    fade = np.linspace(0, 1, min(margin, len(kept) // 2))
    kept[: len(fade)] *= fade
    kept[len(kept) - len(fade) :] *= fade[::-1]
    return kept


def level_db(samples: Samples, rate: int) -> float:
    """Return the level within 200 to 3400 Hz, in dB of full scale; -120 at least."""
    spectrum = np.abs(np.fft.rfft(samples)) ** 2
    frequencies = np.fft.rfftfreq(len(samples), 1 / rate)
    within = (frequencies >= _BAND[0]) & (frequencies <= _BAND[1])
    # Parseval: a real signal's power is twice that of the positive half of its spectrum.
    power = 2 * spectrum[within].sum() / len(samples) ** 2
    return float(10 * np.log10(max(power, 1e-12)))


def levelled(samples: Samples, rate: int) -> Samples:
    """Bring the clip to `TARGET_DB`, or as near to it as its peaks allow."""
    gain = 10 ** ((TARGET_DB - level_db(samples, rate)) / 20)
    peak = float(np.abs(samples).max(initial=0))
    result: Samples = samples * min(gain, MAX_PEAK / peak if peak else gain)
    return result
