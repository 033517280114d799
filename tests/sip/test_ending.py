"""The end of calls, and the ACK of their 2xx, with faulty messages too (RFC 3261 §15, §13.2)."""

from __future__ import annotations

import pytest

from bitel.sip import AgentConfig, Answered, Ended, Failed
from bitel.sip.grammar import Address, Transport
from tests.support.sip_bench import (
    ANSWER,
    FAR,
    INVITATION,
    US,
    Bench,
    answered,
    reply,
    request,
    with_content_type,
    within,
)

TCP = Address(FAR.host, FAR.port, Transport.TCP)
ISUP = "\x01\x00\x12\x02\x00\x02\x0a"


@pytest.mark.parametrize(
    ("content_type", "headers"),
    [
        ("application/isup;version=itu-t92+", ()),
        ("application/isup", ("Content-Disposition: signal;handling=required",)),
        ("application/vq-rtcpxr", ()),
        ("multipart/mixed;boundary=x", ()),
        ("application/sdp", ("Content-Encoding: gzip",)),
        ("text/plain", ("Require: foo",)),
        ("text/plain", ("Proxy-Require: foo", "Accept: text/plain")),
    ],
)
def test_a_bye_ends_the_call_whatever_it_carries_or_requires(
    content_type: str, headers: tuple[str, ...]
) -> None:
    bench, _, invite = answered()
    bench.sent()
    bench.receive(with_content_type(within(invite, "BYE", 1, ISUP), content_type, *headers))
    assert bench.names() == ["200 BYE"]
    assert bench.events() == [Ended(invite.call_id, "far", None)]


@pytest.mark.parametrize("uri", ["im:far@192.0.2.1", "sip:192.0.2.1?a=b", "<sip:192.0.2.1>"])
def test_a_bye_ends_the_call_whatever_its_request_uri(uri: str) -> None:
    bench, _, invite = answered()
    bench.sent()
    bye = within(invite, "BYE", 1)
    bench.receive(bye.replace("sip:192.0.2.1:5060", uri, 1))
    assert bench.names() == ["200 BYE"]


@pytest.mark.parametrize("length", ["l: 99999", "Content-Length: x", "l: 0\r\nl: 3"])
def test_a_bye_ends_the_call_where_its_length_is_wrong(length: str) -> None:
    bench, _, invite = answered()
    bench.sent()
    bench.receive(within(invite, "BYE", 1).replace("Content-Length: 0", length))
    assert bench.names() == ["200 BYE"]


def test_a_cancel_is_taken_with_any_body() -> None:
    bench = Bench()
    bench.receive(request("INVITE", body=ANSWER))
    bench.sent()
    bench.receive(
        with_content_type(
            request("CANCEL", body=ISUP, headers=("Require: foo",)), "application/isup"
        )
    )
    assert bench.names() == ["200 CANCEL", "487 INVITE"]


def test_a_flood_of_requests_keeps_no_bye_or_cancel_out() -> None:
    bench, _, invite = answered(bench=Bench(AgentConfig(US, max_server_transactions=5)))
    bench.sent()
    bench.receive(request("INVITE", body=ANSWER, branch="z9hG4bKin"))
    for number in range(9):
        bench.receive(request("OPTIONS", branch=f"z9hG4bK{number}"))
    assert bench.names()[-1] == "503 OPTIONS"
    bench.receive(within(invite, "BYE", 1))
    assert bench.names() == ["200 BYE"]
    bench.receive(request("CANCEL", branch="z9hG4bKin"))
    assert bench.names() == ["200 CANCEL", "487 INVITE"]
    bench.receive(within(invite, "BYE", 2))
    assert bench.names() == ["503 BYE"]


def test_other_requests_may_carry_what_is_optional() -> None:
    bench, _, invite = answered()
    bench.sent()
    optional = "Content-Disposition: render;handling=optional"
    bench.receive(with_content_type(within(invite, "OPTIONS", 1, "x"), "text/plain", optional))
    assert bench.names() == ["200 OPTIONS"]
    bench.receive(with_content_type(within(invite, "OPTIONS", 2, "x"), "text/plain"))
    assert bench.names() == ["415 OPTIONS"]


# Messages of a stream without a length


def without_length(message: str) -> bytes:
    head, _, body = message.partition("\r\n\r\n")
    kept = [line for line in head.split("\r\n") if not line.startswith("Content-Length")]
    return ("\r\n".join(kept) + "\r\n\r\n" + body).encode()


def test_an_answer_without_a_length_is_taken_with_its_body() -> None:
    bench = Bench()
    bench.agent.invite(INVITATION._replace(destination=TCP), 0.0)
    invite = bench.one("INVITE").request
    bench.agent.receive_unframed(without_length(reply(invite, 200, ANSWER)), TCP, 0.0)
    assert bench.names() == ["ACK"]
    assert [type(event) for event in bench.events()] == [Answered]


def test_an_answer_of_which_only_the_head_came_is_acknowledged_and_ended() -> None:
    bench = Bench()
    bench.agent.invite(INVITATION._replace(destination=TCP), 0.0)
    invite = bench.one("INVITE").request
    head = without_length(reply(invite, 200))
    bench.agent.receive_unframed(head, TCP, 0.0)
    assert bench.names() == ["ACK", "BYE"]
    assert [type(event) for event in bench.events()] == [Failed]


@pytest.mark.parametrize("method", ["OPTIONS", "INVITE", "UPDATE", "INFO"])
def test_any_other_request_without_a_length_is_refused(method: str) -> None:
    bench, _, invite = answered()
    bench.sent()
    bench.agent.receive_unframed(without_length(within(invite, method, 1)), TCP, 0.0)
    assert bench.names() == [f"400 {method}"]
    bench.agent.receive_unframed(without_length(within(invite, "BYE", 2)), TCP, 0.0)
    assert bench.names() == ["200 BYE"]
    assert bench.events() == [Ended(invite.call_id, "far", None)]


# A 2xx is always acknowledged


def test_a_bye_before_our_ack_meets_the_ack_first() -> None:
    bench, _, invite = answered(withhold_ack=True)
    bench.sent()
    bench.receive(within(invite, "BYE", 1))
    assert bench.names() == ["ACK", "200 BYE"]
    assert bench.events() == [Ended(invite.call_id, "far", None)]
    bench.receive(reply(invite, 200, ANSWER))
    assert bench.names() == ["ACK"]


def test_a_bye_that_overtakes_its_2xx_ends_the_session_with_it() -> None:
    bench = Bench()
    call_id, invite = bench.invite()
    bench.receive(within(invite, "BYE", 1))
    bench.sent()
    bench.receive(reply(invite, 200, ANSWER))
    assert bench.names() == ["ACK"]
    first, last = bench.events()
    assert isinstance(first, Answered)
    assert last == Ended(call_id, "far", None)
    bench.run_out()


def test_a_2xx_that_comes_after_timer_m_is_acknowledged_while_the_session_runs() -> None:
    bench, _, invite = answered()
    bench.sent()
    bench.advance(100)
    bench.sent()
    ok = reply(invite, 200, ANSWER)
    bench.receive(ok)
    assert bench.one("ACK").request.to_tag == "far"
    bench.receive(ok.replace(";tag=far", ";tag=late"))
    ack, bye = bench.sent()
    assert (ack.name, bye.name) == ("ACK", "BYE")
    assert ack.request.to_tag == bye.request.to_tag == "late"
    assert bench.events() == [], "the session goes on"


# What Ended says


def test_a_bye_without_any_response_is_told() -> None:
    bench, _, invite = answered()
    bench.sent()
    bench.agent.hang_up(invite.call_id, bench.now)
    bench.advance(33)
    assert bench.events() == [Ended(invite.call_id, "us", 16, bye_unanswered=True)]


@pytest.mark.parametrize("answer", [reply, None])
def test_a_bye_that_was_answered_or_crossed_is_not(answer: object) -> None:
    bench, _, invite = answered()
    bench.sent()
    bench.agent.hang_up(invite.call_id, bench.now)
    bye = bench.one("BYE").request
    bench.receive(reply(bye, 481) if answer else within(invite, "BYE", 1))
    assert bench.events() == [Ended(invite.call_id, "us", 16 if answer else None)]


@pytest.mark.parametrize(("seconds", "lost"), [(7.9, False), (8.0, True)])
def test_a_2xx_repeated_for_16_t1_says_that_the_ack_was_lost(seconds: float, lost: bool) -> None:
    bench, _, invite = answered()
    bench.sent()
    bench.advance(seconds)
    bench.receive(reply(invite, 200, ANSWER))
    bench.receive(within(invite, "BYE", 1))
    assert bench.events() == [Ended(invite.call_id, "far", None, ack_lost=lost)]


def test_while_the_ack_is_withheld_none_is_lost() -> None:
    bench, _, invite = answered(withhold_ack=True)
    bench.sent()
    bench.advance(20)
    bench.receive(reply(invite, 200, ANSWER))
    bench.agent.acknowledge(invite.call_id, bench.now)
    bench.advance(7)
    bench.receive(reply(invite, 200, ANSWER))
    bench.receive(within(invite, "BYE", 1))
    assert bench.events() == [Ended(invite.call_id, "far", None)]
