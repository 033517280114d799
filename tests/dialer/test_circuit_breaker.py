"""When a circuit breaker opens, probes and closes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.dialer.trunk_health import BreakerLimits, BreakerState, CircuitBreaker

LIMITS = BreakerLimits(threshold=3, first_wait=30.0, longest_wait=100.0)


def opened(limits: BreakerLimits = LIMITS, at: float = 0.0) -> CircuitBreaker:
    breaker = CircuitBreaker(limits)
    breaker.worked = True
    for _ in range(limits.threshold):
        breaker.failed(at, at)
    assert breaker.state is BreakerState.OPEN
    return breaker


def test_failures_in_a_row_open_it() -> None:
    breaker = CircuitBreaker(LIMITS)
    assert [breaker.failed(1.0, 1.0) for _ in range(3)] == [False, False, True]
    assert not breaker.admits(1.0)


def test_a_success_in_between_begins_the_row_anew() -> None:
    breaker = CircuitBreaker(LIMITS)
    breaker.failed(0.0, 0.0)
    breaker.failed(0.0, 0.0)
    breaker.succeeded(0.0, 0.0)
    assert not breaker.failed(0.0, 0.0)
    assert breaker.admits(0.0)


def test_what_never_worked_does_not_open_it_where_that_is_asked_for() -> None:
    breaker = CircuitBreaker(BreakerLimits(2, 30.0, 30.0, must_have_worked=True))
    assert not any(breaker.failed(0.0, 0.0) for _ in range(10))
    breaker.worked = True
    assert breaker.failed(0.0, 0.0)


def test_a_threshold_of_0_never_opens_it() -> None:
    breaker = CircuitBreaker(BreakerLimits(0, 30.0, 30.0))
    assert not any(breaker.failed(0.0, 0.0) for _ in range(100))


def test_one_call_is_admitted_when_the_wait_is_over() -> None:
    breaker = opened()
    assert not breaker.admits(29.9)
    assert breaker.admits(30.0)
    breaker.begin(30.0)
    assert breaker.state is BreakerState.HALF_OPEN
    assert not breaker.admits(1000.0)


def test_a_probe_that_succeeds_closes_it() -> None:
    breaker = opened()
    breaker.begin(30.0)
    assert breaker.succeeded(30.0, 42.0)
    assert breaker.admits(42.0)
    assert not breaker.failed(42.0, 42.0), "the row begins anew"


@pytest.mark.parametrize(("probes", "wait"), [(1, 60.0), (2, 100.0), (5, 100.0)])
def test_each_probe_that_fails_doubles_the_wait_up_to_the_longest(probes: int, wait: float) -> None:
    breaker, now = opened(), 30.0
    for _ in range(probes):
        breaker.begin(now)
        assert breaker.failed(now, now)
        retried_at, now = now, now + 1000.0
    assert not breaker.admits(retried_at + wait - 0.1)
    assert breaker.admits(retried_at + wait)


def test_a_probe_that_says_nothing_is_tried_again_after_the_same_wait() -> None:
    breaker = opened()
    breaker.begin(30.0)
    breaker.inconclusive(30.0, 50.0)
    assert not breaker.admits(79.9)
    assert breaker.admits(80.0)


def test_calls_begun_before_it_opened_change_nothing() -> None:
    breaker = opened(at=10.0)
    assert not breaker.succeeded(9.0, 11.0)
    assert not breaker.failed(9.0, 12.0)
    assert not breaker.admits(39.9)
    breaker.begin(40.0)
    assert not breaker.succeeded(9.0, 41.0)
    breaker.inconclusive(9.0, 41.0)
    assert breaker.state is BreakerState.HALF_OPEN


@given(st.lists(st.sampled_from(["begin", "ok", "bad", "neither"]), max_size=60))
def test_while_not_closed_at_most_one_call_is_under_way(steps: list[str]) -> None:
    breaker, now = CircuitBreaker(LIMITS), 0.0
    under_way: list[float] = []
    for step in steps:
        now += 10.0
        if step == "begin":
            if breaker.admits(now):
                breaker.begin(now)
                under_way.append(now)
        elif under_way:
            begun_at = under_way.pop()
            if step == "ok":
                breaker.succeeded(begun_at, now)
            elif step == "bad":
                breaker.failed(begun_at, now)
            else:
                breaker.inconclusive(begun_at, now)
        if breaker.state is BreakerState.HALF_OPEN:
            assert not breaker.admits(now + 1e6)
