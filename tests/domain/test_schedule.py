"""When calls may be dialled: start, end, time to live, pauses and windows."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.domain.calling_hours import CallingWindow, are_open, open_spans, opens_at
from bitel.domain.schedule import Interval, Schedule, check_time_zone, zones_of
from bitel.errors import InvalidRequestError

HOUR = 3600.0
DAY = 24 * HOUR
MONDAY = datetime(2026, 3, 16, tzinfo=UTC).timestamp()

hours = st.tuples(st.integers(0, 23), st.integers(1, 24)).filter(lambda pair: pair[0] != pair[1])
zones = st.sampled_from(
    ["UTC", "Asia/Tehran", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]
)
days = st.sampled_from(["", "mon-fri ", "sat-wed ", "sun ", "thu-fri "])


@st.composite
def windows(draw: st.DrawFn) -> CallingWindow:
    opens, closes = draw(hours)
    return CallingWindow.parse(f"{draw(days)}{opens:02}:00-{closes:02}:00 {draw(zones)}")


moments = st.integers(0, 400 * 24 * 60).map(lambda minutes: MONDAY + 60.0 * minutes)
schedules = st.lists(windows(), max_size=2).map(tuple)


@given(schedules, moments, st.floats(0, 5 * DAY))
def test_spans_are_where_all_windows_are_open(
    of: tuple[CallingWindow, ...], begin: float, length: float
) -> None:
    end = begin + length
    spans = list(open_spans(of, begin, end))
    edges = [begin, *(edge for span in spans for edge in span), end]
    assert edges == sorted(edges)
    for at in (begin + length * part / 37 for part in range(37)):
        if at < end:
            assert any(one <= at < other for one, other in spans) == are_open(of, at)


@given(windows(), moments)
def test_a_window_opens_at_the_first_open_minute(window: CallingWindow, after: float) -> None:
    found = opens_at([window], after)
    if found is None:
        return
    assert window.is_open(found)
    step = max(60.0, (found - after) / 500)
    at = after
    while at < found - 60:
        assert not window.is_open(at)
        at += step


def simulated(schedule: Schedule, step: float = 60.0) -> float:
    """The expiry found by walking through time in steps."""
    at, left = schedule.start_at, schedule.time_to_live
    while left > 0:
        if schedule.end_at is not None and at >= schedule.end_at:
            return schedule.end_at
        is_paused = any(begin <= at < end for begin, end in schedule.pauses)
        if not is_paused and are_open(schedule.windows, at + schedule.ahead):
            left -= step
        at += step
    return at


pauses = st.lists(st.integers(0, 3000).map(lambda minute: MONDAY + 60.0 * minute), max_size=6).map(
    lambda edges: tuple(zip(sorted(edges)[::2], sorted(edges)[1::2], strict=False))
)


@given(
    st.lists(windows(), max_size=1).map(tuple),
    pauses,
    st.integers(1, 600),
    st.none() | st.integers(1, 4000),
)
def test_the_time_to_live_stops_while_paused_or_closed(
    of: tuple[CallingWindow, ...],
    stops: tuple[Interval, ...],
    minutes: int,
    end: int | None,
) -> None:
    end_at = None if end is None else MONDAY + 60.0 * end
    schedule = Schedule(MONDAY, 60.0 * minutes, end_at, of, stops)

    expiry = schedule.expires_at()

    assert expiry == pytest.approx(simulated(schedule), abs=60.0)
    assert end_at is None or expiry <= end_at


@given(schedules, pauses, st.integers(60, 86_400), st.floats(0, DAY))
def test_a_pause_or_a_window_never_shortens_a_life(
    of: tuple[CallingWindow, ...], stops: tuple[Interval, ...], seconds: int, ahead: float
) -> None:
    schedule = Schedule(MONDAY, seconds, None, of, stops, ahead=ahead)
    assert schedule.expires_at() >= MONDAY + seconds


def test_while_paused_nothing_expires_but_at_its_end() -> None:
    schedule = Schedule(MONDAY, HOUR, paused_at=MONDAY + 60)
    assert math.isinf(schedule.expires_at())
    assert not schedule.is_open(MONDAY + 90)
    ended = Schedule(MONDAY, HOUR, end_at=MONDAY + 120, paused_at=MONDAY + 60)
    assert ended.expires_at() == MONDAY + 120


def test_what_had_expired_before_a_pause_stays_expired() -> None:
    assert Schedule(MONDAY, 30, paused_at=MONDAY + 60).expires_at() == MONDAY + 30
    again = Schedule(MONDAY, 30, pauses=((MONDAY + 60, MONDAY + 90),))
    assert again.expires_at() == MONDAY + 30


def test_nothing_is_dialled_before_the_start() -> None:
    schedule = Schedule(MONDAY, HOUR)
    assert not schedule.is_open(MONDAY - 0.001)
    assert schedule.is_open(MONDAY)
    assert schedule.opens_at(MONDAY - DAY) == MONDAY


def test_windows_follow_the_system_clock() -> None:
    noon = MONDAY + 12 * HOUR
    window = CallingWindow.parse("12:00-13:00 UTC")
    behind = Schedule(MONDAY, HOUR, windows=(window,), ahead=600.0)
    assert behind.is_open(noon - 600)
    assert not behind.is_open(noon + HOUR - 600)
    assert behind.opens_at(MONDAY) == noon - 600


def test_local_windows_are_by_the_clock_of_each_callee() -> None:
    window = CallingWindow.parse("09:00-21:00 local")
    schedule = Schedule(MONDAY, HOUR, windows=(window,))
    assert schedule.is_local
    tehran = schedule.in_zones(zones_of("+989121234567", None))
    york = schedule.in_zones(zones_of("+12125551234", None))
    given_zone = schedule.in_zones(zones_of("+989121234567", "America/New_York"))
    assert tehran.opens_at(MONDAY) == MONDAY + 5.5 * HOUR
    night = MONDAY + 6 * HOUR
    assert york.opens_at(night) == given_zone.opens_at(night) == MONDAY + 13 * HOUR


def test_a_number_of_many_zones_is_called_where_it_is_day_in_all_of_them() -> None:
    everywhere = zones_of("+79161234567", None)
    assert len(everywhere) > 5
    schedule = Schedule(MONDAY, HOUR, windows=(CallingWindow.parse("09:00-21:00 local"),))
    opening = schedule.in_zones(everywhere).opens_at(MONDAY)
    assert opening is not None
    for zone in everywhere:
        assert 9 <= datetime.fromtimestamp(opening, zone).hour < 21


def test_zones_that_exclude_each_other_allow_no_call() -> None:
    window = CallingWindow.parse("09:00-10:00 local")
    schedule = Schedule(MONDAY, HOUR, windows=(window,))
    far_apart = (ZoneInfo("Asia/Tokyo"), ZoneInfo("America/New_York"))
    assert schedule.in_zones(far_apart).opens_at(MONDAY) is None


def test_a_number_without_a_zone_counts_as_utc() -> None:
    assert [zone.key for zone in zones_of("+881612345678", None)] == ["UTC"]


@pytest.mark.parametrize("name", ["Mars/Olympus", "", "../etc/passwd", "Asia/tehran\0"])
def test_what_is_no_time_zone_is_named(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"recipients\[3\].timeZone"):
        check_time_zone(name, "recipients[3].timeZone")
