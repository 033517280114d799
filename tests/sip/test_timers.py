"""The timer heap, and that the transaction tables are whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.sip.timers import Timer, Timers
from bitel.sip.transaction_tables import (
    INVITE_CLIENT,
    INVITE_SERVER,
    NON_INVITE_CLIENT,
    NON_INVITE_SERVER,
    State,
    Stimulus,
    Table,
    stimulus_of,
)

STARTS = {
    id(INVITE_CLIENT): State.CALLING,
    id(NON_INVITE_CLIENT): State.TRYING,
    id(INVITE_SERVER): State.PROCEEDING,
    id(NON_INVITE_SERVER): State.TRYING,
}


class Log:
    def __init__(self) -> None:
        self.fired: list[tuple[float, str]] = []

    def timer_fired(self, name: str, now: float) -> None:
        self.fired.append((now, name))


def test_timers_fire_in_order_and_once() -> None:
    timers, log = Timers(), Log()
    for when in (3.0, 1.0, 2.0, 1.0):
        timers.start(when, log, f"at {when}")
    assert timers.next() == 1.0
    timers.fire(0.9)
    assert log.fired == []
    timers.fire(2.0)
    assert log.fired == [(2.0, "at 1.0"), (2.0, "at 1.0"), (2.0, "at 2.0")]
    assert len(timers) == 1
    timers.fire(9.0)
    assert timers.next() is None


def test_a_stopped_timer_never_fires() -> None:
    timers, log = Timers(), Log()
    timer = timers.start(1.0, log, "x")
    timers.stop(timer)
    timers.stop(timer)
    timers.stop(None)
    assert (timers.next(), len(timers)) == (None, 0)
    timers.fire(5.0)
    assert log.fired == []


def test_stopped_timers_do_not_pile_up() -> None:
    timers, log = Timers(), Log()
    keep = timers.start(1e9, log, "keep")
    for number in range(10_000):
        timers.stop(timers.start(1000.0 + number, log, "x"))
    assert len(timers._heap) < 200
    assert len(timers) == 1
    assert keep.owner is log


@given(st.lists(st.tuples(st.floats(0, 100), st.booleans()), max_size=300))
def test_what_is_left_fires_in_order(plan: list[tuple[float, bool]]) -> None:
    timers, log = Timers(), Log()
    started: list[tuple[float, bool, Timer]] = [
        (when, stop, timers.start(when, log, str(when))) for when, stop in plan
    ]
    for _, stop, timer in started:
        if stop:
            timers.stop(timer)
    left = sorted(when for when, stop, _ in started if not stop)
    assert len(timers) == len(left)
    timers.fire(100.0)
    assert [float(name) for _, name in log.fired] == left


@pytest.mark.parametrize(
    "table", [INVITE_CLIENT, NON_INVITE_CLIENT, INVITE_SERVER, NON_INVITE_SERVER]
)
def test_every_state_of_a_table_is_reached_and_left(table: Table) -> None:
    reached = {STARTS[id(table)]} | {state for state, _ in table.values()}
    left = {state for state, _ in table}
    assert reached - {State.TERMINATED} == left
    assert State.TERMINATED not in left


@pytest.mark.parametrize(
    "table", [INVITE_CLIENT, NON_INVITE_CLIENT, INVITE_SERVER, NON_INVITE_SERVER]
)
def test_every_timer_that_a_table_starts_it_also_hears(table: Table) -> None:
    started = {
        str(action) for _, actions in table.values() for action in actions if len(action) == 1
    }
    started |= {"A", "B"} if table is INVITE_CLIENT else set()
    started |= {"E", "F"} if table is NON_INVITE_CLIENT else set()
    heard = {str(stimulus) for _, stimulus in table if len(stimulus) == 1}
    assert started == heard


def test_classes_of_responses() -> None:
    assert [stimulus_of(code) for code in (100, 199, 200, 299, 300, 699)] == [
        Stimulus.PROVISIONAL,
        Stimulus.PROVISIONAL,
        Stimulus.SUCCESS,
        Stimulus.SUCCESS,
        Stimulus.FAILURE,
        Stimulus.FAILURE,
    ]
