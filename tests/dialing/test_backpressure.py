"""When calls are held back, and when no more: rules that hold for any course of the figures."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.dialing.backpressure import CALM, LIMITS, Backpressure, LoadSample, OverloadReason

EASY = LoadSample()


def load(sign: OverloadReason, figure: float) -> LoadSample:
    match sign:
        case "late packets":
            return LoadSample(packets_late=figure)
        case "late loop":
            return LoadSample(loop_late=figure)
        case "waiting writes":
            return LoadSample(writes_waiting=round(figure))


strains = st.builds(
    LoadSample,
    packets_late=st.floats(0, 60),
    loop_late=st.floats(0, 600),
    writes_waiting=st.integers(0, 6000),
)
steps = st.lists(st.tuples(st.floats(0.01, 2.0), strains), min_size=1, max_size=20)


@pytest.mark.parametrize("sign", LIMITS)
def test_each_sign_begins_at_its_limit_and_ends_after_calm(sign: OverloadReason) -> None:
    limit = LIMITS[sign]
    pressure = Backpressure()
    assert not pressure.look(load(sign, limit.begins - 1), 0.0)
    assert pressure.look(load(sign, limit.begins), 1.0)
    assert pressure.signs == {sign}
    assert not pressure.look(load(sign, limit.ends + 1), 10.0)
    assert not pressure.look(load(sign, limit.ends), 11.0)
    assert not pressure.look(load(sign, limit.ends), 11.0 + CALM - 0.1)
    assert pressure.look(load(sign, limit.ends), 11.0 + CALM)
    assert pressure.signs == frozenset()
    assert pressure.seconds(100.0) == 10.0 + CALM


def test_a_clock_that_is_set_back_holds_nobody_back_for_long() -> None:
    pressure = Backpressure()
    sign: OverloadReason = "late loop"
    pressure.look(load(sign, LIMITS[sign].begins), 5000.0)
    pressure.look(load(sign, 0.0), 5000.0)
    assert not pressure.look(load(sign, 0.0), 1000.0)
    assert pressure.look(load(sign, 0.0), 1000.0 + CALM)
    assert pressure.seconds(1001.0) >= 0


@pytest.mark.parametrize("sign", LIMITS)
def test_its_two_limits_are_apart(sign: OverloadReason) -> None:
    assert 0 < LIMITS[sign].ends <= LIMITS[sign].begins / 2


@given(steps)
def test_held_back_from_the_first_figure_over_its_limit_and_from_none_below(
    course: list[tuple[float, LoadSample]],
) -> None:
    pressure, now = Backpressure(), 0.0
    over = False
    for pause, each in course:
        now += pause
        at_limit = {sign for sign, limit in LIMITS.items() if each.figure(sign) >= limit.begins}
        over = over or bool(at_limit)
        pressure.look(each, now)
        assert pressure.signs >= at_limit
        assert over or not pressure.signs


@given(steps)
def test_between_the_limits_nothing_changes(course: list[tuple[float, LoadSample]]) -> None:
    pressure, now = Backpressure(), 0.0
    for pause, each in course:
        now += pause
        before = pressure.signs
        pressure.look(each, now)
        for sign, limit in LIMITS.items():
            if limit.ends < each.figure(sign) < limit.begins:
                assert (sign in before) == (sign in pressure.signs)


@given(steps)
def test_a_sign_ends_only_after_calm_and_then_surely(
    course: list[tuple[float, LoadSample]],
) -> None:
    pressure, now = Backpressure(), 0.0
    high_at = dict.fromkeys(LIMITS, 0.0)
    for pause, each in course:
        now += pause
        before = pressure.signs
        pressure.look(each, now)
        for sign, limit in LIMITS.items():
            if each.figure(sign) > limit.ends:
                high_at[sign] = now
            if sign in before - pressure.signs:
                assert now - high_at[sign] >= CALM
    pressure.look(EASY, now)
    pressure.look(EASY, now + CALM + 0.01)
    assert not pressure.signs


@given(steps)
def test_a_change_is_told_once_and_the_time_adds_up(course: list[tuple[float, LoadSample]]) -> None:
    pressure, now, held = Backpressure(), 0.0, 0.0
    seen = [(0.0, False)]
    for pause, each in course:
        now += pause
        told = pressure.look(each, now)
        assert told == (bool(pressure.signs) != seen[-1][1])
        seen.append((now, bool(pressure.signs)))
    held = sum(later - earlier for (earlier, was), (later, _) in pairwise(seen) if was)
    assert pressure.seconds(now) == pytest.approx(held)
