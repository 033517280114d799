"""Requests outside any call: OPTIONS pings and REGISTER (RFC 3261 §8.1, §10.2)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sipmessage import Message as Oracle

from bitel.sip import Credentials, OutgoingRequest, RequestDone
from tests.support.sip_bench import FAR, Bench, reply

OPTIONS = OutgoingRequest("OPTIONS", "sip:192.0.2.9", FAR, "sip:bitel@192.0.2.1", "sip:192.0.2.9")
REGISTER = OutgoingRequest(
    "REGISTER",
    "sip:carrier.example",
    FAR,
    "sip:bitel@carrier.example",
    "sip:bitel@carrier.example",
    headers=(("Expires", "3600"),),
    credentials=Credentials("bitel", "secret"),
)
CHALLENGE = 'WWW-Authenticate: Digest realm="r", nonce="{}", qop="auth"'


def test_a_ping_and_its_answer() -> None:
    bench = Bench()
    call_id = bench.agent.request(OPTIONS, 0.0)
    sent = bench.one("OPTIONS")
    assert sent.destination == FAR
    oracle = Oracle.parse(sent.data)
    assert str(oracle.call_id) == call_id
    assert str(oracle.to_address.uri) == "sip:192.0.2.9"
    assert oracle.contact[0].uri.host == "192.0.2.1"
    bench.receive(reply(sent.request, 200, headers=("Server: x\x07y", "Allow: BYE")))
    (done,) = bench.events()
    assert isinstance(done, RequestDone)
    assert (done.call_id, done.code, done.reason, done.why) == (call_id, 200, "Phrase", "response")
    assert ("allow", "BYE") in done.headers
    assert ("server", "x\ufffdy") in done.headers
    # Timer K takes the repetitions of the answer.
    bench.receive(reply(sent.request, 200))
    assert bench.events() == []
    bench.advance(5.1)
    assert bench.agent.idle()


@pytest.mark.parametrize("code", [302, 404, 420, 483, 503, 603])
def test_a_refusal_is_an_answer_too(code: int) -> None:
    bench = Bench()
    bench.agent.request(OPTIONS, 0.0)
    request = bench.one("OPTIONS").request
    bench.receive(reply(request, 100))
    assert bench.events() == []
    bench.receive(reply(request, code, headers=("Retry-After: 30",)))
    (done,) = bench.events()
    assert isinstance(done, RequestDone)
    assert (done.code, done.why) == (code, "response")
    assert ("retry-after", "30") in done.headers
    assert bench.names() == []
    bench.run_out()


def test_timers_e_and_f_repeat_and_give_up() -> None:
    bench = Bench()
    call_id = bench.agent.request(OPTIONS, 0.0)
    bench.advance(31.9)
    assert [sent.at for sent in bench.sent()][:5] == [0.0, 0.5, 1.5, 3.5, 7.5]
    assert bench.events() == []
    bench.advance(0.2)
    (done,) = bench.events()
    assert isinstance(done, RequestDone)
    assert (done.call_id, done.code, done.why) == (call_id, 408, "timeout")
    assert bench.agent.idle()


def test_a_transport_error_ends_it_at_once() -> None:
    bench = Bench()
    call_id = bench.agent.request(OPTIONS, 0.0)
    bench.agent.transport_failed(FAR, 0.1)
    (done,) = bench.events()
    assert isinstance(done, RequestDone)
    assert (done.call_id, done.code, done.why) == (call_id, 503, "transport")
    assert bench.agent.idle()


@pytest.mark.parametrize(
    ("code", "asks", "answers"),
    [
        (401, "WWW-Authenticate", "authorization"),
        (407, "Proxy-Authenticate", "proxy-authorization"),
    ],
)
def test_a_challenge_is_answered_with_the_next_cseq(code: int, asks: str, answers: str) -> None:
    bench = Bench()
    call_id = bench.agent.request(REGISTER, 0.0)
    first = bench.one("REGISTER").request
    assert first.header("expires") == "3600"
    challenge = CHALLENGE.format("n").replace("WWW-Authenticate", asks)
    bench.receive(reply(first, code, headers=(challenge,)))
    second = bench.one("REGISTER").request
    assert second.header(answers).startswith('Digest username="bitel", realm="r"')
    assert 'uri="sip:carrier.example"' in second.header(answers)
    assert (second.call_id, second.from_tag) == (first.call_id, first.from_tag)
    assert (second.cseq, second.branch != first.branch) == (first.cseq + 1, True)
    assert bench.events() == []
    bench.receive(reply(second, 200, headers=("Contact: <sip:bitel@192.0.2.1>;expires=60",)))
    (done,) = bench.events()
    assert isinstance(done, RequestDone)
    assert (done.call_id, done.code, done.cseq) == (call_id, 200, 2)
    bench.run_out()


def test_a_refused_answer_to_a_challenge_ends_it_but_a_stale_one_is_made_anew() -> None:
    bench = Bench()
    bench.agent.request(REGISTER, 0.0)
    first = bench.one("REGISTER").request
    bench.receive(reply(first, 401, headers=(CHALLENGE.format("one"),)))
    second = bench.one("REGISTER").request
    bench.receive(reply(second, 401, headers=(CHALLENGE.format("two") + ", stale=true",)))
    third = bench.one("REGISTER").request
    assert 'nonce="two"' in third.header("authorization")
    bench.receive(reply(third, 401, headers=(CHALLENGE.format("three"),)))
    assert bench.names() == []
    (done,) = bench.events()
    assert isinstance(done, RequestDone)
    assert (done.code, done.why, done.cseq) == (401, "response", 3)
    bench.run_out()


def test_without_credentials_a_challenge_is_a_refusal() -> None:
    bench = Bench()
    bench.agent.request(OPTIONS, 0.0)
    bench.receive(reply(bench.one("OPTIONS").request, 401, headers=(CHALLENGE.format("n"),)))
    (done,) = bench.events()
    assert isinstance(done, RequestDone)
    assert done.code == 401


def test_a_refresh_goes_on_from_what_was_told() -> None:
    bench = Bench()
    bench.agent.request(REGISTER, 0.0)
    first = bench.one("REGISTER").request
    bench.receive(reply(first, 200))
    (done,) = bench.events()
    assert isinstance(done, RequestDone)
    again = replace(REGISTER, call_id=done.call_id, from_tag=done.from_tag, cseq=done.cseq + 1)
    assert bench.agent.request(again, 1.0) == done.call_id
    second = bench.one("REGISTER").request
    assert (second.call_id, second.from_tag, second.cseq) == (first.call_id, first.from_tag, 2)
    bench.receive(reply(second, 200))
    bench.run_out()


def test_a_contact_and_a_route_of_the_callers_stand() -> None:
    bench = Bench()
    headers = (("contact", "*"), ("Route", "<sip:192.0.2.7;lr>"), ("Expires", "0"))
    bench.agent.request(replace(REGISTER, headers=headers), 0.0)
    request = bench.one("REGISTER").request
    assert request.headers["contact"] == ["*"]
    assert request.headers["route"] == ["<sip:192.0.2.7;lr>"]


@pytest.mark.parametrize(
    "wrong",
    [
        replace(OPTIONS, method="INVITE"),
        replace(OPTIONS, method="OPTIONS sip:x"),
        replace(OPTIONS, cseq=0),
        replace(OPTIONS, cseq=2**31),
        replace(OPTIONS, request_uri="sip:a\r\nb"),
        replace(OPTIONS, call_id="a\nb"),
        replace(OPTIONS, headers=(("X", "a\r\nb"),)),
    ],
)
def test_what_cannot_be_asked_is_our_mistake(wrong: OutgoingRequest) -> None:
    bench = Bench()
    with pytest.raises(ValueError, match=r"."):
        bench.agent.request(wrong, 0.0)
    assert bench.names() == []
    assert bench.agent.idle()
