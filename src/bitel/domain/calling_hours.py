"""Calling windows: the hours of the week at which calls may ring.

Windows use local time, also when clocks change: an hour that is skipped opens nothing, and one that
occurs twice is open both times. The time zone is the window's own, or that of each callee.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import pairwise
from typing import Final
from zoneinfo import ZoneInfo

from bitel.errors import InvalidRequestError

LONGEST_TEXT: Final = 255
"""Characters of a written window."""

LOCAL: Final = "local"
"""Written in place of a time zone: that of the callee."""

_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_MINUTES_A_DAY: Final = 24 * 60
_DAY: Final = 86_400.0
# Days; more than a week, since a change of clocks may skip all hours of a window in one week.
_LOOK_AHEAD: Final = 15
_RULE: Final = re.compile(
    r"(?:(?P<first>[a-z]{3})(?:-(?P<last>[a-z]{3}))?\s+)?"
    r"(?P<opens>\d\d?:\d\d)\s*-\s*(?P<closes>\d\d?:\d\d)",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Hours:
    """Hours of some days. `opens` and `closes` are minutes since the day's midnight."""

    days: frozenset[int]
    """0 is Monday."""
    opens: int
    closes: int
    """Past 1440 where they end on the next day."""


@dataclass(frozen=True, slots=True)
class CallingWindow:
    """Hours at which calls may ring, in one time zone."""

    hours: tuple[Hours, ...]
    zone: ZoneInfo | None
    """None: that of each callee; such a window is used through `in_zone`."""

    @classmethod
    @functools.lru_cache(maxsize=1024)
    def parse(cls, text: str) -> CallingWindow:
        """Parse a window such as `sat-wed 09:00-21:00, thu 09:00-13:00 Asia/Tehran`.

        Hours without days apply to every day; 24:00 is the end of a day, and hours that end before
        they begin pass midnight. The zone `local` is that of each callee. Raises
        InvalidRequestError.
        """
        if len(text) > LONGEST_TEXT:
            raise _wrong(text, f"it is longer than {LONGEST_TEXT} characters")
        rules, _, name = text.strip().rpartition(" ")
        if not rules:
            raise _wrong(text, "it needs hours and a time zone")
        if _RULE.fullmatch(name.lower()):
            raise _wrong(text, "it names no time zone behind the hours; one is Asia/Tehran")
        zone = None if name.lower() == LOCAL else _zone(name, text)
        return cls(tuple(_hours(rule.strip(), text) for rule in rules.split(",")), zone)

    @property
    def is_local(self) -> bool:
        """Whether the hours are by the clock of each callee."""
        return self.zone is None

    def in_zone(self, zone: ZoneInfo) -> CallingWindow:
        """The window for callees in a zone; itself, if it has a zone of its own."""
        return CallingWindow(self.hours, zone) if self.zone is None else self

    def is_open(self, at: float) -> bool:
        """Whether calls may ring at `at` (Unix seconds)."""
        local = datetime.fromtimestamp(at, self.zone)
        today, yesterday = local.weekday(), (local.weekday() - 1) % 7
        minute = local.hour * 60 + local.minute
        return any(
            (today in hours.days and hours.opens <= minute < hours.closes)
            or (yesterday in hours.days and minute + _MINUTES_A_DAY < hours.closes)
            for hours in self.hours
        )

    def changes(self, day: date) -> Iterator[float]:
        """The times of a day in its zone at which the window can open or close, in any order."""
        assert self.zone is not None
        minutes = {0}
        for hours in self.hours:
            minutes |= {hours.opens, hours.closes % _MINUTES_A_DAY}
        for minute in minutes:
            wall = datetime(day.year, day.month, day.day, minute // 60, minute % 60,
                            tzinfo=self.zone)  # fmt: skip
            yield wall.timestamp()
            yield wall.replace(fold=1).timestamp()
        jump = _jump(day, self.zone)
        if jump is not None:
            yield jump

    def opens_at(self, after: float) -> float | None:
        """As the function `opens_at`, for this window alone."""
        return opens_at([self], after)


def are_open(windows: Sequence[CallingWindow], at: float) -> bool:
    """Whether all windows are open at `at` (Unix seconds)."""
    return all(window.is_open(at) for window in windows)


def opens_at(windows: Sequence[CallingWindow], after: float) -> float | None:
    """The first time from `after` on at which all windows are open; both in Unix seconds.

    None if there is none within two weeks.
    """
    spans = open_spans(windows, after, after + _LOOK_AHEAD * _DAY)
    return next((begin for begin, _ in spans), None)


def open_spans(
    windows: Sequence[CallingWindow], begin: float, end: float
) -> Iterator[tuple[float, float]]:
    """The spans of time from `begin` to `end` (Unix seconds) in which all windows are open.

    In order; a span may follow another without a gap.
    """
    if not windows:
        if begin < end:
            yield begin, end
        return
    at = begin
    while at < end:
        # All changes of about a day; between two of them the windows stay as they are.
        until = min(at + _DAY, end)
        moments = {at, until}
        for window in windows:
            first = datetime.fromtimestamp(at, window.zone).date()
            last = datetime.fromtimestamp(until, window.zone).date()
            for number in range((last - first).days + 1):
                changes = window.changes(first + timedelta(days=number))
                moments.update(moment for moment in changes if at < moment < until)
        yield from (
            (one, other) for one, other in pairwise(sorted(moments)) if are_open(windows, one)
        )
        at = until


def _jump(day: date, zone: ZoneInfo) -> float | None:
    """The time of the day at which the zone's clocks change, if they do."""
    midnight = datetime(day.year, day.month, day.day, tzinfo=zone)
    # Clocks may change at midnight itself.
    before = int(midnight.timestamp()) - 1
    after = int((midnight + timedelta(days=1)).timestamp()) + 1
    first = _offset(before, zone)
    if first == _offset(after, zone):
        return None
    while after - before > 1:
        middle = (before + after) // 2
        if _offset(middle, zone) == first:
            before = middle
        else:
            after = middle
    return float(after)


def _offset(at: int, zone: ZoneInfo) -> timedelta | None:
    return datetime.fromtimestamp(at, zone).utcoffset()


def _hours(rule: str, text: str) -> Hours:
    written = _RULE.fullmatch(rule.lower())
    if written is None:
        raise _wrong(text, f"{rule[:40]!r} is not days and hours")
    first, last = written["first"], written["last"]
    for day in filter(None, (first, last)):
        if day not in _DAYS:
            raise _wrong(text, f"{day!r} is no day; days are {', '.join(_DAYS)}")
    days = _days(first, last or first) if first else frozenset(range(7))
    opens, closes = _minutes(written["opens"], text), _minutes(written["closes"], text)
    if opens in (closes, _MINUTES_A_DAY):
        raise _wrong(text, f"{rule[:40]!r} is no span of time; a whole day is 00:00-24:00")
    return Hours(days, opens, closes if closes > opens else closes + _MINUTES_A_DAY)


def _days(first: str, last: str) -> frozenset[int]:
    start = _DAYS.index(first)
    count = (_DAYS.index(last) - start) % 7 + 1
    return frozenset((start + n) % 7 for n in range(count))


def _minutes(clock: str, text: str) -> int:
    hour, minute = map(int, clock.split(":"))
    total = hour * 60 + minute
    if minute > 59 or total > _MINUTES_A_DAY:
        raise _wrong(text, f"{clock} is no time of day")
    return total


def _zone(name: str, text: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, LookupError):
        raise _wrong(
            text, f"{name[:64]!r} is no time zone; one is Asia/Tehran, and local is the callee's"
        ) from None


def _wrong(text: str, what: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"the window {text[:64]!r} can't be read: {what}; "
        "write it as in sat-wed 09:00-21:00 Asia/Tehran"
    )
