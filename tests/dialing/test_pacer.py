from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bitel.dialing.pacer import BURST_SECONDS, Pacer


def test_one_call_may_start_at_once_however_slow_the_pace() -> None:
    pacer = Pacer(0.1, now=0.0)
    assert pacer.available(0.0) == 1
    pacer.spend(1)
    assert pacer.available(9.9) == 0
    assert pacer.available(10.0) == 1


def test_a_pause_earns_no_burst() -> None:
    pacer = Pacer(100.0, now=0.0)
    assert pacer.available(3600.0) == 10


def test_wait_says_when_the_next_call_may_start() -> None:
    pacer = Pacer(10.0, now=0.0)
    pacer.spend(pacer.available(0.0))
    wait = pacer.wait()
    assert pacer.available(wait - 0.01) == 0
    assert pacer.available(wait + 0.001) == 1


def test_a_clock_that_steps_back_gives_nothing_away() -> None:
    pacer = Pacer(10.0, now=100.0)
    pacer.spend(pacer.available(100.0))
    assert pacer.available(50.0) == 0
    assert pacer.available(50.05) == 0


@given(
    st.floats(0.5, 5000.0),
    st.lists(st.floats(0.0, 2.0), min_size=1, max_size=200),
)
def test_never_more_calls_than_the_pace_allows(pace: float, steps: list[float]) -> None:
    pacer = Pacer(pace, now=0.0)
    now, started = 0.0, 0
    for step in steps:
        now += step
        calls = pacer.available(now)
        pacer.spend(calls)
        started += calls
        assert started <= now * pace + max(1.0, pace * BURST_SECONDS) + 1e-6
