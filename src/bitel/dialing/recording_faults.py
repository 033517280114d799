"""Recordings that can't be read, and the pause in claiming calls while none can be.

A call whose recording can't be read is not placed, and waits. If such calls were claimed as fast as
others, a storage outage would have the whole queue claimed and put back again and again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog

from bitel.domain.attempts import DialRequest

log = structlog.get_logger(__name__)

IN_A_ROW: Final = 10
"""Attempts in a row whose recordings could not be read, after which claims pause. One missing
recording among others does not keep the others from being dialled."""

HOLD: Final = 5.0
"""Seconds of that pause."""

PROBES: Final = 10
"""Calls that one claim may take after the pause, until one of them could be placed."""

FORGOTTEN_AFTER: Final = 300.0
"""Seconds since a recording was last missed, after which it no longer counts as missing: the calls
that needed it are over. A waiting call asks for it again within two minutes."""

_MOST_NAMED = 1000


class RecordingFaults:
    """The recordings that one dialer could not read.

    Logs `recordings_unreachable` with the first of them, and `recordings_reachable` once none is
    left. `clock` gives seconds and never goes back.
    """

    def __init__(self, dialer_id: str, clock: Callable[[], float]) -> None:
        self._dialer_id = dialer_id
        self._clock = clock
        self._missed: dict[str, float] = {}  # when last, the longest ago first
        self._in_a_row = 0
        self._held_until = 0.0

    def missed(self, order: DialRequest, reason: str) -> None:
        """Note that what `order` plays can't be read now; `reason` is a sentence."""
        now = self._clock()
        self._forget_old(now)
        if not self._missed:
            log.error("recordings_unreachable", dialer=self._dialer_id, reason=reason)
        known = self._missed.pop(_sound_of(order), None) is not None
        if known or len(self._missed) < _MOST_NAMED:
            self._missed[_sound_of(order)] = now
        self._in_a_row += 1
        if self._in_a_row >= IN_A_ROW:
            self._held_until = now + HOLD

    def found(self, order: DialRequest) -> None:
        """Note that what `order` plays is in memory."""
        self._in_a_row = 0
        self._held_until = 0.0
        if self._missed and self._missed.pop(_sound_of(order), None) is not None:
            self._log_if_none_left()

    def count(self) -> int:
        """How many recordings, and languages for digits, calls need and can't have."""
        self._forget_old(self._clock())
        return len(self._missed)

    def wait(self) -> float:
        """Seconds for which no call should be claimed; 0 if calls may be."""
        now = self._clock()
        self._forget_old(now)
        return max(0.0, self._held_until - now)

    def limit(self, allowed: int) -> int:
        """How many calls one claim may take, of `allowed` that it might take otherwise."""
        return min(allowed, PROBES) if self._in_a_row >= IN_A_ROW else allowed

    def _forget_old(self, now: float) -> None:
        forgotten = False
        while self._missed:
            sound, at = next(iter(self._missed.items()))
            if at >= now - FORGOTTEN_AFTER:
                break
            del self._missed[sound]
            forgotten = True
        if forgotten:
            self._log_if_none_left()

    def _log_if_none_left(self) -> None:
        if not self._missed:
            log.info("recordings_reachable", dialer=self._dialer_id)


def _sound_of(order: DialRequest) -> str:
    return f"{order.recording_id or ''} {order.language if order.digits else ''}"
