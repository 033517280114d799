"""Settings that carriers require: outbound proxy, From domain, extra headers, TCP fallback."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from bitel.demo.stage import free_port
from bitel.dialer.resolver import Resolver
from bitel.dialer.trunk import Trunk
from bitel.domain.attempts import Outcome
from bitel.domain.calls import CallStatus
from bitel.sip import Credentials, Transport
from bitel.sip.message import Request
from bitel.store.database import Database
from tests.support.carrier import Answer, Carrier, answering, carrier, silent
from tests.support.clocks import FakeClock
from tests.support.dns_server import dns_server
from tests.support.sip_dialer import HOST, Dialled, dialer
from tests.support.switchboard import switchboard
from tests.support.tcp_server import tcp_server
from tests.support.waiting import until

CREDENTIALS = Credentials("acme", "s3cret")
CHALLENGE = Answer(407, [("Proxy-Authenticate", 'Digest realm="r", nonce="n", qop="auth"')])


def challenging(request: Request) -> list[Answer]:
    """Ask for credentials, then answer."""
    if "proxy-authorization" in request:
        return [Answer(100), Answer(200, sdp=True)]
    return [CHALLENGE]


# An outbound proxy


@asynccontextmanager
async def by_proxy(
    folder: Path, *trunks: str, proxy: str, targets: Resolver, **config: Any
) -> AsyncIterator[Dialled]:
    async with dialer(
        folder, *trunks, targets=targets, outbound_proxy=Trunk.parse(proxy), **config
    ) as calls:
        yield calls


@asynccontextmanager
async def two_proxies() -> AsyncIterator[tuple[Carrier, Carrier, Resolver]]:
    """Two addresses of `edge.test`, the better one first; no other name is known."""
    async with carrier() as first, carrier() as second, dns_server() as zone:
        zone.add(
            "_sip._udp.edge.test",
            "SRV",
            f"1 1 {first.port} host.edge.test.",
            f"2 1 {second.port} host.edge.test.",
        )
        zone.add("host.edge.test", "A", HOST)
        yield first, second, Resolver(FakeClock(), resolver=zone.resolver())


async def test_all_requests_go_by_way_of_the_proxy(tmp_path: Path) -> None:
    async with two_proxies() as (edge, other, targets):
        edge.does["INVITE"] = challenging
        async with by_proxy(
            tmp_path,
            "sip:carrier.invalid:5080",
            proxy="sip:edge.test",
            targets=targets,
            credentials=CREDENTIALS,
            register=True,
            ping_interval=0.02,
        ) as calls:
            await until(lambda: calls.dialer.up and len(edge.of("OPTIONS")) > 0)
            assert (await calls.call()).outcome is Outcome.ANSWERED
            (state, _) = calls.dialer.trunks()
            assert (state.trunk, state.usable, state.registered) == (
                "sip:carrier.invalid:5080",
                True,
                True,
            )
            assert state.address is not None
            assert state.address.port == edge.port
            edge.does["INVITE"] = answering(100)
            late = asyncio.create_task(calls.call())
            await until(lambda: edge.of("INVITE")[-1].call_id != edge.of("INVITE")[0].call_id)
            calls.dialer.cancel("attempt2")
            await until(lambda: len(edge.of("CANCEL")) == 1)
            edge.say(edge.of("INVITE")[-1], Answer(487))
            assert (await late).outcome is Outcome.CANCELED
    number = "sip:+989121234567@carrier.invalid:5080"
    for method, uri in (
        ("OPTIONS", "sip:carrier.invalid:5080"),
        ("REGISTER", "sip:carrier.invalid:5080"),
        ("INVITE", number),
        ("CANCEL", number),
        ("BYE", edge.uri),  # the callee's Contact
    ):
        assert {request.uri for request in edge.of(method)} == {uri}
    for request in edge.requests:
        assert request.values("route") == ["<sip:edge.test;lr>"], request.method
    register = edge.of("REGISTER")[0]
    assert register.header("to") == "<sip:acme@carrier.invalid:5080>"
    assert {request.method for request in other.requests} <= {"OPTIONS"}


async def test_another_address_of_the_proxy_where_one_is_in_trouble(tmp_path: Path) -> None:
    async with two_proxies() as (edge, other, targets):
        edge.does["INVITE"] = silent
        async with by_proxy(
            tmp_path, "sip:carrier.invalid", proxy="sip:edge.test", targets=targets
        ) as calls:
            assert (await calls.call()).outcome is Outcome.ANSWERED
            first, second = calls.dialer.trunks()
            assert (first.usable, second.usable) == (False, True)
            assert (await calls.call()).outcome is Outcome.ANSWERED
    assert (len(edge.of("INVITE")), len(other.of("INVITE"))) == (1, 2)
    assert other.of("INVITE")[0].uri == "sip:+989121234567@carrier.invalid"


async def test_the_credentials_are_for_the_proxy_and_the_trunk(tmp_path: Path) -> None:
    """What a dialog's own route set leads to is the proxy's other host, and not a stranger's."""
    async with (
        two_proxies() as (edge, other, targets),
        carrier("127.0.0.2") as trunk,
        carrier("127.0.0.3") as stranger,
    ):
        answers = [CHALLENGE]
        edge.does["INVITE"] = lambda request: (
            answers if "proxy-authorization" in request else [CHALLENGE]
        )
        async with by_proxy(
            tmp_path, trunk.uri, proxy="sip:edge.test", targets=targets, credentials=CREDENTIALS
        ) as calls:
            for far in (other, trunk, stranger):
                route = ("Record-Route", f"<sip:{far.place};lr>")
                answers[:] = [Answer(200, [("Contact", f"<{far.uri}>"), route], sdp=True)]
                assert (await calls.call()).outcome is Outcome.ANSWERED
    shown = [
        {"proxy-authorization" in request for request in far.requests}
        for far in (other, trunk, stranger)
    ]
    assert shown == [{True}, {True}, {False}]


async def test_a_redirection_goes_by_way_of_the_proxy(tmp_path: Path) -> None:
    async with two_proxies() as (edge, other, targets), carrier("127.0.0.2") as trunk:
        there = [f"<sip:+989121234567;npdi@{trunk.place}>"]
        edge.does["INVITE"] = lambda request: (
            [Answer(200, sdp=True)]
            if "npdi" in request.uri
            else [Answer(302, [("Contact", there[0])])]
        )
        async with by_proxy(tmp_path, trunk.uri, proxy="sip:edge.test", targets=targets) as calls:
            assert (await calls.call()).outcome is Outcome.ANSWERED
            there[0] = f"<sip:+989121234567;npdi@{other.place}>"
            assert (await calls.call()).outcome is Outcome.ANSWERED
            there[0] = "<sip:+989121234567;npdi@127.0.0.3:5060>"
            assert (await calls.call()).outcome is Outcome.REFUSED
    assert [request.uri for request in edge.of("INVITE") if "npdi" in request.uri] == [
        f"sip:+989121234567;npdi@{trunk.place}"
    ]
    (followed,) = other.of("INVITE")
    assert followed.values("route") == ["<sip:edge.test;lr>"]
    assert not trunk.requests


async def test_a_proxy_by_tcp(tmp_path: Path) -> None:
    async with (
        carrier(transport=Transport.TCP) as edge,
        dialer(tmp_path, "sip:carrier.invalid", outbound_proxy=Trunk.parse(edge.uri)) as calls,
    ):
        assert (await calls.call()).outcome is Outcome.ANSWERED
    assert {request.method for request in edge.requests} == {"INVITE", "ACK", "BYE"}
    for request in edge.requests:
        assert request.values("route") == [f"<{edge.uri};lr>"]


# Who calls


async def called(folder: Path, number: str = "+989121234567", **config: Any) -> Request:
    """The INVITE of a call."""
    async with carrier() as far, dialer(folder, far.uri, **config) as calls:
        assert (await calls.call(number)).outcome is Outcome.ANSWERED
    (invite,) = far.of("INVITE")
    return invite


def uri_in(value: str) -> str:
    found = re.search("<([^>]*)>", value)
    assert found is not None
    return found[1]


@pytest.mark.parametrize(
    ("identity", "header"),
    [("pai", "p-asserted-identity"), ("ppi", "p-preferred-identity"), ("rpid", "remote-party-id")],
)
async def test_the_domain_of_the_caller(tmp_path: Path, identity: str, header: str) -> None:
    invite = await called(
        tmp_path, caller_id="02191000000", identity=identity, from_domain="pbx.example"
    )
    assert uri_in(invite.header("from")) == "sip:02191000000@pbx.example"
    assert uri_in(invite.header(header)) == "sip:02191000000@pbx.example"
    for name in ("via", "contact"):
        assert HOST in invite.header(name)
        assert "pbx.example" not in invite.header(name)


async def test_the_domain_of_an_anonymous_caller_stays_invalid(tmp_path: Path) -> None:
    invite = await called(
        tmp_path,
        caller_id="02191000000",
        identity="pai",
        privacy=True,
        from_domain="2001:db8::7",
        user_phone=True,
    )
    assert uri_in(invite.header("from")) == "sip:anonymous@anonymous.invalid"
    assert uri_in(invite.header("p-asserted-identity")) == "sip:02191000000@[2001:db8::7]"


async def test_pings_say_the_domain_too(tmp_path: Path) -> None:
    async with (
        carrier() as far,
        dialer(tmp_path, far.uri, ping_interval=0.02, from_domain="pbx.example"),
    ):
        await until(lambda: len(far.of("OPTIONS")) > 0)
    assert uri_in(far.of("OPTIONS")[0].header("from")) == "sip:pbx.example"


async def test_telephone_numbers_are_marked_as_such(tmp_path: Path) -> None:
    invite = await called(tmp_path, caller_id="+982191000000", user_phone=True)
    assert re.fullmatch(r"sip:\+989121234567@127.0.0.1:\d+;user=phone", invite.uri)
    assert uri_in(invite.header("to")) == invite.uri
    assert uri_in(invite.header("from")) == "sip:+982191000000@127.0.0.1;user=phone"


@pytest.mark.parametrize("caller_id", ["", "sales", "user.1"])
async def test_what_is_no_telephone_number_is_not_marked(tmp_path: Path, caller_id: str) -> None:
    invite = await called(tmp_path, caller_id=caller_id, user_phone=True)
    assert "user=phone" not in invite.header("from")
    assert invite.uri.endswith(";user=phone")


async def test_unless_asked_for_nothing_is_marked(tmp_path: Path) -> None:
    invite = await called(tmp_path, caller_id="+982191000000")
    assert "user=phone" not in invite.uri + invite.header("from") + invite.header("to")


# Headers of the carrier's own


async def test_extra_headers_are_in_every_invite_and_nowhere_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with (
        carrier() as far,
        dialer(
            tmp_path,
            far.uri,
            extra_headers=(("X-Account", "top-secret-42"), ("X-Path", "<sip:a>;b")),
            credentials=CREDENTIALS,
            register=True,
            ping_interval=0.02,
        ) as calls,
    ):
        far.does["INVITE"] = challenging
        await until(lambda: calls.dialer.up and len(far.of("OPTIONS")) > 0)
        assert (await calls.call()).outcome is Outcome.ANSWERED
        far.does["INVITE"] = answering(500)
        assert (await calls.call()).outcome is Outcome.TRUNK_TROUBLE
    assert len(far.of("INVITE")) == 3
    for request in far.requests:
        values = [request.header(name) for name in ("x-account", "x-path")]
        wanted = ["top-secret-42", "<sip:a>;b"] if request.method == "INVITE" else ["", ""]
        assert values == wanted, request.method
    assert "top-secret-42" not in "".join(capsys.readouterr())


# Requests in a call, to where the carrier's messages come from


@pytest.mark.parametrize("send_to_source", [True, False])
async def test_a_contact_that_cannot_be_reached(tmp_path: Path, send_to_source: bool) -> None:
    async with carrier() as far, carrier() as named:
        contact = ("Contact", f"<{named.uri}>")
        far.does["INVITE"] = lambda _: [Answer(200, [contact], sdp=True)]
        async with dialer(tmp_path, far.uri, send_to_source=send_to_source) as calls:
            assert (await calls.call()).outcome is Outcome.ANSWERED
    there, elsewhere = (far, named) if send_to_source else (named, far)
    assert [request.method for request in there.requests][-2:] == ["ACK", "BYE"]
    assert [request.uri for request in there.requests][-2:] == [named.uri] * 2
    assert {request.method for request in elsewhere.requests} <= {"INVITE"}


# TCP that takes requests and answers nothing

LONG = (("X-Long", "x" * 500), ("X-Longer", "x" * 500), ("X-Longest", "x" * 500))


@dataclass
class MuteTcp:
    """What came by TCP at the port of a carrier by UDP; nothing is ever answered."""

    received: bytearray = field(default_factory=bytearray)

    @property
    def call_ids(self) -> list[str]:
        return re.findall(r"^Call-ID: (.*)\r$", self.received.decode(), re.MULTILINE)


@asynccontextmanager
async def mute_tcp(beside: Carrier) -> AsyncIterator[MuteTcp]:
    mute = MuteTcp()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            mute.received += data
        writer.close()

    async with tcp_server(take, beside.port):
        yield mute


async def test_calls_over_a_mute_tcp_wait_and_then_go_by_udp(tmp_path: Path) -> None:
    async with (
        carrier(port=free_port()) as far,
        mute_tcp(far) as mute,
        dialer(tmp_path, far.uri, extra_headers=LONG, ring_timeout=20.0) as calls,
    ):
        lost = await asyncio.gather(*(calls.call() for _ in range(4)))
        assert {result.outcome for result in lost} == {Outcome.TRUNK_TROUBLE}
        assert not far.requests, "what TCP has taken is not sent by UDP too"
        assert len(set(mute.call_ids)) == len(mute.call_ids) == 4
        assert calls.dialer.up, "nothing is known against its UDP"
        assert calls.dialer.trunks()[0].usable
        again = await asyncio.gather(*(calls.call() for _ in range(4)))
        assert {result.outcome for result in again} == {Outcome.ANSWERED}
        assert len(mute.call_ids) == 4
    assert len(far.of("INVITE")) == 4
    assert {request.values("via")[0][:11] for request in far.requests} == {"SIP/2.0/UDP"}


async def test_a_call_lost_in_a_mute_tcp_is_made_by_udp_and_spends_no_retry(
    tmp_path: Path, sqlite_database: Database
) -> None:
    """It has no retries, and is called again after the first backoff."""
    async with (
        carrier(port=free_port()) as far,
        mute_tcp(far) as mute,
        switchboard(tmp_path, sqlite_database, far.uri, extra_headers=LONG) as board,
    ):
        call, attempts = await board.call_until_over()
    assert call.status is CallStatus.NORMAL
    assert [attempt.outcome for attempt in attempts] == [Outcome.TRUNK_TROUBLE, Outcome.ANSWERED]
    assert (len(mute.call_ids), len(far.of("INVITE"))) == (1, 1)


async def test_a_trunk_that_is_left_for_the_next_is_called_by_udp_afterwards(
    tmp_path: Path,
) -> None:
    async with (
        carrier(port=free_port()) as far,
        carrier() as other,
        mute_tcp(far) as mute,
        dialer(
            tmp_path, far.uri, other.uri, extra_headers=LONG, t1=0.5, trunk_timeout=0.2
        ) as calls,
    ):
        assert (await calls.call()).outcome is Outcome.ANSWERED
        assert (len(mute.call_ids), len(other.of("INVITE"))) == (1, 1)
        assert (await calls.call()).outcome is Outcome.ANSWERED
    assert (len(mute.call_ids), len(far.of("INVITE")), len(other.of("INVITE"))) == (1, 1, 1)


async def test_a_registration_lost_in_a_mute_tcp_goes_by_udp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitel.dialer.registration.FIRST_PAUSE", 0.05)
    async with (
        carrier(port=free_port()) as far,
        mute_tcp(far) as mute,
        dialer(
            tmp_path, far.uri, register=True, credentials=Credentials("acme" * 100, "s3cret")
        ) as calls,
    ):
        await until(lambda: calls.dialer.up)
        assert (len(mute.call_ids), len(far.of("REGISTER"))) == (1, 1)
        assert calls.dialer.trunks()[0].usable


async def test_where_udp_is_mute_too_the_address_is_down(tmp_path: Path) -> None:
    async with (
        carrier(port=free_port()) as far,
        mute_tcp(far),
        dialer(tmp_path, far.uri, extra_headers=LONG, ring_timeout=20.0) as calls,
    ):
        far.does["INVITE"] = silent
        for is_up in (True, False):
            assert (await calls.call()).outcome is Outcome.TRUNK_TROUBLE
            assert calls.dialer.up is is_up
    assert len(far.of("INVITE")) == 1


async def test_without_the_fallback_long_requests_go_by_udp(tmp_path: Path) -> None:
    async with (
        carrier(port=free_port()) as far,
        mute_tcp(far) as mute,
        dialer(tmp_path, far.uri, extra_headers=LONG, tcp_fallback=False) as calls,
    ):
        assert (await calls.call()).outcome is Outcome.ANSWERED
    assert not mute.received
    assert len(far.of("INVITE")) == 1
