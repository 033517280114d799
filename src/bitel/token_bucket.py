"""A token bucket: limits a rate, over a clock that the caller passes in."""

from __future__ import annotations


class TokenBucket:
    """Tokens that come back evenly, `per_second`, up to `burst`; it starts full.

    Times are seconds of one clock; a clock that is set back adds no tokens.
    """

    __slots__ = ("_at", "_tokens", "burst", "per_second")

    def __init__(self, per_second: float, burst: float, now: float) -> None:
        self.per_second = per_second
        self.burst = burst
        self._tokens = burst
        self._at = now

    def available(self, now: float) -> float:
        """How many tokens there are."""
        gained = max(0.0, now - self._at) * self.per_second
        self._tokens = min(self.burst, self._tokens + gained)
        self._at = now
        return self._tokens

    def take(self, now: float, cost: float = 1.0) -> float:
        """Take `cost` tokens; 0.0, or the seconds after which they can be had.

        A cost above `burst` is taken from a full bucket, which then is in debt.
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
        """Seconds from the last look until there is a token."""
        return max(0.0, (1.0 - self._tokens) / self.per_second)
