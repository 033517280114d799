"""Rate limits: a token bucket and a sliding window; the caller passes in the time.

A token bucket lets calls begin evenly, but as many as its burst beyond the rate within a second. A
sliding window never lets more begin within a second than its limit, but all of them at once.
"""

from __future__ import annotations

from collections import deque
from typing import Final

WINDOW: Final = 1.0
"""Seconds of a sliding window."""


class TokenBucket:
    """Refills evenly, `per_second`, up to `burst` tokens; starts full.

    Times are seconds of one clock; a step back of the clock adds no tokens.
    """

    __slots__ = ("_at", "_tokens", "burst", "per_second")

    def __init__(self, per_second: float, burst: float, now: float) -> None:
        self.per_second = per_second
        self.burst = burst
        self._tokens = burst
        self._at = now

    def available(self, now: float) -> float:
        """The number of tokens."""
        gained = max(0.0, now - self._at) * self.per_second
        self._tokens = min(self.burst, self._tokens + gained)
        self._at = now
        return self._tokens

    def take(self, now: float, cost: float = 1.0) -> float:
        """Take `cost` tokens and return 0.0, or return the seconds until they are available.

        A cost above `burst` is taken from a full bucket, whose level then is negative.
        """
        missing = min(cost, self.burst) - self.available(now)
        if missing > 0:
            return missing / self.per_second
        self._tokens -= cost
        return 0.0

    def give_back(self, cost: float) -> None:
        """Undo a `take`."""
        self._tokens += cost

    def wait(self) -> float:
        """Seconds from the last call of `available` or `take` until there is a token."""
        return max(0.0, (1.0 - self._tokens) / self.per_second)


class SlidingWindow:
    """Counts what has begun within the last second."""

    __slots__ = ("_begun",)

    def __init__(self) -> None:
        self._begun: deque[float] = deque()

    def count(self, now: float) -> int:
        """How many have begun within the second before `now`."""
        while self._begun and self._begun[0] <= now - WINDOW:
            self._begun.popleft()
        return len(self._begun)

    def add(self, now: float, count: int = 1) -> None:
        """Count some that begin now."""
        self._begun.extend([now] * count)
