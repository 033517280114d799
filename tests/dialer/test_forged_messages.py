"""Messages of strangers, forged for a call that runs: none of them ends, moves or answers it."""

from __future__ import annotations

import asyncio
import socket
import struct
from dataclasses import replace
from functools import partial
from ipaddress import ip_network
from pathlib import Path

import pytest
import structlog

from bitel.dialer.config import AcceptFrom
from bitel.dialer.resolver import LONGEST_KEPT, Resolver
from bitel.dialer.trunk import Trunk
from bitel.domain.attempts import AttemptResult, Outcome
from bitel.sip.message import Request, write_response
from tests.support.carrier import Answer, Carrier, answering, carrier, silent
from tests.support.clocks import FakeClock
from tests.support.dns_server import dns_server
from tests.support.prerequisites import need_raw_sockets
from tests.support.sip_dialer import HOST, Dialled, dialer
from tests.support.waiting import until

STRANGER = "127.0.0.2"


def unreachable(ours: tuple[str, int], theirs: tuple[str, int], payload: bytes) -> bytes:
    """An ICMP "port unreachable" about a UDP datagram of ours (RFC 792)."""
    udp = struct.pack("!HHHH", ours[1], theirs[1], 8 + len(payload), 0) + payload
    ip = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 1, 0, 64, socket.IPPROTO_UDP, 0,
        socket.inet_aton(ours[0]), socket.inet_aton(theirs[0]),
    )  # fmt: skip
    ip = ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
    body = ip + udp
    head = struct.pack("!BBHI", 3, 3, 0, 0)
    return struct.pack("!BBHI", 3, 3, checksum(head + body), 0) + body


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


async def flood(
    ours: tuple[str, int], theirs: tuple[str, int], payload: bytes, sent: list[bytes]
) -> None:
    """200 forged errors a second, which are added to `sent`, until cancelled."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        while True:
            sent.append(unreachable(ours, theirs, payload))
            raw.sendto(sent[-1], (ours[0], 0))
            await asyncio.sleep(0.005)  # the pace of the flood


async def test_forged_icmp_errors_end_no_call(tmp_path: Path) -> None:
    """Neither one that knows the two ports alone, nor one that quotes what it can't have seen."""
    need_raw_sockets()
    async with carrier() as far, dialer(tmp_path, far.uri, t1=0.2) as calls:
        far.does["INVITE"] = silent
        ours = (HOST, calls.port)
        quoted = b"INVITE sip:1@h SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=z9hG4bKguess\r\n"
        for payload in (b"", quoted):
            sent: list[bytes] = []
            flooding = asyncio.create_task(flood(ours, (HOST, far.port), payload, sent))
            before = len(far.of("INVITE"))
            call = asyncio.create_task(calls.call())
            await until(partial(lambda before: len(far.of("INVITE")) > before, before))
            await until(partial(lambda sent: len(sent) >= 60, sent))
            assert not call.done()
            for answer in (Answer(180), Answer(200, sdp=True)):
                far.say(far.of("INVITE")[-1], answer)
            assert (await call).outcome is Outcome.ANSWERED
            flooding.cancel()


async def test_a_forged_icmp_error_that_quotes_the_invite_costs_a_ping(tmp_path: Path) -> None:
    need_raw_sockets()
    async with carrier() as far, dialer(tmp_path, far.uri, t1=0.2) as calls:
        far.does["INVITE"] = silent
        call = asyncio.create_task(calls.call())
        await until(lambda: len(far.of("INVITE")) == 1)
        [invite] = far.of("INVITE")
        quoted = f"INVITE {invite.uri} SIP/2.0\r\nVia: {invite.header('via')}\r\n".encode()
        flooding = asyncio.create_task(flood((HOST, calls.port), (HOST, far.port), quoted, []))
        await until(lambda: len(far.of("OPTIONS")) == 1)
        far.say(invite, Answer(100))
        far.say(invite, Answer(200, sdp=True))
        assert (await call).outcome is Outcome.ANSWERED
        flooding.cancel()
    assert len(far.of("OPTIONS")) == 1, "each request is doubted once"


async def test_a_carrier_that_answers_no_ping_is_given_up_for_the_next(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind((HOST, 0))
        nobody = f"sip:{HOST}:{probe.getsockname()[1]}"
    async with carrier() as second:
        second.does["INVITE"] = answering(100, 200)
        async with dialer(tmp_path, nobody, second.uri, t1=0.5, ring_timeout=20) as calls:
            async with asyncio.timeout(5):
                assert (await calls.call()).outcome is Outcome.ANSWERED


def request_of_callee(invite: Request, method: str, cseq: int) -> bytes:
    """What the callee of our `invite` would send, its tag included: all that the ACK shows."""
    return "\r\n".join(
        [
            f"{method} sip:{HOST} SIP/2.0",
            f"Via: SIP/2.0/UDP {STRANGER}:5060;rport;branch=z9hG4bK{method}{cseq}",
            "Max-Forwards: 70",
            f"From: {invite.header('to')}",
            f"To: {invite.header('from')}",
            f"Call-ID: {invite.call_id}",
            f"CSeq: {cseq} {method}",
            f"Contact: <sip:{STRANGER}:5060>",
            "Content-Length: 0",
            "",
            "",
        ]
    ).encode()


def respond_from_elsewhere(invite: Request, code: int, port: int) -> None:
    """Answer our `invite` rightly, but from another address than the trunk's."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind((STRANGER, 0))
        response = write_response(invite, code, "other", top_via=invite.header("via"))
        other.sendto(response, (HOST, port))


async def ringing(calls: Dialled, far: Carrier) -> asyncio.Task[AttemptResult]:
    """A call whose INVITE has arrived."""
    before = len(far.of("INVITE"))
    call: asyncio.Task[AttemptResult] = asyncio.create_task(calls.call())
    await until(lambda: len(far.of("INVITE")) > before)
    return call


async def test_a_stranger_answers_and_ends_no_call(tmp_path: Path) -> None:
    """Also one that has seen every message of the call, from another address than the trunk's."""
    sound = b"\xd5" * 8000
    async with carrier() as far, dialer(tmp_path, far.uri, t1=0.1, sound=sound) as calls:
        far.does["INVITE"] = silent
        call = await ringing(calls, far)
        [invite] = far.of("INVITE")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind((STRANGER, 0))
            for code in (200, 302, 401, 486, 603):
                forged = write_response(invite, code, "forged", top_via=invite.header("via"))
                stranger.sendto(forged, (HOST, calls.port))
            far.say(invite, Answer(200, sdp=True))
            await until(lambda: len(far.of("ACK")) == 1)
            [ack] = far.of("ACK")
            for cseq, method in enumerate(("BYE", "INFO", "INVITE", "UPDATE"), start=1):
                stranger.sendto(request_of_callee(ack, method, cseq), (HOST, calls.port))
            await until(lambda: calls.dialer.messages_dropped[0] == 9)
        result = await call
        assert result.outcome is Outcome.ANSWERED
        assert result.ended_by == "us"
        assert calls.dialer.messages_dropped == (9, 9)
    assert len(far.of("BYE")) == 1


async def test_messages_for_a_call_from_elsewhere_are_logged_with_their_source(
    tmp_path: Path,
) -> None:
    async with carrier() as far, dialer(tmp_path, far.uri) as calls:
        far.does["INVITE"] = silent
        with structlog.testing.capture_logs() as logs:
            call = await ringing(calls, far)
            [invite] = far.of("INVITE")
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
                stranger.bind((STRANGER, 0))
                forged = write_response(invite, 486, "forged", top_via=invite.header("via"))
                for _ in range(100):
                    stranger.sendto(forged, (HOST, calls.port))
                source = f"{STRANGER}:{stranger.getsockname()[1]}"
            await until(lambda: calls.dialer.messages_dropped[0] == 100)
            far.say(invite, Answer(486))
            await call
    lines = [each for each in logs if each["event"] == "sip_message_dropped"]
    assert 1 <= len(lines) <= 25
    assert {(each["source"], each["kind"]) for each in lines} == {(source, "response")}
    assert {each["sip_call_id"] for each in lines} == {invite.call_id}


@pytest.mark.parametrize(
    ("accept_from", "accepted"),
    [
        ("trunks", False),
        ("any", True),
        ((ip_network("127.0.0.2/32"),), True),
        ((ip_network("127.0.0.8/30"), ip_network("::/0")), False),
    ],
)
async def test_another_source_of_the_carrier_is_accepted_if_the_settings_say_so(
    tmp_path: Path, accept_from: AcceptFrom, accepted: bool
) -> None:
    async with (
        carrier() as far,
        dialer(tmp_path, far.uri, accept_from=accept_from, ring_timeout=1.0) as calls,
    ):
        far.does["INVITE"] = answering(100)
        call = await ringing(calls, far)
        [invite] = far.of("INVITE")
        respond_from_elsewhere(invite, 486, calls.port)
        result = await call
    expected = Outcome.BUSY if accepted else Outcome.NO_ANSWER
    assert result.outcome is expected


@pytest.mark.parametrize("ring_timeout", [0.5, 10.0])
async def test_a_call_answered_from_a_source_that_is_not_accepted_is_not_repeated_at_once(
    tmp_path: Path, ring_timeout: float
) -> None:
    """The carrier may have further addresses, and the phone ring: neither another trunk is tried,
    nor the call made again as if nothing had been delivered."""
    async with (
        carrier() as far,
        carrier() as second,
        dialer(
            tmp_path, far.uri, second.uri, ring_timeout=ring_timeout, trunk_timeout=0.4
        ) as calls,
    ):
        far.does["INVITE"] = silent
        call = await ringing(calls, far)
        [invite] = far.of("INVITE")
        respond_from_elsewhere(invite, 180, calls.port)
        result = await call
    assert result.outcome is Outcome.UNCERTAIN
    assert STRANGER in result.detail
    assert "accept_from" in result.detail
    assert not second.requests


async def test_a_reload_changes_which_sources_are_accepted(tmp_path: Path) -> None:
    async with carrier() as far, dialer(tmp_path, far.uri, ring_timeout=3.0) as calls:
        far.does["INVITE"] = answering(100)
        call = await ringing(calls, far)
        calls.dialer.change(replace(calls.dialer.config, accept_from=(ip_network(STRANGER),)))
        [invite] = far.of("INVITE")
        respond_from_elsewhere(invite, 486, calls.port)
        result = await call
    assert result.outcome is Outcome.BUSY


async def test_an_address_stays_the_trunk_s_for_a_day_after_dns_has_named_it(
    tmp_path: Path,
) -> None:
    clock = FakeClock()
    async with dns_server() as zone:
        zone.add("sbc.test", "A", "127.0.0.5")
        targets = Resolver(clock, resolver=zone.resolver())
        trunk = Trunk.parse("sip:sbc.test:5060")
        await targets.find(trunk)
        clock.now += LONGEST_KEPT + 1
        zone.add("sbc.test", "A", "127.0.0.6")
        await targets.find(trunk)
        assert targets.is_of_trunk("127.0.0.5")
        assert targets.is_of_trunk("127.0.0.6")
        assert not targets.is_of_trunk("127.0.0.7")
        clock.now += 24 * 3600 - LONGEST_KEPT - 2
        assert targets.is_of_trunk("127.0.0.5")
        clock.now += LONGEST_KEPT + 2
        assert not targets.is_of_trunk("127.0.0.5")
        assert targets.is_of_trunk("127.0.0.6"), "it is known now, however long ago it was asked"
