"""The timers of an agent, and that the transaction tables are whole."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.sip.timers import MAX_LANES, Timers
from bitel.sip.transaction import input_of
from bitel.sip.transaction_tables import (
    INVITE_CLIENT,
    INVITE_SERVER,
    NON_INVITE_CLIENT,
    NON_INVITE_SERVER,
    Input,
    State,
    Table,
)
from tests.support.sip_bench import ANSWER, Bench, reply

STARTS = {
    id(INVITE_CLIENT): State.CALLING,
    id(NON_INVITE_CLIENT): State.TRYING,
    id(INVITE_SERVER): State.PROCEEDING,
    id(NON_INVITE_SERVER): State.TRYING,
}


WAITS = (0.0, 0.5, 5.0, 32.0)
"""Those of a configuration, which get lanes, and none at all."""


class Log:
    def __init__(self) -> None:
        self.fired: list[tuple[float, str]] = []

    def timer_fired(self, name: str, now: float) -> None:
        self.fired.append((now, name))


def held(timers: Timers) -> int:
    """How many timers are in memory, those that were stopped included."""
    count = len(timers._heap)
    for end in timers._lanes.values():
        here, before = end, -inf
        while (following := here.after) is not end:
            assert following.before is here
            assert following.owner is not None
            assert following.when >= before
            here, before = following, following.when
            count += 1
        assert end.before is here
    return count


def test_timers_fire_in_order_and_once() -> None:
    timers, log = Timers(), Log()
    for when in (3.0, 1.0, 2.0, 1.0):
        timers.start(0.0, when, log, f"after {when}")
        timers.start_at(when, log, f"at {when}")
    assert timers.next() == 1.0
    timers.fire(0.9)
    assert log.fired == []
    timers.fire(2.0)
    names = ["after 1.0", "at 1.0", "after 1.0", "at 1.0", "after 2.0", "at 2.0"]
    assert log.fired == [(2.0, name) for name in names]
    assert len(timers) == 2
    timers.fire(9.0)
    assert timers.next() is None
    assert held(timers) == 0


@pytest.mark.parametrize("in_lane", [True, False])
def test_a_stopped_timer_never_fires(in_lane: bool) -> None:
    timers, log = Timers(), Log()
    timer = timers.start(0.0, 1.0, log, "x") if in_lane else timers.start_at(1.0, log, "x")
    assert timers.next() == 1.0
    timers.stop(timer)
    timers.stop(timer)
    timers.stop(None)
    assert (timers.next(), len(timers)) == (None, 0)
    timers.fire(5.0)
    assert log.fired == []


def test_stopped_timers_do_not_pile_up() -> None:
    timers, log = Timers(), Log()
    keep = timers.start_at(1e9, log, "keep")
    for number in range(10_000):
        timers.stop(timers.start_at(1000.0 + number, log, "x"))
        assert held(timers) <= 64
    assert len(timers) == 1
    assert keep.owner is log


def test_a_timer_that_is_stopped_leaves_its_lane_at_once() -> None:
    timers, log = Timers(), Log()
    started = [timers.start(float(number), 32.0, log, "x") for number in range(100)]
    for count, timer in enumerate(started[1:-1], 1):
        timers.stop(timer)
        assert held(timers) == len(timers) == 100 - count
        # Kept by its owner, it keeps none of the others.
        assert timer.before.when == timer.after.when == inf
    assert timers.next() == 32.0


def test_a_clock_that_goes_back_does_not_disturb_a_lane() -> None:
    timers, log = Timers(), Log()
    for now in (10.0, 3.0, 11.0):
        timers.start(now, 5.0, log, str(now))
    assert timers.next() == 8.0
    timers.fire(15.0)
    assert [name for _, name in log.fired] == ["3.0", "10.0"]
    assert held(timers) == 1


def test_there_are_only_so_many_lanes() -> None:
    timers, log = Timers(), Log()
    for number in reversed(range(10 * MAX_LANES)):
        timers.start(0.0, float(number), log, str(number))
    assert len(timers._lanes) == MAX_LANES
    timers.fire(1000.0)
    assert [int(name) for _, name in log.fired] == list(range(10 * MAX_LANES))


def test_only_what_the_far_end_chose_lies_in_the_heap() -> None:
    for asked, lying in (("1800", 0), ("1801", 2)):
        bench = Bench()
        _, invite = bench.invite()
        header = f"Session-Expires: {asked};refresher=uac"
        bench.receive(reply(invite, 200, ANSWER, headers=(header,)))
        timers = bench.agent._layer.timers
        assert len(timers) == held(timers) == 3
        assert len(timers._heap) == lying


# Whatever is started, stopped and fired, it is as if all timers were in one sorted list


class SortedList:
    """The same timers, said as simply as can be."""

    def __init__(self) -> None:
        self.running: list[tuple[float, int, str, Player]] = []
        self.sequence = 0

    def start(self, now: float, wait: float, owner: Player, name: str) -> int:
        return self.start_at(now + wait, owner, name)

    def start_at(self, when: float, owner: Player, name: str) -> int:
        self.sequence += 1
        self.running.append((when, self.sequence, name, owner))
        self.running.sort(key=lambda entry: entry[:2])
        return self.sequence

    def stop(self, timer: int | None) -> None:
        self.running = [entry for entry in self.running if entry[1] != timer]

    def next(self) -> float | None:
        return self.running[0][0] if self.running else None

    def fire(self, now: float) -> None:
        while self.running and self.running[0][0] <= now:
            _, _, name, owner = self.running.pop(0)
            owner.timer_fired(name, now)

    def __len__(self) -> int:
        return len(self.running)


@dataclass(frozen=True, slots=True)
class Start:
    wait: float


@dataclass(frozen=True, slots=True)
class StartAt:
    """Seconds from now; what has passed already is due at once."""

    wait: float


@dataclass(frozen=True, slots=True)
class Stop:
    """One of those started so far, whether it still runs or not, counted back from the last."""

    which: int


@dataclass(frozen=True, slots=True)
class Move:
    """Have the clock go on, or back, with or without looking at the timers then."""

    seconds: float
    fires: bool


Step = Start | StartAt | Stop


class Player:
    """Does as a plan says; whenever a timer fires, one step of those for then."""

    def __init__(self, timers: Any, then: list[Step]) -> None:
        self.timers = timers
        self.then = list(then)
        self.now = 1000.0
        self.started: list[Any] = []
        self.log: list[tuple[object, ...]] = []

    def take(self, step: Step) -> None:
        name = str(len(self.started))
        if isinstance(step, Start):
            self.started.append(self.timers.start(self.now, step.wait, self, name))
        elif isinstance(step, StartAt):
            self.started.append(self.timers.start_at(self.now + step.wait, self, name))
        elif step.which < len(self.started):
            self.timers.stop(self.started[-1 - step.which])

    def timer_fired(self, name: str, now: float) -> None:
        self.log.append((name, now, len(self.timers)))
        if self.then:
            self.take(self.then.pop())

    def play(self, step: Step | Move) -> None:
        if isinstance(step, Move):
            self.now += step.seconds
            if step.fires:
                self.timers.fire(self.now)
        else:
            self.take(step)
        self.log.append((len(self.timers),))

    def look(self) -> None:
        self.log.append((self.timers.next(),))


STEPS = st.one_of(
    st.sampled_from(WAITS).map(Start),
    st.sampled_from((*WAITS, -1.0, 0.25, 7.0)).map(StartAt),
    st.integers(0, 30).map(Stop),
)
MOVES = st.builds(Move, st.sampled_from((0.0, 0.25, 0.5, 4.5, 20.0, -0.5)), st.booleans())


@given(
    st.lists(st.tuples(STEPS | MOVES, st.booleans()), max_size=150),
    st.lists(STEPS, max_size=60),
)
def test_timers_are_as_good_as_a_sorted_list(
    plan: list[tuple[Step | Move, bool]], then: list[Step]
) -> None:
    timers = Timers()
    ours, model = Player(timers, then), Player(SortedList(), then)
    for step, looks in plan:
        for player in (ours, model):
            player.play(step)
            if looks:
                player.look()
        assert ours.log == model.log
        in_lanes = held(timers) - len(timers._heap)
        in_heap = len(timers) - in_lanes
        assert in_heap <= len(timers._heap) <= max(64, 2 * in_heap + 1)
    for player in (ours, model):
        player.then.clear()
        player.play(Move(1000.0, True))
        player.look()
    assert ours.log == model.log
    assert held(timers) == len(timers) == 0


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
    assert [input_of(code) for code in (100, 199, 200, 299, 300, 699)] == [
        Input.PROVISIONAL,
        Input.PROVISIONAL,
        Input.SUCCESS,
        Input.SUCCESS,
        Input.FAILURE,
        Input.FAILURE,
    ]
