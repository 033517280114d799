"""Leaving a far end that answers nothing, sooner than Timer B would, and what may come too late."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.sip import Credentials, Failed
from bitel.sip.message import Request
from tests.sip.far_end import ANSWER, INVITATION, Bench, reply


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
