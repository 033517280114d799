"""Rate limits: a token bucket and a sliding window; the caller passes in the time.

A token bucket lets calls begin evenly, but as many as its burst beyond the rate within a second. A
sliding window never lets more begin within a second than its limit, but all of them at once. `Rate`
combines both, and can be shared by several processes.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

BURST_SECONDS: Final = 0.1
"""Burst of a rate: calls of so many seconds may start at once after a pause, and at least one."""

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


class Rate:
    """A limit of calls a second in whole places, of which a worker may have a share.

    A rate of 2.5 is three places, each of which is worth 2.5 / 3 calls a second.
    """

    def __init__(self, per_second: float, now: float) -> None:
        self.per_second = per_second
        self._window = SlidingWindow()
        self._bucket = TokenBucket(per_second, _burst(per_second), now)

    @property
    def places(self) -> int:
        """Calls that all workers together may begin in a second."""
        return math.ceil(self.per_second)

    def used(self, now: float) -> int:
        """Calls begun in the last second."""
        return self._window.count(now)

    def room(self, now: float, places: int | None) -> int:
        """How many calls may begin now. `places`: the share; None: the whole rate."""
        whole = places is None or places >= self.places
        share = self.places if places is None else min(places, self.places)
        per_second = self.per_second * share / self.places
        self._bucket.per_second = per_second
        # The window bounds what may begin, so a share may have the burst of a whole rate.
        self._bucket.burst = _burst(self.per_second)
        available = int(min(self._bucket.available(now), self._bucket.burst))
        most = math.floor(self.per_second) + 1 if whole else share
        return max(0, min(available, most - self._window.count(now)))

    def take(self, now: float, count: int = 1) -> None:
        """Count calls that begin."""
        self._window.add(now, count)
        self._bucket.take(now, count)

    def wait(self) -> float:
        """Seconds until about when the next call may begin."""
        return self._bucket.wait() if self._bucket.per_second > 0 else math.inf

    def is_full(self, now: float) -> bool:
        """Whether nothing has begun for so long that a new `Rate` would allow the same."""
        is_unused = not self._window.count(now)
        return is_unused and self._bucket.available(now) >= self._bucket.burst


def _burst(per_second: float) -> float:
    return max(1.0, per_second * BURST_SECONDS)
