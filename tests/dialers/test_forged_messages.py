"""Messages of strangers, forged for a call that runs: none of them ends, moves or answers it."""

from __future__ import annotations

import asyncio
import socket
import struct
from functools import partial
from pathlib import Path

from bitel.calls.outcome import Outcome
from tests.dialers.calling import HOST, dialer
from tests.dialers.carrier import Answer, answering, carrier, silent, until
from tests.prerequisites import need_raw_sockets


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


async def flood(ours: tuple[str, int], theirs: tuple[str, int], payload: bytes) -> None:
    """200 forged errors a second, until cancelled."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        while True:
            raw.sendto(unreachable(ours, theirs, payload), (ours[0], 0))
            await asyncio.sleep(0.005)


async def test_forged_icmp_errors_end_no_call(tmp_path: Path) -> None:
    """Neither one that knows the two ports alone, nor one that quotes what it can't have seen."""
    need_raw_sockets()
    async with carrier() as far, dialer(tmp_path, far.uri, t1=0.2) as calls:
        far.does["INVITE"] = silent
        ours = (HOST, calls.port)
        quoted = b"INVITE sip:1@h SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=z9hG4bKguess\r\n"
        for payload in (b"", quoted):
            flooding = asyncio.create_task(flood(ours, (HOST, far.port), payload))
            before = len(far.of("INVITE"))
            call = asyncio.create_task(calls.call())
            await until(partial(lambda before: len(far.of("INVITE")) > before, before))
            for _ in range(60):  # as many turns as errors
                await asyncio.sleep(0.005)
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
        flooding = asyncio.create_task(flood((HOST, calls.port), (HOST, far.port), quoted))
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
