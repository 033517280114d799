"""Token bucket: a rate limit; the caller passes in the time."""

from __future__ import annotations


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
