"""Calling windows: by the clock on the wall, also when that clock is put forward or back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bitel.domain.calling_hours import CallingWindow
from bitel.errors import InvalidRequestError

# Ones whose clocks jump at midnight, by half an hour, by day, and never.
ZONES = ["Asia/Tehran", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe",
         "America/Havana", "Africa/Cairo", "Asia/Kathmandu", "UTC"]  # fmt: skip
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def clock(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"


@st.composite
def windows(draw: st.DrawFn) -> tuple[str, str, list[tuple[set[int], int, int]]]:
    """A window's text, its zone, and its rules as (days, opens, closes), taken on their own."""
    rules, words = [], []
    for _ in range(draw(st.integers(1, 3))):
        opens = draw(st.integers(0, 1439))
        closes = (opens + draw(st.integers(1, 1439))) % 1440 or 1440
        first, count = draw(st.integers(0, 6)), draw(st.integers(1, 7))
        days = {(first + n) % 7 for n in range(count)}
        name = f"{DAYS[first]}-{DAYS[(first + count - 1) % 7]} " if count < 7 else ""
        rules.append((days, opens, closes))
        words.append(f"{name}{clock(opens)}-{clock(closes)}")
    zone = draw(st.sampled_from(ZONES))
    return f"{', '.join(words)} {zone}", zone, rules


def open_by_the_wall(at: float, zone: str, rules: list[tuple[set[int], int, int]]) -> bool:
    """What somebody who reads rules and looks at the clock would say."""
    local = datetime.fromtimestamp(at, ZoneInfo(zone))
    minute, today = local.hour * 60 + local.minute, local.weekday()
    for days, opens, closes in rules:
        if opens < closes:
            if today in days and opens <= minute < closes:
                return True
        elif (today in days and minute >= opens) or ((today - 1) % 7 in days and minute < closes):
            return True
    return False


def changes_of_clocks() -> list[float]:
    """Moments around which some zone of ours changes its clocks, found by looking."""
    found = []
    for zone in map(ZoneInfo, ZONES):
        at = datetime(2019, 1, 1, tzinfo=UTC)
        while at.year < 2024:
            later = at + timedelta(hours=1)
            if at.astimezone(zone).utcoffset() != later.astimezone(zone).utcoffset():
                found.append(later.timestamp())
            at = later + timedelta(hours=5)
            if at.astimezone(zone).utcoffset() != later.astimezone(zone).utcoffset():
                found.append(at.timestamp())
    return found


CHANGES = changes_of_clocks()
times = st.floats(1.5e9, 1.8e9) | st.builds(
    lambda change, off: change + off, st.sampled_from(CHANGES), st.floats(-40_000, 40_000)
)


@given(windows(), times)
def test_a_window_is_open_by_the_clock_on_the_wall(
    window: tuple[str, str, list[tuple[set[int], int, int]]], at: float
) -> None:
    text, zone, rules = window
    assert CallingWindow.parse(text).is_open(at) is open_by_the_wall(at, zone, rules)


@given(windows(), times)
@example(("02:10-02:40 Europe/Berlin", "Europe/Berlin", []), 1616889600.0)
@example(("sun 02:10-02:40 Europe/Berlin", "Europe/Berlin", []), 1616889600.0)
def test_it_opens_at_the_first_open_moment_and_no_earlier(
    window: tuple[str, str, list[tuple[set[int], int, int]]], after: float
) -> None:
    opening_times = CallingWindow.parse(window[0])
    opens = opening_times.opens_at(after)

    assert opens is not None
    assert opens >= after
    assert opening_times.is_open(opens)
    if opens > after:
        assert not opening_times.is_open(after)
        assert not opening_times.is_open(opens - 0.001)
        # Whole minutes are what windows and clocks begin on.
        minute = after // 60 * 60 + 60
        while minute < opens:
            assert not opening_times.is_open(minute)
            minute += 60


def local(text: str, zone: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


def test_the_working_week_of_tehran() -> None:
    window = CallingWindow.parse("sat-wed 09:00-21:00 Asia/Tehran")
    friday = local("2026-11-20T12:00", "Asia/Tehran")

    assert not window.is_open(friday)
    assert window.opens_at(friday) == local("2026-11-21T09:00", "Asia/Tehran")
    assert window.is_open(local("2026-11-25T20:59:59", "Asia/Tehran"))
    assert not window.is_open(local("2026-11-25T21:00", "Asia/Tehran"))


def test_hours_may_pass_midnight() -> None:
    window = CallingWindow.parse("fri 22:00-02:00 UTC")
    friday = local("2026-11-20T00:00", "UTC")

    assert not window.is_open(friday + 3600)
    assert window.is_open(friday + 23 * 3600)
    assert window.is_open(friday + 25 * 3600)
    assert not window.is_open(friday + 26 * 3600)


def test_an_hour_that_is_skipped_opens_nothing_and_one_that_comes_twice_opens_twice() -> None:
    window = CallingWindow.parse("02:00-03:00 Europe/Berlin")
    spring, autumn = local("2026-03-29T00:00", "UTC"), local("2026-10-25T00:00", "UTC")

    assert not any(window.is_open(spring + minute * 60) for minute in range(12 * 60))
    minutes = [minute for minute in range(12 * 60) if window.is_open(autumn + minute * 60)]
    assert minutes == list(range(120))


def test_a_window_that_begins_in_a_skipped_hour_opens_when_the_clock_has_jumped() -> None:
    window = CallingWindow.parse("02:30-05:00 Europe/Berlin")
    assert window.opens_at(local("2026-03-29T00:00", "UTC")) == local("2026-03-29T01:00", "UTC")


def test_a_whole_week_is_always_open() -> None:
    window = CallingWindow.parse("mon-sun 00:00-24:00 Asia/Tehran")
    assert all(window.is_open(1.7e9 + hour * 1800) for hour in range(400))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "hours and a time zone"),
        ("Asia/Tehran", "hours and a time zone"),
        ("sat-wed 09:00-21:00", "names no time zone behind the hours"),
        ("mon 25:00-26:00", "names no time zone behind the hours"),
        ("25:00-26:00 UTC", "25:00 is no time of day"),
        ("sat-wed 09:00-21:00 Asia/Atlantis", "no time zone"),
        ("sat-wed 09:00-21:00 ../etc/passwd", "no time zone"),
        ("sat-wed 09:00-21:00 Asia", "no time zone"),
        ("sat-xyz 09:00-21:00 UTC", "no day"),
        ("sat-wed 9-21 UTC", "not days and hours"),
        ("sat-wed 09:00-25:00 UTC", "no time of day"),
        ("sat-wed 09:60-10:00 UTC", "no time of day"),
        ("09:00-09:00 UTC", "no span of time"),
        ("24:00-09:00 UTC", "no span of time"),
        ("09:00-10:00, UTC", "not days and hours"),
        ("09:00-10:00," * 40 + "09:00-10:00 UTC", "longer than 255"),
    ],
)
def test_what_is_no_window_is_refused(text: str, what: str) -> None:
    with pytest.raises(InvalidRequestError, match=what):
        CallingWindow.parse(text)
