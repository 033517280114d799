"""When a connection is asked whether it lives, and when it is given up."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bitel.sip_transport.connection import Liveness, StreamLimits

LIMITS = StreamLimits(message=30, ping_every=30, pong_within=10, idle=2000)


def ours() -> Liveness:
    return Liveness(LIMITS, 0.0, ours=True)


def theirs() -> Liveness:
    return Liveness(LIMITS, 0.0, ours=False)


def test_a_stranger_has_so_long_for_a_first_message() -> None:
    stranger = theirs()
    stranger.processed(29.0, is_between=True)  # keep-alives are no messages
    assert stranger.due(29.9) is None
    assert stranger.due(30.0) == "slow"
    stranger.received(29.9)
    stranger.processed(29.9, is_between=True)
    assert stranger.due(100.0) is None


@pytest.mark.parametrize("make", [ours, theirs])
def test_a_message_that_has_begun_must_end(make: Callable[[], Liveness]) -> None:
    liveness = make()
    liveness.received(1.0)
    liveness.processed(1.0, is_between=False)
    liveness.processed(25.0, is_between=False)
    assert liveness.due(30.9) is None
    assert liveness.due(31.0) == "slow"


def test_a_busy_stream_is_never_slow() -> None:
    stranger = theirs()
    for second in range(100):
        stranger.received(second)
        stranger.processed(second, is_between=False)
        assert stranger.due(second + 0.5) is None


def test_only_who_opened_it_pings_and_only_in_silence() -> None:
    liveness = ours()
    liveness.processed(10.0, is_between=True)
    liveness.sent(20.0)
    assert liveness.due(49.9) is None
    assert liveness.due(50.0) == "ping"
    assert liveness.due(79.9) is None
    assert liveness.due(80.0) == "ping"
    stranger = theirs()
    stranger.received(0.0)
    stranger.processed(0.0, is_between=True)
    assert stranger.due(1999.0) is None


def test_who_never_answered_a_ping_need_not() -> None:
    liveness = ours()
    for now in (30.0, 60.0, 90.0):
        assert liveness.due(now) == "ping"
        assert liveness.due(now + 20) is None


def test_who_has_answered_one_must_answer_the_next() -> None:
    liveness = ours()
    assert liveness.due(30.0) == "ping"
    liveness.pong()
    liveness.processed(30.1, is_between=True)
    assert liveness.due(41.0) is None
    assert liveness.due(60.1) == "ping"
    assert liveness.due(70.0) is None
    assert liveness.due(70.5) == "dead"


def test_anything_heard_is_a_sign_of_life() -> None:
    liveness = ours()
    liveness.due(30.0)
    liveness.pong()
    liveness.processed(30.1, is_between=True)
    assert liveness.due(60.1) == "ping"
    liveness.received(65.0)
    liveness.processed(65.0, is_between=True)
    assert liveness.due(80.0) is None


def test_a_ping_of_theirs_is_no_answer_to_ours() -> None:
    liveness = ours()
    assert liveness.due(30.0) == "ping"
    liveness.pong()
    liveness.ping()
    liveness.processed(30.1, is_between=True)
    assert liveness.due(60.1) == "ping"
    assert liveness.due(80.0) is None


def test_without_messages_it_is_closed_pings_or_not() -> None:
    liveness = ours()
    now = 0.0
    while now < 1990:
        now += 10.0
        liveness.processed(now, is_between=True)
        assert liveness.due(now) is None
    liveness.processed(2000.0, is_between=True)
    assert liveness.due(2000.0) == "idle"
