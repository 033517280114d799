"""Recordings that calls need and that can't be had, and when claims are held back for them.

A call whose recording can't be had is not placed, and waits. Were such calls claimed as fast as
others, a storage that is away would have the whole queue claimed and put back again and again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog

from bitel.dialing.dialer import Order

log = structlog.get_logger(__name__)

IN_A_ROW: Final = 10
"""So many attempts whose recordings could not be had, none between them whose could, and claims
are held back. One missing recording among others leaves the others to be dialled."""

HOLD: Final = 5.0
"""Seconds for which nothing is claimed then."""

PROBES: Final = 10
"""Calls that are claimed after that, at most, as long as none could be placed."""

FORGOTTEN_AFTER: Final = 300.0
"""Seconds since a recording was last missed, after which it counts as missing no longer: the calls
that needed it are over. A waiting call asks for it again within two minutes."""

_MOST_NAMED = 1000


class RecordingFaults:
    """What one dialer could not get. Says so once in the log, and once when all of it is back.

    `clock` gives seconds and never goes back.
    """

    def __init__(self, dialer_id: str, clock: Callable[[], float]) -> None:
        self._dialer_id = dialer_id
        self._clock = clock
        self._missed: dict[str, float] = {}  # when last
        self._in_a_row = 0
        self._held_until = 0.0

    def missed(self, order: Order, reason: str) -> None:
        """What `order` plays can't be had now; `reason` is a sentence."""
        now = self._clock()
        if not self._missed:
            log.error("recordings_unreachable", dialer=self._dialer_id, reason=reason)
        if len(self._missed) < _MOST_NAMED:
            self._missed[_sound_of(order)] = now
        self._in_a_row += 1
        if self._in_a_row >= IN_A_ROW:
            self._held_until = now + HOLD

    def found(self, order: Order) -> None:
        """What `order` plays is in memory."""
        self._in_a_row = 0
        self._held_until = 0.0
        if self._missed and self._missed.pop(_sound_of(order), None) is not None:
            self._say_if_over()

    def count(self) -> int:
        """How many recordings and languages for digits can't be had, as far as calls need them."""
        since = self._clock() - FORGOTTEN_AFTER
        forgotten = [sound for sound, at in self._missed.items() if at < since]
        for sound in forgotten:
            del self._missed[sound]
        if forgotten:
            self._say_if_over()
        return len(self._missed)

    def hold(self) -> float:
        """Seconds for which no call should be claimed; 0 if calls may be."""
        return max(0.0, self._held_until - self._clock())

    def most(self, allowed: int) -> int:
        """How many calls may be claimed of those that are allowed otherwise."""
        return min(allowed, PROBES) if self._in_a_row >= IN_A_ROW else allowed

    def _say_if_over(self) -> None:
        if not self._missed:
            log.info("recordings_reachable", dialer=self._dialer_id)


def _sound_of(order: Order) -> str:
    return f"{order.recording_id or ''} {order.language if order.digits else ''}"
