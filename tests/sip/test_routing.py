"""Routing of messages to transactions and calls; exceptions leave no state (RFC 3261 §8, §18)."""

from __future__ import annotations

from typing import Any

import pytest

from bitel.sip import (
    Answered,
    Credentials,
    Ended,
    Failed,
    Incoming,
    OutgoingRequest,
    Provisional,
    invite_dialog,
    invite_server,
)
from bitel.sip.sdp import SessionDescription
from tests.support.sip_bench import (
    ANSWER,
    FAR,
    INVITATION,
    OFFER,
    Bench,
    reliable,
    reply,
    request,
    within,
)

CONTACT = "Contact: <sip:far@192.0.2.9:5060>"


# Responses (§8.1.3.3, §18.1.2)


@pytest.mark.parametrize(
    "via",
    [
        "Via: SIP/2.0/UDP 192.0.2.77:5060;rport",
        "Via: SIP/2.0/UDP 192.0.2.1:5070;rport",
        "Via: SIP/2.0/UDP bitel.example:5060;rport",
    ],
)
def test_a_response_with_a_foreign_sent_by_is_dropped_and_counted(via: str) -> None:
    bench = Bench()
    _, invite = bench.invite()
    ours = "Via: SIP/2.0/UDP 192.0.2.1:5060;rport"
    bench.receive(reply(invite, 200, ANSWER).replace(ours, via))
    assert bench.names() == []
    assert bench.events() == []
    assert bench.agent.counts().misrouted == 1


@pytest.mark.parametrize("more", ["Via: SIP/2.0/UDP 192.0.2.5;branch=z9hG4bKx\r\nCall-ID", None])
def test_a_response_with_two_vias_is_dropped_and_counted(more: str | None) -> None:
    bench = Bench()
    _, invite = bench.invite()
    ok = reply(invite, 200, ANSWER)
    if more:
        ok = ok.replace("Call-ID", more, 1)
    else:
        ok = ok.replace("\r\nFrom", ", SIP/2.0/UDP 192.0.2.5;branch=z9hG4bKx\r\nFrom", 1)
    bench.receive(ok)
    assert bench.names() == []
    assert bench.agent.counts().misrouted == 1


def test_our_sent_by_may_be_written_otherwise_and_have_moved_since() -> None:
    bench = Bench()
    _, invite = bench.invite()
    bench.agent.move(("198.51.100.1", 5062))
    ok = reply(invite, 200, ANSWER).replace(
        "SIP/2.0/UDP 192.0.2.1:5060", "sip / 2.0 / udp 192.0.2.1"
    )
    bench.receive(ok.replace(";rport", ";received=203.0.113.4;rport=61000", 1))
    assert bench.names() == ["ACK"]
    assert [type(event) for event in bench.events()] == [Answered]


# Merged requests, and calls of the same Call-ID (§8.2.2.2)


def test_only_the_same_invite_by_another_path_is_482() -> None:
    bench = Bench()
    bench.receive(request("INVITE", body=ANSWER))
    bench.receive(request("INVITE", body=ANSWER, branch="z9hG4bKpath"))
    assert bench.names() == ["100 INVITE", "482 INVITE"]
    bench.receive(request("INVITE", body=ANSWER, branch="z9hG4bKtag", from_tag="another"))
    bench.receive(request("INVITE", body=ANSWER, branch="z9hG4bKcseq", cseq=2))
    assert bench.names() == ["100 INVITE", "100 INVITE"]
    handles = [event.call_id for event in bench.events()]
    assert len(set(handles)) == 3


def test_calls_of_one_call_id_are_told_apart_by_their_tags() -> None:
    bench = Bench()
    tags = {}
    for name in ("one", "two"):
        bench.receive(request("INVITE", body=ANSWER, branch=f"z9hG4bK{name}", from_tag=name))
    one, two = (event.call_id for event in bench.events())
    bench.sent()
    for name, handle in (("one", one), ("two", two)):
        bench.agent.accept(handle, OFFER, bench.now)
        tags[name] = bench.one("200 INVITE").response.to_tag
        ack = {"branch": f"z9hG4bKa{name}", "from_tag": name, "to_tag": tags[name]}
        bench.receive(request("ACK", **ack))  # type: ignore[arg-type]
    bench.events()
    for name, handle in (("two", two), ("one", one)):
        bye = {"branch": f"z9hG4bKb{name}", "from_tag": name, "to_tag": tags[name], "cseq": 2}
        bench.receive(request("BYE", **bye))  # type: ignore[arg-type]
        assert bench.names() == ["200 BYE"]
        assert bench.events() == [Ended(handle, "far", None)]
    bench.run_out()


def test_an_invite_of_ours_that_comes_back_is_482_and_one_with_our_call_id_a_call() -> None:
    bench = Bench()
    call_id, invite = bench.invite()
    back = {"branch": "z9hG4bKback", "call_id": call_id, "from_tag": invite.from_tag}
    bench.receive(request("INVITE", body=ANSWER, **back))  # type: ignore[arg-type]
    assert bench.names() == ["482 INVITE"]
    bench.receive(request("INVITE", body=ANSWER, branch="z9hG4bKx", call_id=call_id))
    assert bench.names() == ["100 INVITE"]
    (event,) = bench.events()
    assert isinstance(event, Incoming)
    assert event.call_id != call_id
    bench.receive(reply(invite, 486))
    assert [type(each) for each in bench.events()] == [Failed]
    bench.agent.reject(event.call_id, 486, bench.now)
    assert bench.names() == ["ACK", "486 INVITE"]


def test_100_copies_the_timestamp() -> None:
    bench = Bench()
    bench.receive(request("INVITE", body=ANSWER, headers=(CONTACT, "Timestamp: 54.2")))
    trying = bench.one("100 INVITE").response
    assert trying.header("timestamp") == "54.2"
    bench.agent.ring("call-1", bench.now)
    assert "timestamp" not in bench.one("180 INVITE").response


# Reliable provisional responses and credentials (RFC 3262 §4, RFC 3261 §22)


def test_a_reliable_18x_before_its_turn_is_ignored_but_a_phone_may_ring() -> None:
    bench = Bench()
    call_id, invite = bench.invite()
    bench.receive(reliable(invite, 183, 5))
    bench.sent()
    bench.events()
    bench.receive(reliable(invite, 180, 7, ANSWER))
    assert bench.names() == []
    assert bench.events() == []
    bench.receive(reliable(invite, 180, 6))
    assert bench.names() == ["PRACK"]
    assert bench.events() == [Provisional(call_id, 180, None)]
    bench.receive(reliable(invite, 180, 6))
    assert bench.events() == []


def test_an_ignored_18x_counts_for_the_failure_and_for_cancel() -> None:
    bench = Bench()
    call_id, invite = bench.invite()
    bench.receive(reliable(invite, 183, 5))
    bench.receive(reliable(invite, 181, 9))
    bench.events()
    bench.sent()
    bench.agent.cancel(call_id, bench.now)
    assert bench.names() == ["CANCEL"]
    bench.receive(reply(invite, 487))
    (failed,) = bench.events()
    assert isinstance(failed, Failed)
    assert failed.rang


CHALLENGE = 'WWW-Authenticate: Digest realm="r", nonce="{}", qop="auth", stale=true'


def test_a_prack_does_not_give_the_invite_its_tries_back() -> None:
    bench = Bench()
    bench.agent.invite(INVITATION._replace(credentials=Credentials("u", "p")), 0.0)
    invites = 1
    invite = bench.one("INVITE").request
    for number in range(10):
        bench.receive(reliable(invite, 199, number + 1))
        bench.sent()
        bench.receive(reply(invite, 401, headers=(CHALLENGE.format(number),)))
        again = [sent.request for sent in bench.sent() if sent.name == "INVITE"]
        if not again:
            break
        (invite,) = again
        invites += 1
    assert invites == 3
    assert isinstance(bench.events()[-1], Failed)


def test_each_prack_has_tries_of_its_own() -> None:
    bench = Bench()
    bench.agent.invite(INVITATION._replace(credentials=Credentials("u", "p")), 0.0)
    invite = bench.one("INVITE").request
    for rseq in (1, 2):
        bench.receive(reliable(invite, 183, rseq))
        for _ in range(2):
            prack = bench.one("PRACK").request
            bench.receive(reply(prack, 401, headers=(CHALLENGE.format(rseq),)))
        bench.receive(reply(bench.one("PRACK").request, 401, headers=(CHALLENGE.format(rseq),)))
        assert bench.names() == []


# Faults


def test_an_invitation_that_cannot_be_written_leaves_nothing() -> None:
    bench = Bench()
    for headers in ((("X", "\ud800"),), (("X", "y" * 70_000),), (("X", "a\r\nb"),)):
        with pytest.raises(ValueError):
            bench.agent.invite(INVITATION._replace(headers=headers), 0.0)
    ask = OutgoingRequest("OPTIONS", "sip:a@b", FAR, "sip:a@b", "sip:a@b", (("X", "\ud800"),))
    with pytest.raises(ValueError):
        bench.agent.request(ask, 0.0)
    assert bench.agent.idle()
    assert bench.names() == []


def test_a_fault_while_a_request_is_handled_leaves_no_transaction_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a fault")

    bench = Bench()
    monkeypatch.setattr(invite_server, "printable", fail)
    with pytest.raises(RuntimeError):
        bench.receive(request("INVITE", body=ANSWER))
    assert bench.names() == ["500 INVITE"]
    bench.run_out()
    assert bench.events() == []


def test_a_fault_while_an_answer_is_taken_ends_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> SessionDescription:
        raise RuntimeError("a fault")

    bench = Bench()
    _, invite = bench.invite()
    monkeypatch.setattr("bitel.sip.sdp.check_answer", fail)
    with pytest.raises(RuntimeError):
        bench.receive(reply(invite, 200, ANSWER))
    assert [type(event) for event in bench.events()] == [Failed]
    bench.run_out()


def test_a_fault_while_a_request_of_a_session_is_handled(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a fault")

    bench = Bench()
    call_id, invite = bench.invite()
    bench.receive(reply(invite, 200, ANSWER))
    bench.sent()
    bench.events()
    monkeypatch.setattr(invite_dialog, "unsupported_body", fail)
    with pytest.raises(RuntimeError):
        bench.receive(within(invite, "INFO", 1, "x"))
    assert bench.names() == ["500 INFO"]
    bench.receive(within(invite, "BYE", 2))
    assert bench.names() == ["200 BYE"]
    assert bench.events() == [Ended(call_id, "far", None)]
