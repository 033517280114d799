"""Calling off a call that we place (RFC 3261 §9.1)."""

from __future__ import annotations

from dataclasses import replace

from bitel.sip import Credentials, Failed
from tests.support.sip_bench import ANSWER, FAR, INVITATION, Bench, reply


def canceled(call_id: str, rang: bool = False, reason: str = "Request Terminated") -> Failed:
    return Failed(call_id, 487, None, reason, "canceled", rang)


def test_cancel_waits_for_a_provisional() -> None:
    bench = Bench()
    call_id, invite = bench.invite()
    bench.agent.cancel(call_id, bench.now)
    assert bench.names() == []
    bench.receive(reply(invite, 100))
    cancel = bench.one("CANCEL").request
    assert cancel.header("via") == invite.header("via")
    assert (cancel.uri, cancel.cseq, cancel.to_tag) == (invite.uri, 1, "")
    assert cancel.from_tag == invite.from_tag
    bench.receive(reply(cancel, 200))
    assert bench.events() == []
    bench.receive(reply(invite, 487, phrase="Request Terminated"))
    assert bench.one("ACK").request.branch == invite.branch
    assert bench.events() == [replace(canceled(call_id), progress_for=0.0)]
    bench.run_out()


def test_cancel_takes_the_route_of_its_invite_and_no_digest() -> None:
    bench = Bench()
    route = ("Route", "<sip:192.0.2.50;lr>")
    call_id, invite = bench.invite(
        INVITATION._replace(headers=(route,), credentials=Credentials("u", "p"))
    )
    assert invite.headers["route"] == [route[1]]
    challenge = 'WWW-Authenticate: Digest realm="r", nonce="n"'
    bench.receive(reply(invite, 401, headers=(challenge,)))
    ack, second = bench.sent()
    assert ack.request.headers["route"] == [route[1]]
    bench.receive(reply(second.request, 180))
    bench.agent.cancel(call_id, bench.now)
    cancel = bench.one("CANCEL").request
    assert cancel.headers["route"] == [route[1]]
    assert cancel.branch == second.request.branch
    assert cancel.cseq == 2
    assert "authorization" not in cancel.headers


def test_a_200_that_crosses_cancel_is_acknowledged_and_hung_up() -> None:
    bench = Bench()
    call_id, invite = bench.invite()
    bench.receive(reply(invite, 180))
    bench.agent.cancel(call_id, bench.now)
    bench.receive(reply(invite, 200, ANSWER))
    assert bench.names() == ["CANCEL", "ACK", "BYE"]
    assert bench.events()[1:] == [canceled(call_id, rang=True)]
    bench.run_out()
    assert bench.events() == []


def test_cancel_before_any_provisional_and_then_an_answer() -> None:
    bench = Bench()
    call_id, invite = bench.invite()
    bench.agent.cancel(call_id, bench.now)
    bench.receive(reply(invite, 200, ANSWER))
    assert bench.names() == ["ACK", "BYE"]
    assert bench.events() == [canceled(call_id)]


def test_a_refusal_that_comes_before_cancel_could_leave_is_told_as_it_is() -> None:
    bench = Bench()
    call_id, invite = bench.invite()
    bench.agent.cancel(call_id, bench.now)
    bench.receive(reply(invite, 486))
    assert bench.events() == [Failed(call_id, 486, None, "Phrase", "response", False)]


def test_no_final_answer_within_64_t1_of_cancel() -> None:
    bench = Bench()
    call_id, invite = bench.invite()
    bench.receive(reply(invite, 180))
    bench.advance(10)
    bench.events()
    bench.agent.cancel(call_id, bench.now)
    bench.advance(31.9)
    assert bench.events() == []
    bench.advance(0.2)
    assert bench.events() == [canceled(call_id, rang=True)]
    assert bench.agent.counts().dialogs == 0
    assert set(bench.names()) == {"CANCEL"}
    # The phone was picked up at last.
    bench.receive(reply(invite, 200, ANSWER))
    assert bench.names() == ["ACK", "BYE"]
    bench.run_out()
    assert bench.events() == []


def test_cancel_is_repeated_until_answered_and_sent_once() -> None:
    bench = Bench()
    call_id, invite = bench.invite()
    bench.receive(reply(invite, 183))
    bench.agent.cancel(call_id, bench.now)
    bench.agent.cancel(call_id, bench.now)
    bench.agent.hang_up(call_id, bench.now)
    bench.advance(4)
    sent = bench.sent()
    assert [s.at for s in sent] == [0.0, 0.5, 1.5, 3.5]
    assert len({s.data for s in sent}) == 1
    bench.receive(reply(sent[0].request, 200))
    bench.advance(20)
    assert bench.names() == []


def test_cancel_and_then_silence_ends_with_timer_b() -> None:
    bench = Bench()
    call_id, _ = bench.invite()
    bench.agent.cancel(call_id, bench.now)
    bench.advance(32)
    assert set(bench.names()) == {"INVITE"}
    assert bench.events() == [canceled(call_id)]
    bench.run_out()


def test_cancel_and_then_a_transport_error() -> None:
    bench = Bench()
    call_id, _ = bench.invite()
    bench.agent.cancel(call_id, bench.now)
    bench.agent.transport_failed(FAR, bench.now)
    assert bench.events() == [canceled(call_id)]


def test_a_challenge_after_cancel_is_not_answered() -> None:
    bench = Bench()
    call_id, invite = bench.invite(INVITATION._replace(credentials=Credentials("u", "p")))
    bench.agent.cancel(call_id, bench.now)
    bench.receive(reply(invite, 401, headers=('WWW-Authenticate: Digest realm="r", nonce="n"',)))
    assert bench.names() == ["ACK"]
    (event,) = bench.events()
    assert isinstance(event, Failed)
    assert event.why == "canceled"


def test_after_a_challenge_cancel_waits_for_a_provisional_again() -> None:
    bench = Bench()
    call_id, invite = bench.invite(INVITATION._replace(credentials=Credentials("u", "p")))
    bench.receive(reply(invite, 100))
    bench.receive(reply(invite, 401, headers=('WWW-Authenticate: Digest realm="r", nonce="n"',)))
    second = bench.sent()[-1].request
    bench.agent.cancel(call_id, bench.now)
    assert bench.names() == []
    bench.receive(reply(second, 100))
    assert bench.one("CANCEL").request.branch == second.branch


def test_cancel_after_the_end_does_nothing() -> None:
    bench = Bench()
    call_id, invite = bench.invite()
    bench.receive(reply(invite, 486))
    bench.sent()
    bench.events()
    bench.agent.cancel(call_id, bench.now)
    bench.agent.hang_up(call_id, bench.now)
    bench.agent.cancel("no such call", bench.now)
    assert bench.names() == []
    assert bench.events() == []
