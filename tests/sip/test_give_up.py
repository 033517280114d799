"""Leaving a far end that answers nothing, sooner than Timer B would, and what may come too late."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.sip import Credentials, Failed, Invitation, Transport
from bitel.sip.message import Request
from tests.support.sip_bench import ANSWER, FAR, INVITATION, Bench, reply


def given_up(bench: Bench, after: float = 4.0) -> tuple[str, Request]:
    """A call that nobody has answered anything to, given up."""
    call_id, invite = bench.invite()
    bench.advance(after)
    bench.sent()
    assert bench.agent.give_up(call_id, bench.now)
    assert bench.events() == [Failed(call_id, 408, None, "Request Timeout", "timeout", False)]
    return call_id, invite


def test_it_fails_at_once_and_is_repeated_no_more() -> None:
    bench = Bench()
    call_id, _ = given_up(bench)
    assert not bench.agent.give_up(call_id, bench.now), "once"
    bench.run_out()
    assert bench.names() == []
    assert bench.events() == []


@pytest.mark.parametrize("code", [100, 180, 183])
def test_nobody_is_given_up_who_said_anything(code: int) -> None:
    bench = Bench()
    call_id, invite = bench.invite()
    bench.receive(reply(invite, code))
    bench.events()
    assert not bench.agent.give_up(call_id, bench.now)
    assert bench.events() == []


def test_nor_who_asked_for_a_password() -> None:
    bench = Bench()
    call_id, invite = bench.invite(INVITATION._replace(credentials=Credentials("u", "p")))
    bench.receive(reply(invite, 401, headers=('WWW-Authenticate: Digest realm="r", nonce="n"',)))
    assert not bench.agent.give_up(call_id, bench.now)


def test_a_phone_that_rings_late_is_stopped() -> None:
    bench = Bench()
    _, invite = given_up(bench)
    bench.receive(reply(invite, 180))
    cancel = bench.one("CANCEL").request
    assert cancel.branch == invite.branch
    bench.receive(reply(cancel, 200))
    bench.receive(reply(invite, 487))
    assert bench.one("ACK").request.branch == invite.branch
    assert bench.events() == []
    bench.run_out()


def test_an_answer_that_comes_late_is_hung_up() -> None:
    bench = Bench()
    _, invite = given_up(bench)
    bench.receive(reply(invite, 200, ANSWER))
    assert bench.names() == ["ACK", "BYE"]
    bench.receive(reply(invite, 200, ANSWER))
    assert bench.names() == ["ACK"]
    assert bench.events() == []
    bench.run_out()


def test_one_that_comes_after_timer_b_too() -> None:
    bench = Bench()
    _, invite = given_up(bench)
    bench.advance(40)
    bench.receive(reply(invite, 200, ANSWER))
    assert bench.names() == ["ACK", "BYE"]
    bench.run_out()
    assert bench.events() == []


def test_it_rings_late_and_never_ends() -> None:
    bench = Bench()
    _, invite = given_up(bench)
    bench.receive(reply(invite, 180))
    bench.advance(33)
    assert set(bench.names()) == {"CANCEL"}
    bench.receive(reply(invite, 200, ANSWER))
    assert bench.names() == ["ACK", "BYE"]
    bench.run_out()
    assert bench.events() == []


def timed_out(bench: Bench, invitation: Invitation = INVITATION) -> Request:
    """An INVITE to which nothing was answered until Timer B."""
    call_id, invite = bench.invite(invitation)
    bench.advance(33)
    bench.sent()
    assert bench.events() == [Failed(call_id, 408, None, "Request Timeout", "timeout", False)]
    return invite


@pytest.mark.parametrize("code", [100, 180, 183])
@pytest.mark.parametrize(
    "invitation",
    [INVITATION, INVITATION._replace(destination=FAR._replace(transport=Transport.TCP))],
    ids=["UDP", "TCP"],
)
def test_a_phone_that_rings_after_timer_b_is_stopped(code: int, invitation: Invitation) -> None:
    bench = Bench()
    invite = timed_out(bench, invitation)
    bench.receive(reply(invite, code))
    cancel = bench.one("CANCEL").request
    assert cancel.branch == invite.branch
    bench.receive(reply(invite, 180))
    assert bench.names() == [], "once"
    bench.receive(reply(cancel, 200))
    bench.receive(reply(invite, 487))
    assert bench.one("ACK").request.branch == invite.branch
    assert bench.events() == []
    bench.run_out()


def test_the_cancel_of_a_slow_far_end_may_cross_its_answer() -> None:
    bench = Bench()
    invite = timed_out(bench)
    bench.receive(reply(invite, 180))
    bench.one("CANCEL")
    bench.receive(reply(invite, 200, ANSWER))
    assert bench.names() == ["ACK", "BYE"]
    bench.run_out()
    assert bench.events() == []


def test_a_call_that_we_canceled_in_silence_is_stopped_when_it_rings() -> None:
    bench = Bench()
    call_id, invite = bench.invite()
    bench.advance(10)
    bench.agent.cancel(call_id, bench.now)
    bench.advance(25)
    bench.sent()
    assert [event.why for event in bench.events() if isinstance(event, Failed)] == ["canceled"]
    bench.receive(reply(invite, 180))
    assert bench.one("CANCEL").request.branch == invite.branch
    bench.run_out()


def test_a_1xx_of_another_request_stops_nothing() -> None:
    bench = Bench()
    invite = timed_out(bench)
    other = reply(invite, 180).replace(invite.branch, "z9hG4bKother")
    bench.receive(other)
    assert bench.names() == []
    bench.run_out()


@given(
    st.lists(st.tuples(st.sampled_from([100, 180, 200, 486, 487, 503]), st.floats(0, 40))),
)
def test_whatever_comes_after_timer_b_nothing_is_told_and_nothing_left(
    answers: list[tuple[int, float]],
) -> None:
    bench = Bench()
    invite = timed_out(bench)
    for code, pause in answers:
        bench.receive(reply(invite, code, ANSWER if code == 200 else ""))
        bench.advance(pause)
    bench.run_out()
    assert bench.events() == []
    assert "INVITE" not in bench.names()


@given(
    st.lists(st.tuples(st.sampled_from([100, 180, 200, 486, 487, 503]), st.floats(0, 40))),
    st.floats(0, 30),
)
def test_whatever_comes_late_nothing_is_told_and_nothing_left(
    answers: list[tuple[int, float]], after: float
) -> None:
    bench = Bench()
    _, invite = given_up(bench, after)
    for code, pause in answers:
        bench.receive(reply(invite, code, ANSWER if code == 200 else ""))
        bench.advance(pause)
    bench.run_out()
    assert bench.events() == []
    names = bench.names()
    assert "INVITE" not in names
    if answers and answers[0][0] == 200:
        assert "BYE" in names
