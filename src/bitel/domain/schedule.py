"""Schedules: when the calls of a request may be dialled, and when their time to live is over.

The time to live counts from the start, and stops while the calls are paused or a calling window is
closed. The end is absolute and takes precedence.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from zoneinfo import ZoneInfo

import phonenumbers
from phonenumbers.timezone import UNKNOWN_TIMEZONE, time_zones_for_number

from bitel.domain.calling_hours import CallingWindow, are_open, open_spans, opens_at
from bitel.errors import InvalidRequestError

_LONGEST: Final = 400 * 86_400.0
"""Seconds after the start at which calls expire at the latest, however seldom a window is open."""

Interval = tuple[float, float]
"""A begin and an end, in Unix seconds."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """When calls may be dialled. Times are Unix seconds by one clock.

    Windows follow the system clock, which is `ahead` seconds ahead of that clock.
    """

    start_at: float
    time_to_live: float
    """Seconds."""
    end_at: float | None = None
    """No attempt starts then or later; None: only the time to live counts."""
    windows: tuple[CallingWindow, ...] = ()
    """All of them must be open."""
    pauses: tuple[Interval, ...] = ()
    """Pauses that are over, in order."""
    paused_at: float | None = None
    """Since when the calls are paused; None: they are not."""
    ahead: float = 0.0

    @property
    def is_local(self) -> bool:
        """Whether it differs by the callee's time zone."""
        return any(window.is_local for window in self.windows)

    def in_zones(self, zones: Sequence[ZoneInfo]) -> Schedule:
        """The schedule for a callee who may be in any of these zones."""
        return Schedule(
            self.start_at,
            self.time_to_live,
            self.end_at,
            _in_zones(self.windows, tuple(zones)),
            self.pauses,
            self.paused_at,
            self.ahead,
        )

    def is_open(self, at: float) -> bool:
        """Whether calls may be dialled at `at`. Local windows are not considered."""
        if at < self.start_at or self.paused_at is not None:
            return False
        fixed = [window for window in self.windows if not window.is_local]
        return are_open(fixed, at + self.ahead)

    def opens_at(self, after: float) -> float | None:
        """The first time from `after` on at which the windows are open after the start.

        None if there is none within two weeks. Pauses are not considered.
        """
        opening = opens_at(self.windows, max(after, self.start_at) + self.ahead)
        return None if opening is None else opening - self.ahead

    def expires_at(self) -> float:
        """The time from which no attempt starts any more; infinite if a pause hides it.

        For a schedule without local windows.
        """
        expiry = self._life_ends_at()
        return expiry if self.end_at is None else min(expiry, self.end_at)

    def _life_ends_at(self) -> float:
        left, at = float(self.time_to_live), self.start_at
        stops = [*self.pauses]
        if self.paused_at is not None:
            stops.append((self.paused_at, math.inf))
        for begin, end in stops:
            for opened, closed in self._spans(at, begin):
                if closed - opened >= left:
                    return opened + left
                left -= closed - opened
            at = max(at, end)
        if math.isinf(at):
            return at
        for opened, closed in self._spans(at, at + _LONGEST):
            if closed - opened >= left:
                return opened + left
            left -= closed - opened
        return at + _LONGEST

    def _spans(self, begin: float, end: float) -> Iterable[Interval]:
        ahead = self.ahead
        spans = open_spans(self.windows, begin + ahead, end + ahead)
        return ((opened - ahead, closed - ahead) for opened, closed in spans)


@functools.lru_cache(maxsize=4096)
def _in_zones(
    windows: tuple[CallingWindow, ...], zones: tuple[ZoneInfo, ...]
) -> tuple[CallingWindow, ...]:
    """The windows, local ones once for each zone: a call may ring only where it is day in all."""
    local = [window for window in windows if window.is_local]
    fixed = tuple(window for window in windows if not window.is_local)
    return fixed + tuple(one.in_zone(zone) for one in local for zone in zones)


@functools.lru_cache(maxsize=65_536)
def zones_of(e164: str, time_zone: str | None) -> tuple[ZoneInfo, ...]:
    """The time zones in which a callee may be: the one given, else those of the number.

    UTC for a number whose zone is not known.
    """
    if time_zone is not None:
        return (ZoneInfo(time_zone),)
    names = time_zones_for_number(phonenumbers.parse(e164, None))
    return tuple(ZoneInfo(name) for name in names if name != UNKNOWN_TIMEZONE) or (ZoneInfo("UTC"),)


def check_time_zone(name: str, field: str) -> str:
    """The name of a time zone. Raises InvalidRequestError, naming the field."""
    try:
        ZoneInfo(name)
    except (ValueError, OSError, LookupError):
        raise InvalidRequestError(
            f"{field} {name[:64]!r} is no time zone; one is Asia/Tehran"
        ) from None
    return name
