"""Calling windows: the hours of the week at which a project's calls may ring.

Windows use local time, also when clocks change: an hour that is skipped opens nothing, and one that
occurs twice is open both times.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

from bitel.errors import InvalidRequestError

LONGEST_TEXT: Final = 255
"""Characters of a written window."""

_DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_MINUTES_A_DAY: Final = 24 * 60
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
    zone: ZoneInfo

    @classmethod
    @functools.lru_cache(maxsize=1024)
    def parse(cls, text: str) -> CallingWindow:
        """Parse a window such as `sat-wed 09:00-21:00, thu 09:00-13:00 Asia/Tehran`.

        Hours without days apply to every day; 24:00 is the end of a day, and hours that end before
        they begin pass midnight. Raises InvalidRequestError.
        """
        if len(text) > LONGEST_TEXT:
            raise _wrong(text, f"it is longer than {LONGEST_TEXT} characters")
        rules, _, name = text.strip().rpartition(" ")
        if not rules:
            raise _wrong(text, "it needs hours and a time zone")
        if _RULE.fullmatch(name.lower()):
            raise _wrong(text, "it names no time zone behind the hours; one is Asia/Tehran")
        zone = _zone(name, text)
        return cls(tuple(_hours(rule.strip(), text) for rule in rules.split(",")), zone)

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

    def opens_at(self, after: float) -> float | None:
        """The first time from `after` on at which calls may ring; both in Unix seconds.

        None if there is none within two weeks.
        """
        if self.is_open(after):
            return after
        today = datetime.fromtimestamp(after, self.zone).date()
        for days in range(_LOOK_AHEAD):
            day = today + timedelta(days=days)
            moments = sorted(self._candidates(day))
            opening = next((at for at in moments if at >= after and self.is_open(at)), None)
            if opening is not None:
                return opening
        return None

    def _candidates(self, day: date) -> Iterator[float]:
        """The times of a day at which the window can open: where hours begin or clocks change."""
        starts = {hours.opens for hours in self.hours} | {0}
        for opens in starts:
            wall = datetime(day.year, day.month, day.day, opens // 60, opens % 60, tzinfo=self.zone)
            yield wall.timestamp()
            yield wall.replace(fold=1).timestamp()
        jump = _jump(day, self.zone)
        if jump is not None:
            yield jump


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
        raise _wrong(text, f"{name[:64]!r} is no time zone; one is Asia/Tehran") from None


def _wrong(text: str, what: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"the window {text[:64]!r} can't be read: {what}; "
        "write it as in sat-wed 09:00-21:00 Asia/Tehran"
    )
