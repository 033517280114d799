"""Connections that come to nothing, on real sockets: what they must not leave, and not bring."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
import struct
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import uvloop

from bitel.sip import Answered, Failed
from bitel.sip.grammar import Address, Transport
from bitel.sip_transport import connection_pool
from bitel.sip_transport.acceptor import ConnectionQuota
from bitel.sip_transport.connection import StreamLimits
from bitel.sip_transport.tls import TlsFiles
from tests.support.certificates import Authority
from tests.support.sip_bench import request
from tests.support.sip_party import Party, answers, one_call
from tests.support.tcp_server import tcp_server
from tests.support.waiting import until

LOCALHOST = "127.0.0.1"
TCP = Transport.TCP
Run = Callable[[Coroutine[Any, Any, None]], None]
LOOPS = pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
RESPONSE = (
    "SIP/2.0 200 OK\r\nVia: SIP/2.0/TCP 127.0.0.1:{port};branch=z9hG4bK1\r\nFrom: <sip:a@b>;tag=1"
    "\r\nTo: <sip:c@d>;tag=2\r\nCall-ID: x\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n"
)


class SlowWay:
    """Connections to `slow` ports are made when `open` says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = asyncio.Event()
        self.slow: set[int] = set()
        self._real = connection_pool.connected_socket
        monkeypatch.setattr(connection_pool, "connected_socket", self._connect)

    async def _connect(self, destination: Address, host: str | None, port: int) -> socket.socket:
        if destination.port in self.slow:
            await self.open.wait()
        return await self._real(destination, host, port)


async def test_what_was_given_up_meanwhile_is_not_sent_when_the_connection_stands(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    way = SlowWay(monkeypatch)
    caller, callee = await Party.open(), await Party.open()
    callee.on_event = answers(callee)
    first = callee.at(TCP)
    way.slow.add(first.port)
    given_up = caller.invite(first)
    await asyncio.sleep(0.02)
    caller.transport.agent.give_up(given_up, caller.transport.now())
    caller.transport.flush()
    await caller.until(Failed)
    # By now another trunk rings. This one must not hear of the call any more, but of later ones.
    wanted = caller.invite(first)
    await asyncio.sleep(0.02)
    way.open.set()
    answered = await caller.until(Answered)
    assert answered.call_id == wanted
    assert {event.call_id for event in callee.events} == {wanted}
    for party in (caller, callee):
        await party.transport.close()


async def test_answers_to_strangers_take_no_room_from_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    way = SlowWay(monkeypatch)
    limits = StreamLimits(opened=2, answering=3)
    caller, callee = await Party.open(limits=limits), await Party.open()
    callee.on_event = answers(callee)
    for port in range(20001, 20051):
        way.slow.add(port)
        # Whoever asked has gone, and names a port in Via that takes no connection.
        gone = Address(LOCALHOST, 50000, TCP)
        caller.transport._streams.send(RESPONSE.format(port=port).encode(), gone)
    assert len(caller.transport._streams._attempts) == limits.answering
    await one_call(caller, callee, TCP)
    way.open.set()
    await until(lambda: not caller.transport._streams._attempts, 5)
    assert not caller.transport._streams._answering
    for party in (caller, callee):
        await party.transport.close()


async def test_garbage_from_whom_we_called_is_no_reason_to_ring_twice() -> None:
    connections: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.put_nowait((reader, writer))

    async with tcp_server(take) as (host, port):
        caller = await Party.open()
        caller.invite(Address(host, port, TCP))
        async with asyncio.timeout(5):
            reader, writer = await connections.get()
            await reader.readuntil(b"a=sendrecv\r\n")
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            failed = await caller.until(Failed)
        assert isinstance(failed, Failed)
        assert (failed.why, failed.delivered) == ("timeout", True)
        assert connections.empty()
        await caller.transport.close()


@LOOPS
def test_no_socket_is_left_of_a_connection_that_failed(run: Run, tmp_path: Path) -> None:
    authority = Authority.make(tmp_path)
    files = TlsFiles(authority.files.certificate)
    shown = authority.sign("DNS:another.test")

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pass

    async def main() -> None:
        limits = StreamLimits(connecting=0.2, pause=0.0)
        caller = await Party.open(tls=files, limits=limits)
        callee = await Party.open(tls=TlsFiles(certificate=shown.certificate, key=shown.key))
        async with tcp_server(keep) as (_, deaf_port):
            await fail_often(caller, callee, deaf_port)
        for party in (caller, callee):
            await party.transport.close()

    async def fail_often(caller: Party, callee: Party, deaf_port: int) -> None:
        places = [
            callee.at(Transport.TLS, "carrier.test"),  # it bears another name
            callee.at(Transport.TLS, "carrier..test"),  # a name that nobody can bear
            Address(LOCALHOST, deaf_port, Transport.TLS, "carrier.test"),  # no TLS is spoken
        ]
        open_files: list[int] = []
        for _ in range(3):
            for place in places:
                caller.events.clear()
                caller.invite(place)
                await caller.until(Failed)
            await asyncio.sleep(0.05)
            open_files.append(_connections_to({place.port for place in places}))
        assert open_files == [0, 0, 0]

    gc.disable()  # what is not closed must not be swept up meanwhile
    try:
        run(main())
    finally:
        gc.enable()


def _connections_to(ports: set[int]) -> int:
    """How many sockets of this process are connected to one of these ports."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            sock = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue
        with sock:
            is_inet = sock.family == socket.AF_INET and sock.type == socket.SOCK_STREAM
            with contextlib.suppress(OSError):
                count += is_inet and sock.getpeername()[1] in ports
    return count


def test_a_network_of_ipv6_counts_as_one() -> None:
    quota = ConnectionQuota(StreamLimits(per_source=2))
    assert quota.acquire("2001:db8:1:2::1")
    assert quota.acquire("2001:db8:1:2:ffff::2")
    assert not quota.acquire("2001:db8:1:2::3")
    assert quota.acquire("2001:db8:1:3::1")
    assert quota.acquire("fe80::1%eth0")
    for host in ("2001:db8:1:2::1", "2001:db8:1:2:ffff::2", "2001:db8:1:3::1", "fe80::1%eth0"):
        quota.release(host)
    assert not quota._open


def test_strangers_leave_half_of_the_room_to_the_carrier() -> None:
    quota = ConnectionQuota(
        StreamLimits(accepted=4, per_source=10), lambda host: host == "192.0.2.9"
    )
    assert [quota.acquire(f"198.51.100.{last}") for last in range(4)] == [True, True, False, False]
    assert [quota.acquire("192.0.2.9") for _ in range(3)] == [True, True, False]
    quota.release("198.51.100.0")
    assert not quota.acquire("198.51.100.7")
    assert quota.acquire("192.0.2.9")


@LOOPS
def test_a_flood_and_then_a_reset_is_no_fault_of_ours(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        callee = await Party.open()
        callee.on_event = answers(callee)
        for _ in range(5):
            with socket.create_connection(callee.transport.local) as rude:
                rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                for number in range(300):
                    rude.sendall(request("OPTIONS", branch=f"z9hG4bK{number}").encode())
            await asyncio.sleep(0.05)
        caller = await Party.open()
        await one_call(caller, callee, TCP)
        assert len(callee.transport._streams) == 1
        for party in (caller, callee):
            await party.transport.close()

    with caplog.at_level(logging.WARNING):
        run(main())
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []
