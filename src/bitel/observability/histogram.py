"""Durations counted by classes, as Prometheus wants them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Histogram:
    """How many durations fell into each class, and what they come to together."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds` are the classes' upper bounds in seconds, ascending; one more has none."""
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        """How many were up to each of `bounds`, and above the bound before; the last, longer."""
        self.total = 0.0
        """Seconds, all together."""

    def add(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds
