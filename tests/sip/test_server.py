"""Taking calls, and requests of all kinds that come to us (RFC 3261 §8.2, §13.3, §17.2)."""

from __future__ import annotations

import pytest

from bitel.sip import (
    AgentConfig,
    Canceled,
    Confirmed,
    Ended,
    Incoming,
    SessionDescription,
    make_answer,
)
from bitel.sip.grammar import Address
from bitel.sip.message import Response
from tests.support.sip_bench import ANSWER, FAR, US, Bench, reply, request

OFFER = ANSWER
OURS = make_answer(SessionDescription.parse(OFFER.encode()), ("192.0.2.1", 40002))


def ringing() -> Bench:
    bench = Bench()
    bench.receive(request("INVITE", body=OFFER))
    assert bench.names() == ["100 INVITE"]
    return bench


def accepted() -> tuple[Bench, Response]:
    bench = ringing()
    bench.agent.accept("call-1", OURS, bench.now)
    return bench, bench.one("200 INVITE").response


def confirmed() -> tuple[Bench, str]:
    bench, ok = accepted()
    bench.receive(request("ACK", branch="z9hG4bKack", to_tag=ok.to_tag))
    bench.events()
    return bench, ok.to_tag


def test_an_invite_is_told_with_all_that_matters() -> None:
    bench = Bench()
    bench.receive(
        request(
            "INVITE",
            "sip:%2B98912;ext=1@192.0.2.1",
            OFFER,
            headers=("m: <sip:caller@192.0.2.9>", "X-Name: علی"),
        )
    )
    (event,) = bench.events()
    assert isinstance(event, Incoming)
    assert event.number == "+98912;ext=1"
    assert event.from_user == "caller"
    assert event.source == FAR
    assert event.offer is not None
    assert event.offer.port == 40000
    assert ("x-name", "علی") in event.headers
    assert ("contact", "<sip:caller@192.0.2.9>") in event.headers


def test_the_same_invite_again_gets_the_same_answer_and_no_second_event() -> None:
    bench = ringing()
    bench.receive(request("INVITE", body=OFFER))
    assert bench.names() == ["100 INVITE"]
    bench.agent.ring("call-1", bench.now)
    first = bench.one("180 INVITE")
    assert first.response.to_tag
    bench.receive(request("INVITE", body=OFFER))
    assert bench.one("180 INVITE").data == first.data
    assert len(bench.events()) == 1


def test_accept_is_repeated_until_the_ack() -> None:
    bench, ok = accepted()
    assert SessionDescription.parse(ok.body) == OURS
    assert ok.header("contact") == "<sip:192.0.2.1:5060>"
    bench.advance(8)
    assert [sent.at for sent in bench.sent()] == [0.5, 1.5, 3.5, 7.5]
    assert bench.events()[1:] == []
    bench.receive(request("ACK", branch="z9hG4bKack", to_tag=ok.to_tag))
    bench.receive(request("ACK", branch="z9hG4bKack", to_tag=ok.to_tag))
    assert bench.events() == [Confirmed("call-1")]
    bench.advance(60)
    assert bench.names() == []
    assert bench.agent.counts().server_transactions == 0
    assert bench.agent.counts().dialogs == 1


def test_accept_that_nobody_acknowledges_ends_with_bye() -> None:
    bench, _ = accepted()
    bench.events()
    bench.advance(32.1)
    sent = bench.sent()
    assert [s.at for s in sent[:-1]] == [0.5, 1.5, 3.5, *(7.5 + 4 * n for n in range(7))]
    assert (sent[-1].name, sent[-1].at) == ("BYE", 32.0)
    bench.receive(reply(sent[-1].request, 200))
    assert bench.events() == [Ended("call-1", "us", None)]
    bench.run_out()


def test_an_ack_with_the_branch_of_its_invite_confirms_too() -> None:
    bench, ok = accepted()
    bench.events()
    bench.receive(request("ACK", to_tag=ok.to_tag))
    assert bench.events() == [Confirmed("call-1")]


@pytest.mark.parametrize(
    "wrong", [{"to_tag": "other"}, {"from_tag": "other"}, {"cseq": 2}, {"call_id": "other"}]
)
def test_an_ack_for_something_else_confirms_nothing(wrong: dict[str, object]) -> None:
    bench, ok = accepted()
    bench.events()
    right: dict[str, object] = {"to_tag": ok.to_tag, "branch": "z9hG4bKack"}
    bench.receive(request("ACK", **(right | wrong)))  # type: ignore[arg-type]
    assert bench.events() == []


def test_our_bye_waits_for_the_ack() -> None:
    bench, ok = accepted()
    bench.agent.hang_up("call-1", bench.now)
    assert bench.names() == []
    bench.receive(request("ACK", branch="z9hG4bKack", to_tag=ok.to_tag))
    bye = bench.one("BYE")
    assert bye.request.uri == "sip:caller@192.0.2.9:5060"
    assert bye.request.to_tag == "caller"
    assert bye.request.from_tag == ok.to_tag
    assert bye.destination == FAR
    bench.receive(reply(bye.request, 200))
    assert bench.events()[1:] == [Confirmed("call-1"), Ended("call-1", "us", 16)]
    bench.run_out()


def test_a_far_bye_before_the_ack() -> None:
    bench, ok = accepted()
    bench.receive(request("BYE", branch="z9hG4bKbye", cseq=2, to_tag=ok.to_tag))
    assert bench.names() == ["200 BYE"]
    assert bench.events()[1:] == [Ended("call-1", "far", None)]
    bench.run_out()
    assert bench.names() == []


def test_reject_is_repeated_until_the_ack() -> None:
    bench = ringing()
    bench.agent.reject("call-1", 486, bench.now, [("Reason", "Q.850;cause=17")])
    first = bench.one("486 INVITE")
    assert first.response.header("reason") == "Q.850;cause=17"
    bench.advance(12)
    repeated = bench.sent()
    assert [s.at for s in repeated] == [0.5, 1.5, 3.5, 7.5, 11.5]
    assert {s.data for s in repeated} == {first.data}
    bench.receive(request("INVITE", body=OFFER))
    assert bench.one("486 INVITE").data == first.data
    bench.receive(request("ACK", to_tag=first.response.to_tag))
    # Only timer I, for ACKs that come again.
    assert bench.agent.counts().timers == 1
    bench.advance(4.9)
    assert bench.agent.counts().server_transactions == 1
    bench.advance(0.2)
    assert bench.agent.idle()
    assert bench.names() == []
    assert len(bench.events()) == 1


def test_reject_that_nobody_acknowledges_is_given_up() -> None:
    bench = ringing()
    bench.agent.reject("call-1", 486, bench.now)
    bench.advance(32.1)
    assert bench.agent.idle()


def test_cancel_withdraws_a_call() -> None:
    bench = ringing()
    bench.agent.ring("call-1", bench.now)
    ringing_tag = bench.one("180 INVITE").response.to_tag
    bench.receive(request("CANCEL"))
    sent = bench.sent()
    assert [s.name for s in sent] == ["200 CANCEL", "487 INVITE"]
    assert {s.response.to_tag for s in sent} == {ringing_tag}
    assert bench.events()[1:] == [Canceled("call-1")]
    bench.receive(request("CANCEL"))
    assert bench.names() == ["200 CANCEL"]
    # Too late for any of these.
    bench.agent.accept("call-1", OURS, bench.now)
    bench.agent.ring("call-1", bench.now)
    bench.agent.reject("call-1", 486, bench.now)
    assert bench.names() == []
    bench.receive(request("ACK", to_tag=ringing_tag))
    bench.run_out()
    assert bench.events() == []


def test_cancel_after_the_answer_changes_nothing() -> None:
    bench, _ = accepted()
    bench.receive(request("CANCEL"))
    assert bench.names() == ["200 CANCEL"]
    assert len(bench.events()) == 1


def test_cancel_of_nothing_is_481() -> None:
    bench = Bench()
    bench.receive(request("CANCEL"))
    assert bench.names() == ["481 CANCEL"]


def test_a_caller_may_end_its_early_dialog_with_bye() -> None:
    bench = ringing()
    bench.agent.ring("call-1", bench.now)
    tag = bench.one("180 INVITE").response.to_tag
    bench.receive(request("BYE", branch="z9hG4bKbye", cseq=2, to_tag=tag))
    assert bench.names() == ["200 BYE", "487 INVITE"]
    assert bench.events()[1:] == [Canceled("call-1")]


def test_a_call_that_nobody_decides_on_is_given_up() -> None:
    bench = ringing()
    bench.advance(300)
    assert "480 INVITE" in bench.names()
    assert bench.events()[1:] == [Canceled("call-1")]
    bench.run_out()


def test_the_same_call_by_another_path_is_482() -> None:
    bench = ringing()
    bench.receive(request("INVITE", body=OFFER, branch="z9hG4bKother"))
    assert bench.names() == ["482 INVITE"]
    assert len(bench.events()) == 1


def test_an_invite_without_an_offer_is_told_without_one() -> None:
    bench = Bench()
    bench.receive(request("INVITE"))
    (event,) = bench.events()
    assert isinstance(event, Incoming)
    assert event.offer is None


def test_options_tells_what_we_can_do() -> None:
    bench = Bench()
    bench.receive(request("OPTIONS"))
    ok = bench.one("200 OPTIONS").response
    assert ok.header("allow") == "INVITE, ACK, CANCEL, BYE, OPTIONS, UPDATE, PRACK, INFO"
    assert ok.header("accept") == "application/sdp"
    bench.receive(request("OPTIONS"))
    assert bench.one("200 OPTIONS").response.to_tag == ok.to_tag
    # Timer J
    bench.advance(31.9)
    assert not bench.agent.idle()
    bench.advance(0.2)
    assert bench.agent.idle()


@pytest.mark.parametrize(
    ("method", "code"),
    [
        *(("REGISTER", 405), ("SUBSCRIBE", 405), ("INFO", 481), ("MESSAGE", 405)),
        *(("DANCE", 501), ("invite", 501), ("BYE", 481), ("UPDATE", 481), ("PRACK", 481)),
    ],
)
def test_what_we_do_not_serve(method: str, code: int) -> None:
    bench = Bench()
    bench.receive(request(method))
    answer = bench.one(f"{code} {method}").response
    if code in (405, 501):
        assert "INVITE" in answer.header("allow")


def test_an_unknown_extension_is_420() -> None:
    bench = Bench()
    bench.receive(request("INVITE", body=OFFER, headers=("Require: 100rel, foo",)))
    assert bench.one("420 INVITE").response.header("unsupported") == "foo"
    assert bench.events() == []
    bench.receive(request("CANCEL", branch="z9hG4bKx", headers=("Require: foo",)))
    assert bench.names() == ["481 CANCEL"]


def test_a_body_that_is_not_sdp_is_415() -> None:
    bench = Bench()
    bench.receive(request("INVITE", body=OFFER).replace("application/sdp", "text/plain"))
    assert bench.one("415 INVITE").response.header("accept") == "application/sdp"


def test_sdp_that_cannot_be_read_is_488() -> None:
    bench = Bench()
    bench.receive(request("INVITE", body="v=0\r\nm=audio x RTP/AVP 0\r\n"))
    assert bench.names() == ["488 INVITE"]
    assert bench.events() == []


def test_another_scheme_is_416() -> None:
    bench = Bench()
    bench.receive(request("INVITE", "http://192.0.2.1/x", OFFER))
    assert bench.names() == ["416 INVITE"]


@pytest.mark.parametrize("header", ["To", "From", "Call-ID", "CSeq", "Via"])
def test_a_request_without_a_mandatory_header_starts_nothing(header: str) -> None:
    bench = Bench()
    lines = request("INVITE", body=OFFER).split("\r\n")
    bench.receive("\r\n".join(line for line in lines if not line.startswith(f"{header}:")))
    assert bench.names() == []
    assert bench.agent.counts().malformed == 1
    assert bench.agent.idle()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("CSeq: 1 INVITE", "CSeq: 1 BYE"),
        ("CSeq: 1 INVITE", "CSeq: 99999999999 INVITE"),
        ("CSeq: 1 INVITE", "CSeq: one INVITE"),
        ("CSeq: 1 INVITE", "CSeq: 1² INVITE"),
        ("Content-Length: ", "Content-Length: ²"),
        ("Content-Length: ", "Content-Length: 1"),
        ("Content-Length: ", "Content-Length: -"),
        ("From: <", 'From: "<'),
        ("Call-ID: call-1", "Call-ID: call-1\r\nCall-ID: call-2"),
    ],
)
def test_a_malformed_request_is_400_and_leaves_nothing(old: str, new: str) -> None:
    bench = Bench()
    data = request("INVITE", body=OFFER).replace(old, new).encode()
    bench.agent.receive_datagram(data, FAR, 0.0)
    ((answer, destination),) = bench.agent.datagrams_to_send()
    assert answer.startswith(b"SIP/2.0 400 Bad Request\r\n")
    assert destination == FAR
    assert bench.agent.idle()
    assert bench.events() == []


def test_an_ack_is_never_answered() -> None:
    bench = Bench()
    bench.receive(request("ACK"))
    bench.receive(request("ACK").replace("CSeq: 1", "CSeq: x"))
    assert bench.names() == []


def test_responses_go_where_rfc_3581_says() -> None:
    bench = Bench()
    nat = Address("198.51.100.7", 31000)
    bench.receive(request("OPTIONS", via="SIP/2.0/UDP 10.0.0.1:5070;rport"), nat)
    sent = bench.one("200 OPTIONS")
    assert sent.destination == nat
    via = sent.response.header("via")
    assert via.endswith(";branch=z9hG4bKone;received=198.51.100.7;rport=31000")
    # Without rport: to the port that Via names, at the address it came from.
    bench.receive(request("OPTIONS", branch="z9hG4bK2", via="SIP/2.0/UDP 10.0.0.1:5070"), nat)
    sent = bench.one("200 OPTIONS")
    assert sent.destination == Address(nat.host, 5070)
    assert sent.response.header("via").endswith(";received=198.51.100.7")
    bench.receive(request("OPTIONS", branch="z9hG4bK3", via="SIP/2.0/UDP 198.51.100.7"), nat)
    sent = bench.one("200 OPTIONS")
    assert sent.destination == Address(nat.host, 5060)
    assert "received" not in sent.response.header("via")


def test_all_vias_and_record_routes_are_given_back_in_order() -> None:
    bench = Bench()
    text = request("INVITE", body=OFFER).replace(
        "Max-Forwards: 70",
        "Via: SIP/2.0/UDP b, SIP/2.0/UDP c\r\nv: SIP/2.0/UDP d\r\n"
        "Record-Route: <sip:p2;lr>, <sip:p1;lr>\r\nRecord-Route: <sip:p0;lr>",
    )
    bench.receive(text)
    bench.sent()
    bench.agent.ring("call-1", bench.now)
    response = bench.one("180 INVITE").response
    assert response.values("via")[1:] == ["SIP/2.0/UDP b", "SIP/2.0/UDP c", "SIP/2.0/UDP d"]
    assert response.values("record-route") == ["<sip:p2;lr>", "<sip:p1;lr>", "<sip:p0;lr>"]


def test_a_branch_without_the_magic_cookie() -> None:
    bench = Bench()
    bench.receive(request("INVITE", body=OFFER, branch="1"))
    bench.receive(request("INVITE", body=OFFER, branch="1"))
    assert bench.names() == ["100 INVITE", "100 INVITE"]
    bench.receive(request("INVITE", body=OFFER, branch="1", call_id="call-2"))
    assert len(bench.events()) == 2
    bench.agent.reject("call-1", 486, bench.now)
    tag = bench.sent()[-1].response.to_tag
    bench.receive(request("ACK", branch="1", to_tag=tag))
    bench.advance(10)
    assert bench.names() == []


def test_server_transactions_are_limited() -> None:
    bench = Bench(AgentConfig(US, max_server_transactions=5))
    for number in range(8):
        bench.receive(request("OPTIONS", branch=f"z9hG4bK{number}"))
    assert bench.names() == ["200 OPTIONS"] * 5 + ["503 OPTIONS"] * 3
    assert bench.agent.counts().server_transactions == 5
    bench.run_out()


def test_incoming_calls_that_wait_are_limited() -> None:
    bench = Bench(AgentConfig(US, max_early_calls=2))
    for number in range(4):
        bench.receive(
            request("INVITE", body=OFFER, branch=f"z9hG4bK{number}", call_id=f"call-{number}")
        )
    assert bench.names() == ["100 INVITE"] * 2 + ["503 INVITE"] * 2
    bench.agent.reject("call-0", 486, bench.now)
    bench.sent()
    bench.receive(request("INVITE", body=OFFER, branch="z9hG4bK9", call_id="call-9"))
    assert bench.names() == ["100 INVITE"]


def test_datagrams_that_wait_are_limited() -> None:
    bench = Bench(AgentConfig(US, max_queued_datagrams=2))
    for number in range(5):
        bench.agent.receive_datagram(
            request("OPTIONS", branch=f"z9hG4bK{number}").encode(), FAR, 0.0
        )
    assert len(bench.agent.datagrams_to_send()) == 2
    assert bench.agent.counts().dropped == 3


def test_misuse_is_named() -> None:
    bench = ringing()
    with pytest.raises(ValueError, match="provisional"):
        bench.agent.ring("call-1", 0.0, 200)
    with pytest.raises(ValueError, match="refuse"):
        bench.agent.reject("call-1", 200, 0.0)
    with pytest.raises(ValueError, match="line break"):
        bench.agent.reject("call-1", 486, 0.0, [("X", "a\r\nb")])
    assert bench.names() == []


def test_keep_alives_are_no_messages() -> None:
    bench = Bench()
    for data in (b"\r\n\r\n", b"\r\n", b"", b"\0"):
        bench.receive(data)
    assert bench.agent.counts().malformed == 0
    assert bench.names() == []


def test_within_the_dialog_options_bye_and_the_rest() -> None:
    bench, tag = confirmed()
    bench.receive(request("OPTIONS", branch="z9hG4bKo", cseq=2, to_tag=tag))
    assert bench.names() == ["200 OPTIONS"]
    bench.receive(request("INFO", branch="z9hG4bKi", cseq=3, to_tag=tag))
    assert bench.names() == ["200 INFO"]
    bench.receive(request("BYE", branch="z9hG4bKl", cseq=1, to_tag=tag))
    assert bench.names() == ["500 BYE"]
    bench.receive(request("BYE", branch="z9hG4bKm", cseq=4, to_tag="wrong"))
    assert bench.names() == ["481 BYE"]
    bench.receive(request("BYE", branch="z9hG4bKn", cseq=4, to_tag=tag))
    assert bench.names() == ["200 BYE"]
    assert bench.events() == [Ended("call-1", "far", None)]
