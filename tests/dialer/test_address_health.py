"""When an address counts as down, and what brings it back."""

from __future__ import annotations

import pytest

from bitel.dialer.trunk_health import DOWN_UNPINGED, LONGEST_REST, PINGS_MISSED, AddressHealth
from bitel.sip import Address
from tests.support.clocks import FakeClock

HERE, THERE = Address("192.0.2.1", 5060), Address("192.0.2.2", 5060)


@pytest.fixture
def health(clock: FakeClock) -> AddressHealth:
    return AddressHealth(clock, pinged=True)


def test_nobody_is_down_at_first(health: AddressHealth) -> None:
    assert health.usable(HERE)


@pytest.mark.parametrize("answer", ["answered_ping", "answered_call"])
def test_any_answer_brings_it_back(health: AddressHealth, clock: FakeClock, answer: str) -> None:
    health.failed_call(HERE)
    clock.advance(1e6)
    assert not health.usable(HERE)
    assert health.usable(THERE)
    getattr(health, answer)(HERE)
    assert health.usable(HERE)


def test_one_lost_ping_is_nothing(health: AddressHealth) -> None:
    for _ in range(3):
        for _ in range(PINGS_MISSED - 1):
            health.missed_ping(HERE)
        assert health.usable(HERE)
        health.answered_ping(HERE)
    for _ in range(PINGS_MISSED):
        health.missed_ping(HERE)
    assert not health.usable(HERE)


def test_a_carrier_that_answers_calls_need_not_answer_pings(health: AddressHealth) -> None:
    health.answered_call(HERE)
    for _ in range(10):
        health.missed_ping(HERE)
    assert health.usable(HERE)
    health.answered_ping(HERE)
    for _ in range(PINGS_MISSED):
        health.missed_ping(HERE)
    assert not health.usable(HERE), "it has shown that it does answer them"


def test_unpinged_it_comes_back_with_time(clock: FakeClock) -> None:
    health = AddressHealth(clock, pinged=False)
    health.failed_call(HERE)
    clock.advance(DOWN_UNPINGED - 1)
    assert not health.usable(HERE)
    clock.advance(2)
    assert health.usable(HERE)
    health.failed_call(HERE)
    assert not health.usable(HERE)


def test_an_answered_ping_may_end_a_rest(health: AddressHealth) -> None:
    health.rest(HERE, 60)
    health.answered_ping(HERE)
    assert health.rests(HERE)
    health.answered_ping(HERE, ends_rest=True)
    assert health.usable(HERE)


def test_rest_lasts_as_long_as_was_asked_within_reason(
    health: AddressHealth, clock: FakeClock
) -> None:
    health.rest(HERE, 60)
    clock.advance(59)
    assert health.rests(HERE)
    assert not health.is_down(HERE)
    clock.advance(2)
    assert health.usable(HERE)
    for asked in (3600, 1e9):
        health.rest(HERE, asked)
        clock.advance(59)
        assert health.rests(HERE)
        clock.advance(2)
        assert health.usable(HERE), "one call's answer rests an address for a minute at most"
    health.rest(HERE, 1e9)
    clock.advance(LONGEST_REST + 1)
    assert health.usable(HERE)
