from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitel.rtp.tick_schedule import LOST, TURN, Schedule, TickLateness


@settings(deadline=None)
@given(st.lists(st.floats(0, LOST / 2), max_size=200))
def test_late_ticks_never_move_the_schedule(delays: list[float]) -> None:
    schedule = Schedule(0.002, 1000.0)
    now = 1000.0
    for delay in delays:
        now = max(now, schedule.due)
        if now - schedule.due < LOST / 2:
            now = min(now + delay, schedule.due + LOST / 2)
        schedule.advance(now)
    assert schedule.due == pytest.approx(1000.0 + 0.002 * len(delays))


def test_after_a_long_sleep_missed_ticks_are_not_made_up_for() -> None:
    schedule = Schedule(0.002, 0.0)
    schedule.advance(0.0)
    schedule.advance(60.0)
    assert schedule.due == 60.0
    assert schedule.index == 2
    schedule.advance(60.0)
    assert schedule.due == pytest.approx(60.002)


def test_lateness_is_forgotten_after_ten_seconds_and_counts_are_not() -> None:
    punctuality = TickLateness()
    for _ in range(98):
        punctuality.record(0.001)
    punctuality.record(0.006)
    punctuality.record(0.02)
    now = punctuality.turn()
    assert (now.ticks, now.late, now.worst_ms) == (100, 2, 20.0)
    assert 1.0 < now.p99_ms < 20.0
    assert now.tenth_ms == pytest.approx(1.0)
    turns = [punctuality.turn() for _ in range(round(10 / TURN) - 1)]
    assert {then.worst_ms for then in turns} == {20.0}
    # Half a second of it is two turns.
    assert [then.tenth_ms for then in turns[:3]] == [pytest.approx(1.0), 0.0, 0.0]
    later = punctuality.turn()
    assert (later.ticks, later.late, later.worst_ms, later.p99_ms) == (100, 2, 0.0, 0.0)
