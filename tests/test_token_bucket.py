"""The token bucket, and the pace of calls that it gives."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bitel.token_bucket import BURST_SECONDS, TokenBucket


def pace(per_second: float, now: float = 0.0) -> TokenBucket:
    """The bucket of a dispatcher that may start so many calls a second."""
    return TokenBucket(per_second, max(1.0, per_second * BURST_SECONDS), now)


def take_all(bucket: TokenBucket, now: float) -> int:
    calls = int(bucket.available(now))
    assert bucket.take(now, calls) == 0
    return calls


def test_one_call_may_start_at_once_however_slow_the_pace() -> None:
    bucket = pace(0.1)
    assert take_all(bucket, 0.0) == 1
    assert int(bucket.available(9.9)) == 0
    assert int(bucket.available(10.0)) == 1


def test_a_pause_earns_no_burst() -> None:
    assert pace(100.0).available(3600.0) == 10


def test_wait_says_when_the_next_call_may_start() -> None:
    bucket = pace(10.0)
    take_all(bucket, 0.0)
    wait = bucket.wait()
    assert int(bucket.available(wait - 0.01)) == 0
    assert int(bucket.available(wait + 0.001)) == 1


def test_a_clock_that_steps_back_gives_nothing_away() -> None:
    bucket = pace(10.0, now=100.0)
    take_all(bucket, 100.0)
    assert bucket.available(50.0) == 0
    assert int(bucket.available(50.05)) == 0


@given(
    st.floats(0.5, 5000.0),
    st.lists(st.floats(0.0, 2.0), min_size=1, max_size=200),
)
def test_never_more_calls_than_the_pace_allows(per_second: float, steps: list[float]) -> None:
    bucket = pace(per_second)
    now, started = 0.0, 0
    for step in steps:
        now += step
        started += take_all(bucket, now)
        assert started <= now * per_second + max(1.0, per_second * BURST_SECONDS) + 1e-6


@given(
    st.integers(1, 100),
    st.lists(st.tuples(st.floats(0, 30), st.integers(1, 150)), min_size=1, max_size=60),
)
def test_a_bucket_gives_what_came_in_and_one_debt(
    per_minute: int, asks: list[tuple[float, int]]
) -> None:
    bucket, now, taken = TokenBucket(per_minute / 60, per_minute, 0.0), 0.0, 0
    for pause, cost in asks:
        now += pause
        wait = bucket.take(now, cost)
        if wait:
            # When it says to come again, it keeps its word.
            now += wait + 1e-6
            assert bucket.take(now, cost) == 0
        taken += cost
    debt = max(0, max(cost for _, cost in asks) - per_minute)
    assert taken <= per_minute + per_minute * now / 60 + debt + 1e-3
