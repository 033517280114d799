"""The agent after a pause of its process: what is over ends in silence, the rest sends once."""

from __future__ import annotations

import pytest

from bitel.sip import Answered, Credentials, Ended, Failed, OutgoingRequest, RequestDone
from bitel.sip.message import Request
from tests.sip.test_server import accepted, ringing
from tests.sip.test_session_timer import UPDATES, answered, refreshing, session_expires
from tests.support.sip_bench import ANSWER, FAR, INVITATION, Bench, reply, request

OPTIONS = OutgoingRequest("OPTIONS", "sip:192.0.2.9", FAR, "sip:us@192.0.2.1", "sip:192.0.2.9")
CHALLENGE = ('WWW-Authenticate: Digest realm="r", nonce="n"',)


def failure(bench: Bench) -> Failed:
    (failed,) = [event for event in bench.events() if isinstance(event, Failed)]
    return failed


@pytest.mark.parametrize("pause", [32.0, 40.0, 10_000.0])
def test_an_invite_whose_timer_b_has_passed_is_not_sent_again(pause: float) -> None:
    bench = Bench()
    bench.invite()
    bench.sleep(pause)
    assert bench.names() == []
    assert failure(bench).why == "timeout"
    bench.run_out()
    assert bench.names() == []


def test_nor_is_one_that_was_being_repeated_before_the_pause() -> None:
    bench = Bench()
    bench.invite()
    bench.advance(5)
    assert bench.names() == ["INVITE"] * 3
    bench.sleep(27)
    assert bench.names() == []
    assert failure(bench).why == "timeout"


@pytest.mark.parametrize("pause", [1.6, 10.0, 31.9])
def test_the_repeats_that_a_pause_has_missed_are_sent_once(pause: float) -> None:
    bench = Bench()
    bench.invite()
    bench.sleep(pause)
    assert bench.names() == ["INVITE"]


@pytest.mark.parametrize("code", [None, 100])
def test_a_request_whose_timer_f_has_passed_is_not_sent_again(code: int | None) -> None:
    bench = Bench()
    bench.agent.request(OPTIONS, bench.now)
    options = bench.one("OPTIONS").request
    if code is not None:
        bench.receive(reply(options, code))
    bench.sleep(40)
    assert bench.names() == []
    (done,) = bench.events()
    assert isinstance(done, RequestDone)
    assert done.why == "timeout"


def test_a_cancel_that_waited_too_long_is_not_sent_again() -> None:
    bench = Bench()
    call_id, invite = bench.invite()
    bench.receive(reply(invite, 180))
    bench.agent.cancel(call_id, bench.now)
    bench.one("CANCEL")
    bench.sleep(40)
    assert bench.names() == []
    assert failure(bench).why == "canceled"


def test_nor_a_prack() -> None:
    bench = Bench()
    _, invite = bench.invite()
    bench.receive(reply(invite, 180, headers=("Require: 100rel", "RSeq: 1")))
    bench.one("PRACK")
    bench.sleep(40)
    assert bench.names() == []


def test_nor_a_bye() -> None:
    bench, call_id, _ = answered()
    bench.agent.hang_up(call_id, bench.now)
    bench.one("BYE")
    bench.sleep(40)
    assert bench.names() == []
    assert bench.events() == [Ended(call_id, "us", 16, bye_unanswered=True)]


@pytest.mark.parametrize("allow", [(), (UPDATES,)], ids=["re-INVITE", "UPDATE"])
def test_nor_a_refresh(allow: tuple[str, ...]) -> None:
    bench, _, refresh = refreshing(*allow)
    bench.sleep(40)
    assert refresh.method not in bench.names()


@pytest.mark.parametrize("allow", [(), (UPDATES,)], ids=["re-INVITE", "UPDATE"])
def test_a_session_that_expired_during_the_pause_is_not_refreshed(allow: tuple[str, ...]) -> None:
    bench, _, _ = answered(session_expires("1800;refresher=uac"), *allow)
    bench.sleep(1900)
    assert bench.names() == ["BYE"]


def test_a_refusal_whose_timer_h_has_passed_is_not_sent_again() -> None:
    bench = ringing()
    bench.agent.reject("call-1", 486, bench.now)
    bench.one("486 INVITE")
    bench.sleep(40)
    assert bench.names() == []
    assert bench.agent.idle()


def test_nor_is_a_2xx_that_nobody_acknowledged() -> None:
    bench, _ = accepted()
    bench.sleep(40)
    assert bench.names() == ["BYE"], "which ends the dialog that the 2xx has made (§13.3.1.4)"


def test_the_missed_repeats_of_a_2xx_are_sent_once() -> None:
    bench, _ = accepted()
    bench.sleep(20)
    assert bench.names() == ["200 INVITE"]


# A worker that may have lost its calls sends no INVITE more


def test_no_invite_is_repeated_once_that_is_stopped() -> None:
    bench = Bench()
    _, invite = bench.invite()
    bench.advance(1)
    bench.sent()
    bench.agent.stop_repeating_invites()
    assert [data for data, _ in bench.agent.withdrawn_messages()] == [_bytes_of(bench, invite)]
    bench.advance(32)
    assert bench.names() == []
    assert failure(bench).why == "timeout"


def _bytes_of(bench: Bench, invite: Request) -> bytes:
    """The INVITE as a new agent with the same random numbers sends it."""
    other = Bench()
    other.agent.invite(INVITATION, 0.0)
    data = other.one("INVITE").data
    assert invite.branch.encode() in data
    return data


def test_but_its_answer_is_taken() -> None:
    bench = Bench()
    _, invite = bench.invite()
    bench.agent.stop_repeating_invites()
    bench.receive(reply(invite, 200, ANSWER))
    assert [type(event) for event in bench.events()] == [Answered]
    assert bench.names() == ["ACK"]


@pytest.mark.parametrize("first", [(), (100,)])
def test_and_no_challenge_is_answered_by_another_invite(first: tuple[int, ...]) -> None:
    bench = Bench()
    _, invite = bench.invite(INVITATION._replace(credentials=Credentials("u", "p")))
    for code in first:
        bench.receive(reply(invite, code))
    bench.agent.stop_repeating_invites()
    bench.receive(reply(invite, 401, headers=CHALLENGE))
    assert bench.names() == ["ACK"]
    failed = failure(bench)
    assert (failed.code, failed.why) == (408, "timeout")


def test_nor_the_wish_for_a_longer_session() -> None:
    bench = Bench()
    _, invite = bench.invite()
    bench.agent.stop_repeating_invites()
    bench.receive(reply(invite, 422, headers=("Min-SE: 3600",)))
    assert bench.names() == ["ACK"]
    assert failure(bench).why == "timeout"


def test_what_is_called_off_for_good_is_not_repeated_while_cancel_waits() -> None:
    bench = Bench()
    call_id, invite = bench.invite()
    bench.agent.cancel(call_id, bench.now, repeat=False)
    bench.advance(20)
    assert bench.names() == []
    bench.receive(reply(invite, 180))
    assert bench.names() == ["CANCEL"]


def test_nor_is_what_was_called_off_before() -> None:
    bench = Bench()
    call_id, _ = bench.invite()
    bench.agent.cancel(call_id, bench.now)
    bench.advance(0.5)
    assert bench.names() == ["INVITE"]
    bench.agent.cancel(call_id, bench.now, repeat=False)
    bench.run_out()
    assert bench.names() == []
    assert failure(bench).why == "canceled"


def test_an_incoming_call_is_not_touched() -> None:
    bench = Bench()
    bench.receive(request("INVITE", body=ANSWER))
    bench.agent.stop_repeating_invites()
    bench.agent.ring("call-1", bench.now)
    assert bench.names() == ["100 INVITE", "180 INVITE"]
