"""Circuit breaker for recordings that can't be read: pauses claims during a storage outage.

A call whose recording can't be read is not placed, and waits. Without the pause, an outage would
make the dispatcher claim and requeue the whole queue repeatedly.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog

from bitel.domain.attempts import DialRequest

log = structlog.get_logger(__name__)

IN_A_ROW: Final = 10
"""Consecutive attempts with unreadable recordings after which claims pause. A single missing
recording does not delay calls with others."""

HOLD: Final = 5.0
"""Seconds of that pause."""

PROBES: Final = 10
"""Calls per claim after the pause, until one of them can be placed."""

FORGOTTEN_AFTER: Final = 300.0
"""Seconds after its last failed read when a recording no longer counts as missing: waiting calls
retry within two minutes, so none needs it any more."""

_MOST_NAMED = 1000


class RecordingFaults:
    """The recordings that one dialer could not read.

    Logs `recordings_unreachable` at the first, and `recordings_reachable` when none is left.
    `clock` is monotonic, in seconds.
    """

    def __init__(self, dialer_id: str, clock: Callable[[], float]) -> None:
        self._dialer_id = dialer_id
        self._clock = clock
        self._missed: dict[str, float] = {}  # time of the last failure, oldest first
        self._in_a_row = 0
        self._held_until = 0.0

    def missed(self, request: DialRequest, reason: str) -> None:
        """Record that the audio of `request` can't be read; `reason` is a sentence."""
        now = self._clock()
        self._forget_old(now)
        if not self._missed:
            log.error("recordings_unreachable", dialer=self._dialer_id, reason=reason)
        key = _audio_key(request)
        known = self._missed.pop(key, None) is not None
        if known or len(self._missed) < _MOST_NAMED:
            self._missed[key] = now
        self._in_a_row += 1
        if self._in_a_row >= IN_A_ROW:
            self._held_until = now + HOLD

    def found(self, request: DialRequest) -> None:
        """Record that the audio of `request` was read."""
        self._in_a_row = 0
        self._held_until = 0.0
        if self._missed and self._missed.pop(_audio_key(request), None) is not None:
            self._log_if_none_left()

    def count(self) -> int:
        """The number of missing recordings and languages of digits that calls need."""
        self._forget_old(self._clock())
        return len(self._missed)

    def wait(self) -> float:
        """Seconds for which no call may be claimed; 0 if calls may be claimed now."""
        now = self._clock()
        self._forget_old(now)
        return max(0.0, self._held_until - now)

    def limit(self, allowed: int) -> int:
        """The calls that one claim may take, at most `allowed`."""
        return min(allowed, PROBES) if self._in_a_row >= IN_A_ROW else allowed

    def _forget_old(self, now: float) -> None:
        old = [key for key, at in self._missed.items() if at < now - FORGOTTEN_AFTER]
        for key in old:
            del self._missed[key]
        if old:
            self._log_if_none_left()

    def _log_if_none_left(self) -> None:
        if not self._missed:
            log.info("recordings_reachable", dialer=self._dialer_id)


def _audio_key(request: DialRequest) -> str:
    language = request.language if request.digits else ""
    return f"{request.recording_id or ''} {language} {','.join(request.parts)}"
