"""How the channels of a recording become one: weights for each, from what they hold.

Channels that carry sound are averaged, whatever their layout, so that a voice is equally loud in
two channels, in six, or in one of them. Where they cancel each other (one is the other with its
sign reversed, as a microphone that is wired wrongly gives), the loudest is used alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

SILENT: Final = 1e-3
"""Power of a channel, as a part of that of the loudest, below which it is silent (-30 dB)."""
CANCELS: Final = 0.5
"""Power of the average, as a part of what unrelated channels give, below which they cancel."""
_SUBWOOFER: Final = frozenset({"LFE", "LFE2"})
"""Channels of low frequencies only, which a telephone does not carry."""


class ChannelPowers:
    """Adds up the powers of channels and how they are related, block by block."""

    def __init__(self, channels: int) -> None:
        self._products = np.zeros((channels, channels))

    def add(self, block: NDArray[np.float32]) -> None:
        """Add a block of shape (channels, samples)."""
        samples = block.astype(np.float64)
        self._products += samples @ samples.T

    def weights(self, names: Sequence[str]) -> tuple[float, ...]:
        """The weight of each channel in the mix; `names` are FFmpeg's, such as `FL` and `LFE`."""
        return mix_weights(self._products, names)


def mix_weights(products: NDArray[np.float64], names: Sequence[str]) -> tuple[float, ...]:
    """The weight of each channel in the mix.

    Args:
        products: of shape (channels, channels): the sum of the products of the samples of each
            pair of channels, so the powers of the channels are on its diagonal.
        names: FFmpeg's names of the channels.
    """
    powers = np.diag(products)
    count = len(powers)
    voices = [n for n in range(count) if n >= len(names) or names[n] not in _SUBWOOFER]
    loudest = max(voices or range(count), key=lambda n: powers[n])
    used = [n for n in voices if powers[n] > SILENT * powers[loudest]] or [loudest]
    mean = float(powers[used].mean())
    mixed = float(products[np.ix_(used, used)].sum()) / len(used) ** 2
    if mixed < CANCELS * mean / len(used):
        used = [loudest]
    weight = 1 / len(used)
    if len(used) > 2 and mixed > 0:
        # Unrelated channels lose power when they are averaged; two of them lose half of it.
        weight *= math.sqrt(min(max(1.0, mean / 2 / mixed), len(used) / 2))
    return tuple(weight if n in used else 0.0 for n in range(count))
