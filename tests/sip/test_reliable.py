"""Reliable provisional responses and their PRACKs (RFC 3262)."""

from __future__ import annotations

from functools import partial

import pytest

from bitel.sip import Answered, Credentials, Failed, Provisional
from bitel.sip.grammar import Address
from tests.support import sip_bench as far_end
from tests.support.sip_bench import ANSWER, INVITATION, Bench, reply, request, within

CONTACT = "Contact: <sip:far@192.0.2.9:5070>"


reliable = partial(far_end.reliable, contact=CONTACT)


def test_the_invite_says_that_we_can() -> None:
    _, invite = Bench().invite()
    assert "100rel" in invite.values("supported")
    assert "PRACK" in invite.values("allow")


def test_a_reliable_response_gets_its_prack() -> None:
    bench = Bench()
    _, invite = bench.invite()
    bench.receive(reliable(invite, 180, 7013))
    sent = bench.one("PRACK")
    prack = sent.request
    assert sent.destination == Address("192.0.2.9", 5070)
    assert prack.uri == "sip:far@192.0.2.9:5070"
    assert prack.header("rack") == "7013 1 INVITE"
    assert (prack.call_id, prack.from_tag, prack.to_tag) == (
        invite.call_id,
        invite.from_tag,
        "far",
    )
    assert (prack.cseq, prack.cseq_method) == (2, "PRACK")
    assert [type(event) for event in bench.events()] == [Provisional]
    bench.receive(reply(prack, 200))
    bench.advance(10)
    assert bench.names() == []


def test_prack_repeats_itself_but_not_for_a_repeated_response() -> None:
    bench = Bench()
    _, invite = bench.invite()
    bench.receive(reliable(invite, 183, 1, ANSWER))
    bench.advance(0.4)
    bench.receive(reliable(invite, 183, 1, ANSWER))
    bench.advance(0.2)
    pracks = bench.sent()
    assert [sent.at for sent in pracks] == [0.0, 0.5]
    assert pracks[0].data == pracks[1].data


def test_responses_are_acknowledged_in_order_only() -> None:
    bench = Bench()
    _, invite = bench.invite()
    for rseq in (5, 7, 6, 7, 5):
        bench.receive(reliable(invite, 183, rseq))
    racks = [sent.request.header("rack") for sent in bench.sent()]
    assert racks == ["5 1 INVITE", "6 1 INVITE", "7 1 INVITE"]


@pytest.mark.parametrize(
    "headers",
    [
        ("RSeq: 1",),
        ("Require: 100rel",),
        ("Require: 100rel", "RSeq: 0"),
        ("Require: 100rel", "RSeq: 4294967296"),
        ("Require: 100rel", "RSeq: -1"),
        ("Require: 100rel", "RSeq: x"),
        ("Supported: 100rel", "RSeq: 1"),
    ],
)
def test_what_is_not_reliable_gets_no_prack(headers: tuple[str, ...]) -> None:
    bench = Bench()
    _, invite = bench.invite()
    bench.receive(reply(invite, 180, headers=(CONTACT, *headers)))
    assert bench.names() == []
    assert [type(event) for event in bench.events()] == [Provisional]


def test_a_100_and_a_response_without_a_tag_are_never_reliable() -> None:
    bench = Bench()
    _, invite = bench.invite()
    bench.receive(reliable(invite, 100, 1))
    bench.receive(reliable(invite, 180, 1).replace(";tag=far", ""))
    assert bench.names() == []


def test_the_answer_may_come_in_a_reliable_response_and_the_200_without_one() -> None:
    bench = Bench()
    call_id, invite = bench.invite()
    bench.receive(reliable(invite, 183, 1, ANSWER))
    bench.receive(reply(invite, 200))
    prack, ack = bench.sent()
    assert (prack.name, ack.name, ack.request.cseq) == ("PRACK", "ACK", 1)
    _, answered = bench.events()
    assert isinstance(answered, Answered)
    assert answered.answer.port == 40000
    bench.agent.hang_up(call_id, bench.now)
    bye = bench.one("BYE").request
    assert bye.cseq == prack.request.cseq + 1
    bench.receive(reply(bye, 200))
    bench.run_out()


def test_an_answer_of_one_fork_is_not_that_of_another() -> None:
    bench = Bench()
    _, invite = bench.invite()
    bench.receive(reliable(invite, 183, 1, ANSWER, tag="one"))
    bench.receive(reply(invite, 200, tag="two"))
    assert bench.names() == ["PRACK", "ACK", "BYE"]
    assert isinstance(bench.events()[-1], Failed)


def test_each_fork_counts_for_itself_and_only_so_many_do() -> None:
    bench = Bench()
    _, invite = bench.invite()
    for number in range(20):
        for rseq in (10, 11):
            bench.receive(reliable(invite, 180, rseq, tag=f"fork-{number}"))
    assert bench.names() == ["PRACK"] * 16


def test_a_phone_that_never_stops_is_acknowledged_so_often_only() -> None:
    bench = Bench()
    _, invite = bench.invite()
    for rseq in range(1, 500):
        bench.receive(reliable(invite, 183, rseq))
    assert len(bench.sent()) == 32


def test_a_prack_answers_a_challenge() -> None:
    bench = Bench()
    bench.agent.invite(INVITATION._replace(credentials=Credentials("u", "p")), 0.0)
    invite = bench.one("INVITE").request
    bench.receive(reliable(invite, 180, 9))
    first = bench.one("PRACK").request
    challenge = 'Proxy-Authenticate: Digest realm="r", nonce="n", qop="auth"'
    bench.receive(reply(first, 407, headers=(challenge,)))
    second = bench.one("PRACK").request
    assert (second.header("rack"), second.cseq) == (first.header("rack"), first.cseq + 1)
    assert 'uri="sip:far@192.0.2.9:5070"' in second.header("proxy-authorization")
    bench.receive(reply(second, 407, headers=(challenge,)))
    assert bench.names() == []


@pytest.mark.parametrize("code", [200, 481, 500])
def test_how_a_prack_is_answered_changes_nothing(code: int) -> None:
    bench = Bench()
    _, invite = bench.invite()
    bench.receive(reliable(invite, 180, 1))
    bench.receive(reply(bench.one("PRACK").request, code))
    bench.events()
    bench.receive(reply(invite, 200, ANSWER))
    assert [type(event) for event in bench.events()] == [Answered]


def test_a_prack_that_nobody_answers_does_not_end_the_call() -> None:
    bench = Bench()
    call_id, invite = bench.invite()
    bench.receive(reliable(invite, 180, 1))
    bench.events()
    bench.advance(40)
    assert bench.events() == []
    bench.agent.cancel(call_id, bench.now)
    bench.receive(reply(invite, 487))
    bench.run_out()


def test_a_prack_to_us_matches_nothing() -> None:
    bench = Bench()
    bench.receive(request("INVITE", body=ANSWER))
    bench.sent()
    bench.receive(request("PRACK", to_tag="x", cseq=2, branch="z9hG4bKp"))
    assert bench.names() == ["481 PRACK"]
    _, invite = bench.invite()
    bench.receive(within(invite, "PRACK", 1))
    assert bench.names() == ["481 PRACK"]
    bench.receive(reply(invite, 200, ANSWER))
    bench.sent()
    bench.receive(within(invite, "PRACK", 2))
    assert bench.names() == ["481 PRACK"]
