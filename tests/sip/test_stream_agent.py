"""The agent over TCP and TLS: timers, headers, and which way messages take (RFC 3261 §17, §18)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bitel.sip import AgentConfig, Answered, Ended, Failed, Incoming, OutgoingRequest, make_answer
from bitel.sip.events import RequestDone
from bitel.sip.grammar import Address, Transport
from bitel.sip.headers import alias_of, response_route
from bitel.sip.transaction import MAX_UDP, WITHOUT_TCP
from tests.support.sip_bench import ANSWER, FAR, INVITATION, US, Bench, reply, request

TCP = Address("192.0.2.9", 5060, Transport.TCP)
TLS = Address("192.0.2.9", 5061, Transport.TLS, "carrier.test")
STREAMS = pytest.mark.parametrize("far", [TCP, TLS], ids=["TCP", "TLS"])
PING = OutgoingRequest("OPTIONS", "sip:192.0.2.9", TCP, "sip:us@192.0.2.1", "sip:192.0.2.9")
LONG = INVITATION._replace(headers=(("X-Long", "x" * MAX_UDP),))


def to(far: Address) -> Bench:
    """A bench that has sent an INVITE there, and nothing since."""
    bench = Bench()
    bench.agent.invite(INVITATION._replace(destination=far), 0.0)
    return bench


# Timers


@STREAMS
def test_an_invite_is_sent_once_and_timer_b_stands(far: Address) -> None:
    bench = to(far)
    bench.advance(31.9)
    assert bench.names() == ["INVITE"]
    assert bench.events() == []
    bench.advance(0.1)
    (failed,) = bench.events()
    assert isinstance(failed, Failed)
    assert (failed.code, failed.why) == (408, "timeout")


def test_a_request_is_sent_once_and_timer_f_stands() -> None:
    bench = Bench()
    bench.agent.request(PING, 0.0)
    bench.advance(32.0)
    assert bench.names() == ["OPTIONS"]
    (done,) = bench.events()
    assert isinstance(done, RequestDone)
    assert done.why == "timeout"
    assert bench.agent.idle()


def test_an_answered_request_leaves_nothing_behind() -> None:
    bench = Bench()
    bench.agent.request(PING, 0.0)
    bench.receive(reply(bench.one("OPTIONS").request, 200), TCP)
    assert bench.agent.idle(), "timer K is zero"


@STREAMS
def test_a_refused_invite_leaves_nothing_behind(far: Address) -> None:
    bench = to(far)
    bench.receive(reply(bench.one("INVITE").request, 486), far)
    ack = bench.one("ACK")
    assert ack.destination == far
    assert f"SIP/2.0/{far.transport} " in ack.request.header("via")
    assert bench.agent.idle(), "timer D is zero"


@STREAMS
def test_an_accepted_invite_waits_for_forks(far: Address) -> None:
    bench = to(far)
    invite = bench.one("INVITE").request
    bench.receive(reply(invite, 200, ANSWER, headers=()), far)
    bench.one("ACK")
    bench.receive(reply(invite, 200, ANSWER, headers=()), far)
    bench.one("ACK")
    bench.receive(reply(invite, 200, ANSWER, headers=(), tag="fork"), far)
    assert bench.names() == ["ACK", "BYE"]
    assert bench.agent.counts().client_transactions == 2
    bench.advance(31.9)
    assert bench.agent.counts().client_transactions == 2
    bench.advance(0.1)
    assert bench.agent.counts().client_transactions == 0, "timers M and F"


@STREAMS
def test_a_refusal_of_ours_is_sent_once_and_timer_h_stands(far: Address) -> None:
    bench = Bench()
    bench.receive(request("INVITE", body=ANSWER), far)
    bench.agent.reject("call-1", 486, 0.0)
    assert bench.names() == ["100 INVITE", "486 INVITE"]
    bench.advance(31.9)
    assert bench.names() == []
    assert bench.agent.counts().server_transactions == 1
    bench.advance(0.1)
    assert bench.agent.idle()


def test_an_acknowledged_refusal_leaves_nothing_behind() -> None:
    bench = Bench()
    bench.receive(request("INVITE", body=ANSWER), TCP)
    bench.agent.reject("call-1", 486, 0.0)
    bench.receive(request("ACK"), TCP)
    assert bench.agent.idle(), "timer I is zero"


def test_an_answered_request_of_theirs_leaves_nothing_behind() -> None:
    bench = Bench()
    bench.receive(request("OPTIONS"), TCP)
    assert bench.one("200 OPTIONS").destination == TCP
    assert bench.agent.idle(), "timer J is zero"


@STREAMS
def test_our_2xx_is_repeated_end_to_end_all_the_same(far: Address) -> None:
    bench = Bench()
    bench.receive(request("INVITE", body=ANSWER), far)
    (incoming,) = bench.events()
    assert isinstance(incoming, Incoming)
    assert incoming.offer is not None
    bench.agent.accept("call-1", make_answer(incoming.offer, ("192.0.2.1", 4000)), 0.0)
    bench.advance(1.5)
    assert bench.names() == ["100 INVITE", *["200 INVITE"] * 3]


# Headers


def test_via_and_contact_say_how_we_are_reached() -> None:
    for far, via, contact in (
        (FAR, "SIP/2.0/UDP 192.0.2.1:5060;rport;branch=", "<sip:192.0.2.1:5060>"),
        (TCP, "SIP/2.0/TCP 192.0.2.1:5060;rport;branch=", "<sip:192.0.2.1:5060;transport=tcp>"),
        (
            TLS,
            "SIP/2.0/TLS 192.0.2.1:5061;rport;alias;branch=",
            "<sip:192.0.2.1:5061;transport=tls>",
        ),
    ):
        invite = to(far).one("INVITE").request
        assert invite.header("via").startswith(via)
        assert invite.header("contact") == contact


def test_the_port_for_tls_may_be_another() -> None:
    bench = Bench(AgentConfig(US, tls_port=15061))
    bench.agent.invite(INVITATION._replace(destination=TLS), 0.0)
    assert "192.0.2.1:15061;" in bench.one("INVITE").request.header("via")


@STREAMS
def test_a_callee_says_how_it_is_reached(far: Address) -> None:
    bench = Bench()
    bench.receive(request("INVITE", body=ANSWER), far)
    bench.agent.ring("call-1", 0.0)
    _, ringing = bench.sent()
    assert f";transport={far.transport.lower()}>" in ringing.response.header("contact")


# The way back, and onward


def test_responses_take_the_connection_that_the_request_came_by() -> None:
    source = Address("198.51.100.7", 31000, Transport.TCP)
    bench = Bench()
    bench.receive(request("OPTIONS", via="SIP/2.0/TCP 10.0.0.1:5070"), source)
    sent = bench.one("200 OPTIONS")
    assert sent.destination == source
    assert sent.response.header("via").endswith(";received=198.51.100.7")
    # That connection is gone: to the same host, at the port that Via names.
    assert response_route(sent.data, source) == source._replace(port=5070)
    bench.receive(request("OPTIONS", branch="z9hG4bK2", via="SIP/2.0/TLS 10.0.0.1"), source)
    gone = source._replace(transport=Transport.TLS)
    assert response_route(bench.one("200 OPTIONS").data, gone) == gone._replace(port=5061)
    assert response_route(request("OPTIONS").encode(), source) is None
    assert response_route(b"SIP/2.0 200 OK\r\n\r\n", source) is None


@pytest.mark.parametrize(
    ("via", "alias"),
    [
        ("SIP/2.0/TLS 192.0.2.9:5071;rport;alias", Address("192.0.2.9", 5071, Transport.TLS)),
        ("SIP/2.0/TLS 192.0.2.9;alias", Address("192.0.2.9", 5061, Transport.TLS)),
        ("SIP/2.0/TLS 192.0.2.9:5071", None),
        ("SIP/2.0/TLS 192.0.2.8:5071;alias", None),
        ("SIP/2.0/TLS carrier.test;alias", None),
        ("SIP/2.0/TLS 192.0.2.9:99999;alias", None),
    ],
)
def test_who_may_be_reached_by_a_connection_of_its_own(via: str, alias: Address | None) -> None:
    source = Address("192.0.2.9", 40123, Transport.TLS)
    assert alias_of(request("OPTIONS", via=via).encode(), source) == alias
    assert alias_of(b"\xff", source) is None


@pytest.mark.parametrize(
    ("far", "contact", "destination"),
    [
        (TCP, "<sip:far@192.0.2.44:5070>", Address("192.0.2.44", 5070, Transport.TCP)),
        (TCP, "<sip:far@192.0.2.44;transport=UDP>", Address("192.0.2.44", 5060)),
        (FAR, "<sip:far@192.0.2.44;transport=tcp>", Address("192.0.2.44", 5060, Transport.TCP)),
        (FAR, "<sip:far@192.0.2.44;transport=sctp>", FAR),
        (FAR, "<sips:far@192.0.2.44>", Address("192.0.2.44", 5061, Transport.TLS)),
        (TCP, "<sip:far@carrier.test>", TCP),
        (TLS, "<sip:far@carrier.test;transport=tls>", TLS),
        # Another address of the carrier must bear the carrier's name.
        (TLS, "<sip:far@192.0.2.9:5061>", TLS),
        (
            TLS,
            "<sip:far@192.0.2.44;transport=tls>",
            Address("192.0.2.44", 5061, Transport.TLS, "carrier.test"),
        ),
    ],
)
def test_where_an_ack_goes(far: Address, contact: str, destination: Address) -> None:
    bench = to(far)
    answer = reply(bench.one("INVITE").request, 200, ANSWER, headers=(f"Contact: {contact}",))
    bench.receive(answer, far)
    ack = bench.one("ACK")
    assert ack.destination == destination
    assert ack.request.header("via").startswith(f"SIP/2.0/{destination.transport} ")


# Requests that are too long for UDP (§18.1.1)


def test_a_long_request_goes_by_tcp() -> None:
    bench = Bench()
    call_id, invite = bench.invite(LONG)
    assert invite.header("via").startswith("SIP/2.0/TCP 192.0.2.1:5060;")
    assert invite.header("contact") == "<sip:192.0.2.1:5060>"
    bench.receive(reply(invite, 180), TCP)
    bench.agent.cancel(call_id, 0.0)
    cancel = bench.one("CANCEL")
    assert cancel.destination == TCP
    assert cancel.request.branch == invite.branch


def test_1300_bytes_still_go_by_udp() -> None:
    def sent(more: int) -> tuple[int, Address]:
        bench = Bench()
        bench.agent.invite(LONG._replace(headers=(("X-Long", "x" * more),)), 0.0)
        (one,) = bench.sent()
        return len(one.data), one.destination

    size, _ = sent(1)
    assert sent(1 + MAX_UDP - size) == (MAX_UDP, FAR)
    assert sent(2 + MAX_UDP - size) == (MAX_UDP + 1, TCP)


def test_without_tcp_a_long_request_goes_by_udp_after_all_for_ten_minutes() -> None:
    bench = Bench()
    call_id = bench.agent.invite(LONG, 0.0)
    first = bench.one("INVITE")
    assert first.destination == TCP
    bench.agent.transport_failed(TCP, 0.0)
    second = bench.one("INVITE")
    assert second.destination == FAR
    assert second.request.header("via").startswith("SIP/2.0/UDP ")
    assert second.request.branch != first.request.branch
    assert second.request.cseq == first.request.cseq
    bench.advance(0.5)
    assert bench.one("INVITE").data == second.data, "timer A runs again"
    bench.receive(reply(second.request, 180))
    bench.agent.cancel(call_id, bench.now)
    cancel = bench.one("CANCEL")
    assert (cancel.destination, cancel.request.branch) == (FAR, second.request.branch)
    bench.receive(reply(cancel.request, 200))
    bench.receive(reply(second.request, 487))
    assert bench.one("ACK").destination == FAR
    assert [type(event) for event in bench.events()][1:] == [Failed]
    bench.run_out(WITHOUT_TCP - 2)
    for expected in (FAR, TCP):
        bench.agent.invite(LONG, bench.now)
        assert bench.sent()[0].destination == expected
        bench.now += 2


def next_invite(bench: Bench) -> Address:
    """Where a long INVITE goes now."""
    bench.sent()
    bench.agent.invite(LONG, bench.now)
    return bench.one("INVITE").destination


def test_where_tcp_takes_a_long_invite_and_nothing_answers_the_next_one_goes_by_udp() -> None:
    bench = Bench()
    bench.agent.invite(LONG, 0.0)
    bench.one("INVITE")
    bench.advance(31.9)
    assert bench.events() == []
    bench.advance(0.2)
    (failed,) = bench.events()
    assert isinstance(failed, Failed)
    assert (failed.code, failed.why, failed.delivered) == (408, "timeout", False)
    assert failed.udp_untried
    assert bench.names() == [], "what TCP has taken does not go by UDP too"
    assert next_invite(bench) == FAR
    bench.advance(33)
    (failed,) = bench.events()
    assert isinstance(failed, Failed)
    assert not failed.udp_untried
    bench.advance(WITHOUT_TCP)
    assert next_invite(bench) == TCP


def test_a_long_invite_that_is_given_up_is_taken_for_one_that_tcp_has_lost() -> None:
    bench = Bench()
    call_id = bench.agent.invite(LONG, 0.0)
    first = bench.one("INVITE").request
    bench.advance(4)
    assert bench.agent.give_up(call_id, bench.now)
    (failed,) = bench.events()
    assert isinstance(failed, Failed)
    assert failed.udp_untried
    assert next_invite(bench) == FAR
    # A late response by TCP shows that it was merely slow.
    bench.receive(reply(first, 180), TCP)
    assert bench.one("CANCEL").destination == TCP
    assert next_invite(bench) == TCP


def test_a_call_called_off_without_a_response_says_so_at_timer_b() -> None:
    bench = Bench()
    call_id = bench.agent.invite(LONG, 0.0)
    bench.advance(5)
    bench.agent.cancel(call_id, bench.now, repeat=False)
    assert next_invite(bench) == TCP, "five seconds are no proof"
    bench.advance(30)
    assert next_invite(bench) == FAR


def test_another_long_request_without_an_answer_counts_too() -> None:
    bench = Bench()
    long_ping = replace(PING, destination=FAR, headers=(("X-Long", "x" * MAX_UDP),))
    bench.agent.request(long_ping, 0.0)
    assert bench.one("OPTIONS").destination == TCP
    bench.advance(33)
    assert bench.names() == []
    assert next_invite(bench) == FAR


@pytest.mark.parametrize("code", [100, 183, 486])
def test_any_response_by_tcp_shows_that_tcp_works(code: int) -> None:
    bench = Bench()
    call_id, invite = bench.invite(LONG)
    bench.receive(reply(invite, code), TCP)
    bench.agent.cancel(call_id, bench.now)
    bench.advance(100)
    assert next_invite(bench) == TCP


def test_without_the_fallback_a_long_request_goes_by_udp_from_the_start() -> None:
    bench = Bench(AgentConfig(US, tcp_fallback=False))
    assert next_invite(bench) == FAR
    bench.advance(0.5)
    assert bench.one("INVITE").destination == FAR


def test_an_address_that_is_meant_to_be_reached_by_tcp_keeps_it() -> None:
    bench = to(TCP)
    bench.advance(33)
    (failed,) = bench.events()
    assert isinstance(failed, Failed)
    assert not failed.udp_untried
    bench.sent()
    bench.agent.invite(INVITATION._replace(destination=TCP), bench.now)
    assert bench.one("INVITE").destination == TCP


def test_a_long_request_that_goes_nowhere_fails_once() -> None:
    bench = Bench()
    bench.agent.invite(LONG, 0.0)
    bench.agent.transport_failed(TCP, 0.0)
    bench.agent.transport_failed(FAR, 0.0)
    (failed,) = bench.events()
    assert isinstance(failed, Failed)
    assert failed.why == "transport"
    bench.run_out()


# Connections that fail


@STREAMS
def test_a_connection_that_cannot_be_had_fails_the_call_at_once(far: Address) -> None:
    bench = to(far)
    bench.agent.transport_failed(far, 0.0)
    (failed,) = bench.events()
    assert isinstance(failed, Failed)
    assert (failed.code, failed.why) == (503, "transport")


@STREAMS
def test_what_a_lost_connection_may_have_lost_is_sent_once_more(far: Address) -> None:
    bench = to(far)
    bench.agent.transport_failed(far, 0.0, lost=True)
    first, second = bench.sent()
    assert (first.data, first.destination) == (second.data, second.destination)
    assert bench.events() == []
    bench.agent.transport_failed(far, 0.0, lost=True)
    assert bench.names() == []
    (failed,) = bench.events()
    assert isinstance(failed, Failed)
    assert failed.why == "transport"


def test_a_call_that_was_given_up_is_not_sent_once_more() -> None:
    bench = to(TCP)
    (invite,) = bench.sent()
    assert bench.agent.give_up(invite.request.call_id, 0.0)
    bench.agent.transport_failed(TCP, 0.0, lost=True)
    assert bench.names() == []


def test_once_somebody_rings_a_lost_connection_changes_nothing() -> None:
    bench = to(TCP)
    invite = bench.one("INVITE").request
    bench.receive(reply(invite, 180), TCP)
    bench.agent.transport_failed(TCP, 0.0, lost=True)
    assert bench.names() == []
    # The callee opens a connection of its own to say it.
    bench.receive(reply(invite, 200, ANSWER), TCP._replace(port=33333))
    assert isinstance(bench.events()[-1], Answered)


def test_a_bye_whose_connection_is_lost_goes_over_another() -> None:
    bench = to(TCP)
    invite = bench.one("INVITE").request
    bench.receive(reply(invite, 200, ANSWER, headers=()), TCP)
    bench.agent.hang_up(invite.call_id, 0.0)
    _, bye = bench.sent()
    bench.agent.transport_failed(TCP, 0.0, lost=True)
    again = bench.one("BYE")
    assert again.data == bye.data
    bench.receive(reply(again.request, 200), TCP)
    assert bench.events()[-1] == Ended(invite.call_id, "us", 16)


# Messages whose end can't be found


def test_a_request_without_length_is_refused() -> None:
    bench = Bench()
    head = request("OPTIONS").replace("Content-Length: 0\r\n", "")
    bench.agent.receive_unframed(head.encode(), TCP, 0.0)
    assert bench.one("400 OPTIONS").destination == TCP
    for hostile in (b"", b"\xff", b"SIP/2.0 200 OK\r\n\r\n", b"ACK sip:a SIP/2.0\r\n\r\n"):
        bench.agent.receive_unframed(hostile, TCP, 0.0)
    assert bench.names() == []
    assert bench.agent.idle()
