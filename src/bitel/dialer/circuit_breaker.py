"""A circuit breaker: pauses calls that fail in a row, then tries one call at a time.

    CLOSED     calls are placed; `threshold` failures in a row open it
    OPEN       no calls, for `first_wait` seconds, doubled each time up to `longest_wait`
    HALF_OPEN  one call is under way as a probe: its success closes, its failure opens again

What became of a call that was begun before the breaker changed its state says nothing about the
time after, so results carry the time at which their call was begun. Times are in seconds of a
clock that does not go back; the caller passes them.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class BreakerState(enum.Enum):
    """Whether calls may be placed."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half open"


@dataclass(frozen=True, slots=True)
class BreakerLimits:
    """When a breaker opens, and for how long.

    `threshold` failures in a row open it, 0 never. With `must_have_worked` only after a success:
    what has never worked is a mistake in the settings, which should show at once.
    """

    threshold: int
    first_wait: float
    longest_wait: float
    must_have_worked: bool = False


class CircuitBreaker:
    """Counts successes and failures of calls, and says whether another may be placed."""

    __slots__ = ("_changed_at", "_failures", "_limits", "_retry_at", "_wait", "state", "worked")

    def __init__(self, limits: BreakerLimits) -> None:
        self._limits = limits
        self._failures = 0
        self._wait = limits.first_wait
        self._changed_at = self._retry_at = 0.0
        self.state = BreakerState.CLOSED
        self.worked = False
        """Whether any call has succeeded; may be set from what an earlier process knew."""

    @property
    def is_closed(self) -> bool:
        """Whether calls are placed without restriction."""
        return self.state is BreakerState.CLOSED

    def admits(self, now: float) -> bool:
        """Whether a call may be begun now: any while closed, else one when its wait is over."""
        return self.is_closed or (self.state is BreakerState.OPEN and now >= self._retry_at)

    def open(self, now: float) -> None:
        """Be open, as an earlier process has left it; a probe is admitted at once."""
        self.worked = True
        self._retry_at = now
        self._enter(BreakerState.OPEN, now)

    def is_probed_since(self, begun_at: float) -> bool:
        """Whether the call that began at `begun_at` is the probe that is under way."""
        return self.state is BreakerState.HALF_OPEN and begun_at >= self._changed_at

    def begin(self, now: float) -> None:
        """Take note that a call, which was admitted, begins now."""
        if self.state is BreakerState.OPEN:
            self._enter(BreakerState.HALF_OPEN, now)

    def succeeded(self, begun_at: float, now: float) -> bool:
        """Take note of a success; True where it closes the breaker."""
        self.worked = True
        if self.is_closed:
            self._failures = 0
            return False
        if not self.is_probed_since(begun_at):
            return False
        self._failures = 0
        self._wait = self._limits.first_wait
        self._enter(BreakerState.CLOSED, now)
        return True

    def failed(self, begun_at: float, now: float) -> bool:
        """Take note of a failure; True where it opens the breaker, anew or after a probe."""
        limits = self._limits
        if begun_at < self._changed_at or self.state is BreakerState.OPEN:
            return False
        if self.state is BreakerState.HALF_OPEN:
            self._wait = min(self._wait * 2, limits.longest_wait)
        else:
            self._failures += 1
            if not limits.threshold or self._failures < limits.threshold:
                return False
            if limits.must_have_worked and not self.worked:
                return False
        self._open(now)
        return True

    def inconclusive(self, begun_at: float, now: float) -> None:
        """Take note of a call that says neither; a probe is then tried again after the wait."""
        if self.is_probed_since(begun_at):
            self._open(now)

    def _open(self, now: float) -> None:
        self._retry_at = now + self._wait
        self._enter(BreakerState.OPEN, now)

    def _enter(self, state: BreakerState, now: float) -> None:
        self.state = state
        self._changed_at = now
