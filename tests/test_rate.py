"""Rates in whole places: never more within a second than the rate and one more."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from bitel.token_bucket import Rate

STEPS = st.lists(st.tuples(st.floats(0.0, 0.4), st.integers(1, 50)), min_size=1, max_size=150)


def begun(rate: Rate, steps: list[tuple[float, int]], places: int | None) -> list[float]:
    """When calls began that a worker wanted to begin in steps."""
    now, times = 0.0, []
    for step, wanted in steps:
        now += step
        count = min(wanted, rate.room(now, places))
        rate.take(now, count)
        times += [now] * count
    return times


def busiest_second(times: list[float]) -> int:
    return max((sum(at - 1.0 < each <= at for each in times) for at in times), default=0)


@given(st.floats(0.2, 60.0), STEPS)
def test_a_second_has_no_more_than_the_rate_and_one(
    per_second: float, steps: list[tuple[float, int]]
) -> None:
    times = begun(Rate(per_second, 0.0), steps, None)
    assert busiest_second(times) <= per_second + 1


@given(st.floats(0.2, 60.0), st.lists(st.integers(0, 30), min_size=2, max_size=5), STEPS)
def test_shares_of_a_rate_add_up_to_no_more_than_the_rate_and_one(
    per_second: float, parts: list[int], steps: list[tuple[float, int]]
) -> None:
    left, places = Rate(per_second, 0.0).places, []
    for part in parts:
        places.append(min(part, left))
        left -= places[-1]
    times = [at for each in places for at in begun(Rate(per_second, 0.0), steps, each)]
    assert busiest_second(times) <= per_second + 1


def test_a_share_is_worth_its_part_of_the_rate() -> None:
    rate, now, times = Rate(10.0, 0.0), 0.0, []
    while now < 60.0:
        if rate.room(now, 3):
            rate.take(now)
            times.append(now)
        now += 0.05
    assert 2.7 <= len(times) / 60.0 <= 3.05
    assert all(later - sooner >= 0.29 for sooner, later in pairwise(times[2:]))


def test_without_a_share_nothing_begins_and_nothing_breaks() -> None:
    rate = Rate(10.0, 0.0)
    assert rate.room(5.0, 0) == 0
    assert rate.wait() == float("inf")
    assert rate.room(6.0, 10) >= 1
