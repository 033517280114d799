from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitel.rtp.sender.tick_schedule import LOST, REPORT_INTERVAL, Schedule, TickLateness


@settings(deadline=None)
@given(st.lists(st.floats(0, LOST / 2), max_size=200))
def test_late_ticks_never_move_the_schedule(delays: list[float]) -> None:
    schedule = Schedule(1000.0)
    now = 1000.0
    for delay in delays:
        now = max(now, schedule.due)
        if now - schedule.due < LOST / 2:
            now = min(now + delay, schedule.due + LOST / 2)
        schedule.advance(now)
    assert schedule.due == pytest.approx(1000.0 + 0.002 * len(delays))


def test_after_a_long_sleep_missed_ticks_are_not_made_up_for() -> None:
    schedule = Schedule(0.0)
    schedule.advance(0.0)
    schedule.advance(60.0)
    assert schedule.due == 60.0
    assert schedule.index == 2
    schedule.advance(60.0)
    assert schedule.due == pytest.approx(60.002)


def test_lateness_is_forgotten_after_ten_seconds_and_counts_are_not() -> None:
    lateness = TickLateness()
    for _ in range(98):
        lateness.record(0.001)
    lateness.record(0.006)
    lateness.record(0.02)
    now = lateness.report()
    assert (now.ticks, now.late_ticks, now.worst_ms) == (100, 2, 20.0)
    assert 1.0 < now.p99_ms < 20.0
    assert now.p90_ms == pytest.approx(1.0)
    turns = [lateness.report() for _ in range(round(10 / REPORT_INTERVAL) - 1)]
    assert {then.worst_ms for then in turns} == {20.0}
    # Half a second of it is two turns.
    assert [then.p90_ms for then in turns[:3]] == [pytest.approx(1.0), 0.0, 0.0]
    later = lateness.report()
    assert (later.ticks, later.late_ticks, later.worst_ms, later.p99_ms) == (100, 2, 0.0, 0.0)
