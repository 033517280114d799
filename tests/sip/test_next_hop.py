"""Where requests in a dialog go: an outbound proxy, or the source of the far end's messages."""

from __future__ import annotations

import pytest

from bitel.sip import AgentConfig, Credentials, Transport
from bitel.sip.grammar import Address
from bitel.sip.message import Request
from tests.support.sip_bench import ANSWER, FAR, INVITATION, US, Bench, reply, within

PROXY = "<sip:edge.carrier.test;lr>"
BY_PROXY = INVITATION._replace(headers=(("Route", PROXY), ("X-Account", "42")))
CONTACT = ("Contact: <sip:far@198.51.100.7:5062>",)
CONTACT_PLACE = Address("198.51.100.7", 5062)


def answered(
    bench: Bench, *headers: str, source: Address = FAR, **invitation: object
) -> tuple[str, Request]:
    call_id, invite = bench.invite(BY_PROXY._replace(**invitation))  # type: ignore[arg-type]
    bench.receive(reply(invite, 200, ANSWER, headers=(*CONTACT, *headers)), source)
    return call_id, invite


def test_without_a_route_set_a_dialog_goes_through_the_proxy_that_its_invite_went_through() -> None:
    bench = Bench()
    call_id, invite = answered(bench, source=Address("203.0.113.1", 5060))
    assert invite.headers["route"] == [PROXY]
    ack = bench.one("ACK")
    # The far end's own request comes from elsewhere, and changes nothing.
    bench.receive(within(invite, "OPTIONS", 1), Address("203.0.113.1", 5060))
    bench.one("200 OPTIONS")
    bench.agent.hang_up(call_id, bench.now)
    for sent in (ack, bench.one("BYE")):
        assert sent.destination == FAR
        assert sent.request.uri == "sip:far@198.51.100.7:5062"
        assert sent.request.headers["route"] == [PROXY]
        assert "x-account" not in sent.request.headers


def test_a_route_set_of_the_dialog_takes_the_place_of_the_proxy() -> None:
    bench = Bench()
    call_id, _ = answered(bench, "Record-Route: <sip:192.0.2.33:5070;lr>")
    ack = bench.one("ACK")
    bench.agent.hang_up(call_id, bench.now)
    for sent in (ack, bench.one("BYE")):
        assert sent.destination == Address("192.0.2.33", 5070)
        assert sent.request.headers["route"] == ["<sip:192.0.2.33:5070;lr>"]


def test_prack_goes_through_the_proxy_too() -> None:
    bench = Bench()
    _, invite = bench.invite(BY_PROXY)
    reliable = (*CONTACT, "Require: 100rel", "RSeq: 7")
    bench.receive(reply(invite, 183, headers=reliable), FAR)
    prack = bench.one("PRACK")
    assert prack.destination == FAR
    assert prack.request.headers["route"] == [PROXY]


def test_a_proxy_by_tls_is_asked_for_its_name() -> None:
    edge = Address("192.0.2.9", 5061, Transport.TLS, "edge.carrier.test")
    bench = Bench()
    call_id, _ = answered(
        bench, destination=edge, source=Address("192.0.2.9", 33333, Transport.TLS)
    )
    bench.sent()
    bench.agent.hang_up(call_id, bench.now)
    assert bench.one("BYE").destination == edge


def test_credentials_are_for_a_dialog_by_way_of_the_proxy() -> None:
    """Its requests go where the INVITE with the credentials went, wherever the callee is."""
    bench = Bench()
    call_id, invite = bench.invite(BY_PROXY._replace(credentials=Credentials("u", "p")))
    bench.receive(reply(invite, 407, headers=('Proxy-Authenticate: Digest realm="r", nonce="n"',)))
    _, second = bench.sent()
    assert second.request.header("x-account") == "42", "the INVITE after a challenge has it too"
    bench.receive(reply(second.request, 200, ANSWER, headers=CONTACT))
    assert "proxy-authorization" in bench.one("ACK").request.headers
    bench.agent.hang_up(call_id, bench.now)
    assert "proxy-authorization" in bench.one("BYE").request.headers


SOURCE = Address("203.0.113.9", 41000)


@pytest.mark.parametrize("record_route", [(), ("Record-Route: <sip:10.0.0.1;lr>",)])
def test_to_the_source_and_not_where_the_contact_says(record_route: tuple[str, ...]) -> None:
    bench = Bench(AgentConfig(US, send_to_source=True))
    call_id, invite = bench.invite()
    private = ("Contact: <sip:far@10.0.0.7:5062>", *record_route)
    bench.receive(reply(invite, 200, ANSWER, headers=private), SOURCE)
    ack = bench.one("ACK")
    assert ack.destination == SOURCE
    assert ack.request.uri == "sip:far@10.0.0.7:5062"
    assert ack.request.headers.get("route", []) == [
        line.removeprefix("Record-Route: ") for line in record_route
    ]
    # Its later requests come by another port of the NAT.
    other = SOURCE._replace(port=42000)
    bench.receive(within(invite, "OPTIONS", 1), other)
    bench.one("200 OPTIONS")
    bench.agent.hang_up(call_id, bench.now)
    bye = bench.one("BYE")
    assert (bye.destination, bye.request.uri) == (other, "sip:far@10.0.0.7:5062")


def test_prack_and_refreshes_go_to_the_source() -> None:
    bench = Bench(AgentConfig(US, send_to_source=True))
    _, invite = bench.invite()
    private = ("Contact: <sip:far@10.0.0.7:5062>",)
    bench.receive(
        reply(invite, 183, headers=(*private, "Require: 100rel", "RSeq: 7")),
        SOURCE,
    )
    assert bench.one("PRACK").destination == SOURCE
    expires = ("Session-Expires: 90;refresher=uac", "Require: timer", "Allow: UPDATE")
    bench.receive(reply(invite, 200, ANSWER, headers=(*private, *expires)), SOURCE)
    assert [sent.destination for sent in bench.sent()] == [SOURCE]
    bench.advance(60)
    refresh = [sent for sent in bench.sent() if sent.name in {"UPDATE", "INVITE"}]
    assert {sent.destination for sent in refresh} == {SOURCE}


def test_by_default_requests_go_where_the_contact_says() -> None:
    bench = Bench()
    _, invite = bench.invite()
    bench.receive(reply(invite, 200, ANSWER, headers=CONTACT), SOURCE)
    assert bench.one("ACK").destination == CONTACT_PLACE


@pytest.mark.parametrize("transport", [Transport.TCP, Transport.UDP])
def test_over_tcp_the_source_is_where_the_invite_went(transport: Transport) -> None:
    """A connection that the far end has opened may be closed by the time of our BYE.

    The INVITE of the second case, to a UDP address, was too long for UDP.
    """
    bench = Bench(AgentConfig(US, send_to_source=True))
    destination = FAR._replace(transport=transport)
    long = (("X-Account", "4" * 1300),) if transport is Transport.UDP else ()
    call_id, invite = bench.invite(INVITATION._replace(destination=destination, headers=long))
    by_tcp = FAR._replace(transport=Transport.TCP)
    bench.receive(reply(invite, 200, ANSWER, headers=CONTACT), by_tcp)
    assert bench.one("ACK").destination == by_tcp
    bench.receive(within(invite, "OPTIONS", 1), by_tcp._replace(port=41812))
    bench.one("200 OPTIONS")
    bench.agent.hang_up(call_id, bench.now)
    assert bench.one("BYE").destination == by_tcp


def test_without_a_place_in_the_contact_a_connection_of_the_far_end_is_not_relied_on() -> None:
    bench = Bench()
    by_tcp = FAR._replace(transport=Transport.TCP)
    call_id, invite = bench.invite(INVITATION._replace(destination=by_tcp))
    bench.receive(reply(invite, 200, ANSWER, headers=("Contact: <sip:far@pbx.test>",)), by_tcp)
    assert bench.one("ACK").destination == by_tcp
    bench.receive(within(invite, "OPTIONS", 1), by_tcp._replace(port=41812))
    bench.one("200 OPTIONS")
    bench.agent.hang_up(call_id, bench.now)
    assert bench.one("BYE").destination == by_tcp


def test_what_another_phone_begins_late_is_ended_by_way_of_the_proxy_too() -> None:
    bench = Bench()
    _, invite = answered(bench)
    bench.advance(40)  # the INVITE's transaction is over
    bench.sent()
    late = reply(invite, 200, ANSWER, tag="another", headers=CONTACT)
    bench.receive(late, Address("203.0.113.1", 5060))
    ends = bench.sent()
    assert [sent.name for sent in ends] == ["ACK", "BYE"]
    for sent in ends:
        assert sent.destination == FAR
        assert sent.request.headers["route"] == [PROXY]
