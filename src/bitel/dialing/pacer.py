"""How fast new calls may start: a token bucket over a clock that the caller passes in."""

from __future__ import annotations

BURST_SECONDS = 0.1
"""A pause earns at most this many seconds' worth of calls, so that a trunk sees no bursts."""


class Pacer:
    """Allows `per_second` calls a second, evenly, with bursts of a tenth of a second's worth.

    Times are seconds of any clock that does not go back.
    """

    def __init__(self, per_second: float, now: float) -> None:
        self._counted_at = now
        self.change(per_second)
        self._tokens = self._capacity

    def change(self, per_second: float) -> None:
        """Allow another number of calls a second from now on."""
        self._per_second = per_second
        self._capacity = max(1.0, per_second * BURST_SECONDS)

    def available(self, now: float) -> int:
        """How many calls may start now."""
        elapsed = max(0.0, now - self._counted_at)
        self._tokens = min(self._capacity, self._tokens + elapsed * self._per_second)
        self._counted_at = now
        return int(self._tokens)

    def spend(self, calls: int) -> None:
        """Take note that `calls` have started; at most as many as were available."""
        self._tokens -= calls

    def wait(self) -> float:
        """Seconds from the last look at `available` until at least one call may start."""
        return max(0.0, (1.0 - self._tokens) / self._per_second)
