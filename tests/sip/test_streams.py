"""Agents on TCP, on real sockets of this machine: connections, their limits, and what breaks."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest
import uvloop

from bitel.sip import Answered, Confirmed, Ended, Event, Failed, Incoming, UserAgent
from bitel.sip.grammar import Address, Transport
from bitel.sip.message import Request, parse
from bitel.sip.transaction import MAX_UDP
from bitel.sip_transport.connection import StreamLimits
from bitel.sip_transport.transport import SipTransport
from tests.support.prerequisites import need_ipv6
from tests.support.sip_bench import ANSWER, reply, request, within
from tests.support.sip_party import Party, agent_at, answers, one_call
from tests.support.tcp_server import tcp_server
from tests.support.waiting import until

LOCALHOST = "127.0.0.1"
QUICK = StreamLimits(
    connecting=0.5,
    pause=0.2,
    message=0.3,
    ping_every=0.1,
    pong_within=0.1,
    accepted=4,
    per_source=3,
    look_every=0.02,
)


@pytest.fixture
async def caller() -> AsyncIterator[Party]:
    party = await Party.open()
    yield party
    await party.transport.close()


@pytest.fixture
async def callee() -> AsyncIterator[Party]:
    party = await Party.open()
    party.on_event = answers(party)
    yield party
    await party.transport.close()


@pytest.fixture
async def quick() -> AsyncIterator[Party]:
    party = await Party.open(limits=QUICK)
    party.on_event = answers(party)
    yield party
    await party.transport.close()


class Peer:
    """The other end of a connection, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, party: Party) -> Peer:
        return cls(*await asyncio.open_connection(*party.transport.local))

    async def read_until(self, end: bytes) -> bytes:
        async with asyncio.timeout(5):
            return await self.reader.readuntil(end)

    async def at_end(self) -> bytes:
        """What is left, once the other side has closed; this side is closed then too."""
        async with asyncio.timeout(5):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""
            finally:
                await self.close()

    async def close(self) -> None:
        self.writer.close()


class Server:
    """Listens where an agent is to call, and keeps each connection."""

    def __init__(self) -> None:
        self.peers: asyncio.Queue[Peer] = asyncio.Queue()
        self.address: Address
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Server:
        host, port = await self._stack.enter_async_context(tcp_server(self._take))
        self.address = Address(host, port, Transport.TCP)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self.peers.put(Peer(reader, writer))

    async def peer(self) -> Peer:
        async with asyncio.timeout(5):
            return await self.peers.get()


def refusing() -> Address:
    with socket.socket() as sock:
        sock.bind((LOCALHOST, 0))
        return Address(LOCALHOST, sock.getsockname()[1], Transport.TCP)


async def test_a_call_from_end_to_end(caller: Party, callee: Party) -> None:
    seen: list[tuple[str, Transport]] = []
    caller.transport._tap = lambda way, data, address, at: seen.append((way, address.transport))
    await one_call(caller, callee, Transport.TCP)
    assert len(caller.transport._streams) == len(callee.transport._streams) == 1
    assert set(seen) == {("in", Transport.TCP), ("out", Transport.TCP)}
    assert caller.transport.agent.counts().retransmissions == 0


async def test_many_calls_share_a_connection(caller: Party, callee: Party) -> None:
    for _ in range(50):
        caller.invite(callee.at(Transport.TCP))
    async with asyncio.timeout(10):
        while sum(isinstance(event, Confirmed) for event in callee.events) < 50:
            callee.changed.clear()
            await callee.changed.wait()
    assert sum(isinstance(event, Answered) for event in caller.events) == 50
    assert len(caller.transport._streams) == 1


def test_on_uvloop_too() -> None:
    async def main() -> None:
        caller, callee = await Party.open(), await Party.open()
        callee.on_event = answers(callee)
        await one_call(caller, callee, Transport.TCP)
        caller.invite(refusing())
        failed = await caller.until(Failed)
        assert isinstance(failed, Failed)
        assert failed.why == "transport"
        await caller.transport.close()
        await callee.transport.close()

    uvloop.run(main())


async def test_ipv6() -> None:
    need_ipv6()
    caller, callee = await Party.open(bind=("::1", 0)), await Party.open(bind=("::1", 0))
    callee.on_event = answers(callee)
    for transport in (Transport.UDP, Transport.TCP):
        caller.events.clear()
        callee.events.clear()
        await one_call(caller, callee, transport)
        answered = next(event for event in caller.events if isinstance(event, Answered))
        assert answered.answer.address == "::1"
        assert b"IN IP6 ::1" in answered.answer.to_bytes()
    await caller.transport.close()
    await callee.transport.close()


# Connections that can't be had, or break


async def test_a_refused_connection_fails_the_call_at_once(caller: Party) -> None:
    started = asyncio.get_running_loop().time()
    caller.invite(refusing())
    failed = await caller.until(Failed)
    assert isinstance(failed, Failed)
    assert (failed.code, failed.why) == (503, "transport")
    assert asyncio.get_running_loop().time() - started < 1


async def test_a_destination_that_failed_is_left_alone_for_a_moment() -> None:
    limits = StreamLimits(pause=0.3)
    caller, callee = await Party.open(limits=limits), await Party.open()
    callee.on_event = answers(callee)
    destination = callee.at(Transport.TCP)
    await callee.transport.close()
    caller.invite(destination)
    await caller.until(Failed)
    callee = await Party.open(bind=callee.transport.local)
    callee.on_event = answers(callee)
    caller.events.clear()
    caller.invite(destination)
    await caller.until(Failed)
    await asyncio.sleep(limits.pause)
    caller.events.clear()
    await one_call(caller, callee, Transport.TCP)
    await caller.transport.close()
    await callee.transport.close()


async def test_a_connection_that_nobody_takes_times_out(quick: Party) -> None:
    with socket.socket() as full:
        full.bind((LOCALHOST, 0))
        full.listen(0)
        address = Address(LOCALHOST, full.getsockname()[1], Transport.TCP)
        # Two connections fill the queue of one who accepts none.
        others = [socket.socket() for _ in range(2)]
        for other in others:
            other.setblocking(False)
            other.connect_ex(address[:2])
        quick.invite(address)
        failed = await quick.until(Failed)
        for other in others:
            other.close()
    assert isinstance(failed, Failed)
    assert failed.why == "transport"


async def test_a_bye_opens_a_new_connection_when_the_old_one_is_lost(
    caller: Party, callee: Party
) -> None:
    call_id = caller.invite(callee.at(Transport.TCP))
    await caller.until(Answered)
    await callee.until(Confirmed)
    for party in (caller, callee):
        for connection in list(party.transport._streams._connections.values()):
            connection.abort()
    async with asyncio.timeout(5):
        while len(caller.transport._streams) or len(callee.transport._streams):
            await asyncio.sleep(0)
    caller.transport.agent.hang_up(call_id, caller.transport.now())
    caller.transport.flush()
    assert await caller.until(Ended) == Ended(call_id, "us", 16)
    assert await callee.until(Ended) == Ended(call_id, "far", 16)


async def test_an_answer_whose_connection_is_lost_comes_over_another(
    caller: Party, callee: Party
) -> None:
    def lose_it_first(event: Event) -> None:
        if isinstance(event, Incoming):
            for connection in list(callee.transport._streams._connections.values()):
                connection.abort()
            loop = asyncio.get_running_loop()
            loop.call_later(0.05, answers(callee), event)
            loop.call_later(0.06, callee.transport.flush)

    callee.on_event = lose_it_first
    caller.invite(callee.at(Transport.TCP))
    await caller.until(Answered)
    await callee.until(Confirmed)


async def test_an_invite_that_a_dying_connection_took_is_not_sent_again(caller: Party) -> None:
    async with Server() as server:
        caller.invite(server.address)
        first = await server.peer()
        await first.read_until(b"a=sendrecv\r\n")
        await first.close()
        failed = await caller.until(Failed)
        assert isinstance(failed, Failed)
        assert (failed.why, failed.delivered) == ("timeout", True)
        assert server.peers.empty()


async def test_long_requests_go_by_tcp_and_fall_back(caller: Party, callee: Party) -> None:
    header = ("X-Long", "x" * MAX_UDP)
    caller.invite(callee.at(), header)
    incoming = await callee.until(Incoming)
    assert isinstance(incoming, Incoming)
    assert incoming.source.transport is Transport.TCP
    await caller.until(Answered)
    # One who has no TCP.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((LOCALHOST, 0))
        sock.setblocking(False)
        caller.invite(Address(*sock.getsockname()), header)
        async with asyncio.timeout(5):
            data = await asyncio.get_running_loop().sock_recv(sock, 65535)
    assert b"\r\nVia: SIP/2.0/UDP " in data
    assert len(data) > MAX_UDP


# What strangers may do


async def test_messages_in_pieces_of_one_byte(callee: Party) -> None:
    peer = await Peer.connect(callee)
    for at in request("OPTIONS", via="SIP/2.0/TCP 127.0.0.1").encode():
        peer.writer.write(bytes([at]))
        await asyncio.sleep(0)
    assert (await peer.read_until(b"\r\n\r\n")).startswith(b"SIP/2.0 200 ")
    await peer.close()


async def test_pings_are_answered(callee: Party) -> None:
    peer = await Peer.connect(callee)
    peer.writer.write(b"\r\n\r\n")
    assert await peer.read_until(b"\r\n") == b"\r\n"
    await peer.close()


async def test_a_message_without_length_meets_400_and_the_end(callee: Party) -> None:
    peer = await Peer.connect(callee)
    peer.writer.write(request("OPTIONS").replace("Content-Length: 0\r\n", "").encode())
    assert (await peer.at_end()).startswith(b"SIP/2.0 400 ")


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02", b"\xff" * 9000]
)
async def test_garbage_meets_the_end_and_hurts_nobody(
    caller: Party, callee: Party, garbage: bytes
) -> None:
    peer = await Peer.connect(callee)
    peer.writer.write(garbage)
    assert await peer.at_end() == b""
    await one_call(caller, callee, Transport.TCP)


@pytest.mark.parametrize("start", [b"", b"\r\n", b"OPTIONS sip:a SIP/2.0\r\n"])
async def test_who_never_ends_a_message_is_sent_away(quick: Party, start: bytes) -> None:
    peer = await Peer.connect(quick)
    peer.writer.write(start)
    assert await peer.at_end() == b""
    assert len(quick.transport._streams) == 0


async def test_no_more_connections_than_allowed(quick: Party) -> None:
    peers = [await Peer.connect(quick) for _ in range(QUICK.per_source)]
    one_too_many = await Peer.connect(quick)
    assert await one_too_many.at_end() == b""
    for peer in peers:
        peer.writer.write(request("OPTIONS").encode())
        assert (await peer.read_until(b"\r\n")).startswith(b"SIP/2.0 200 ")
    await peers.pop().close()
    await until(lambda: len(quick.transport._streams) != QUICK.per_source, 5)
    another = await Peer.connect(quick)
    another.writer.write(request("OPTIONS").encode())
    assert (await another.read_until(b"\r\n")).startswith(b"SIP/2.0 200 ")
    for peer in (*peers, another):
        await peer.close()


async def test_who_does_not_read_is_given_up() -> None:
    party = await Party.open(limits=StreamLimits(unsent=100_000))
    peer = await Peer.connect(party)
    flood = request("OPTIONS").encode()

    async def write() -> None:
        for _ in range(100_000):
            peer.writer.write(flood)
            await peer.writer.drain()

    with pytest.raises(ConnectionError):
        await asyncio.wait_for(write(), 30)
    assert len(party.transport._streams) == 0
    await party.transport.close()


async def test_a_flood_on_one_connection_leaves_time_for_others(
    caller: Party, callee: Party
) -> None:
    peer = await Peer.connect(callee)
    peer.writer.write(b"\r\n\r\n" * 50_000)
    await one_call(caller, callee, Transport.TCP)
    await peer.close()


# Keep-alive


async def test_silence_is_pinged_and_who_stops_answering_is_given_up(quick: Party) -> None:
    async with Server() as server:
        quick.invite(server.address)
        peer = await server.peer()
        invite = await peer.read_until(b"a=sendrecv\r\n")
        assert invite.startswith(b"INVITE ")
        assert await peer.read_until(b"\r\n\r\n") == b"\r\n\r\n"
        peer.writer.write(b"\r\n")
        assert await peer.read_until(b"\r\n\r\n") == b"\r\n\r\n"
        await peer.at_end()
        failed = await quick.until(Failed)
        assert isinstance(failed, Failed)
        assert (failed.why, failed.delivered) == ("timeout", True)
        assert server.peers.empty(), "it has the INVITE"


async def test_a_port_whose_tcp_is_taken_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind((LOCALHOST, 0))
        taken.listen()
        with pytest.raises(OSError, match="in use"):
            SipTransport(taken.getsockname(), agent_at, lambda event: None)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(taken.getsockname())  # nothing was left open


async def test_close_ends_every_connection(caller: Party) -> None:
    async with Server() as server:
        caller.invite(server.address)
        peer = await server.peer()
        await peer.read_until(b"a=sendrecv\r\n")
        caller.invite(server.address)
        await caller.transport.close()
        assert (await peer.at_end()).startswith(b"INVITE "), "what was queued is sent"


# Messages whose end can't be found


def without_length(message: str) -> bytes:
    head, _, body = message.partition("\r\n\r\n")
    lines = [line for line in head.split("\r\n") if not line.startswith("Content-Length")]
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


async def called(caller: Party, server: Server) -> tuple[str, Request, Peer]:
    """A call placed over TCP, and its INVITE at the far end."""
    call_id = caller.invite(server.address)
    peer = await server.peer()
    head = await peer.read_until(b"\r\n\r\n")
    invite = parse(head.replace(b"Content-Length", b"X-Length"))
    assert isinstance(invite, Request)
    await peer.reader.readexactly(int(invite.header("x-length")))
    return call_id, invite, peer


@pytest.mark.parametrize(
    "length", ["", "Content-Length: x\r\n", "Content-Length: 1\r\nl: 2\r\n", "l: 70000\r\n"]
)
async def test_a_bye_without_a_usable_length_ends_the_call(caller: Party, length: str) -> None:
    async with Server() as server:
        call_id, invite, peer = await called(caller, server)
        contact = (f"Contact: <sip:far@127.0.0.1:{server.address.port};transport=tcp>",)
        peer.writer.write(reply(invite, 200, ANSWER, headers=contact).encode())
        assert (await peer.read_until(b"\r\n\r\n")).startswith(b"ACK ")
        bye = within(invite, "BYE", 1, via="SIP/2.0/TCP 127.0.0.1:5060")
        peer.writer.write(bye.replace("Content-Length: 0\r\n", length).encode())
        assert (await peer.at_end()).startswith(b"SIP/2.0 200 ")
        assert await caller.until(Ended) == Ended(call_id, "far", None)


async def test_an_answer_without_a_length_is_acknowledged_and_the_call_goes_on(
    caller: Party,
) -> None:
    """The connection was ours; it is closed after the ACK, and the BYE takes another one."""
    async with Server() as server:
        call_id, invite, peer = await called(caller, server)
        contact = (f"Contact: <sip:far@127.0.0.1:{server.address.port};transport=tcp>",)
        peer.writer.write(without_length(reply(invite, 200, ANSWER, headers=contact)))
        assert (await peer.at_end()).startswith(b"ACK ")
        await caller.until(Answered)
        caller.transport.agent.hang_up(call_id, caller.transport.now())
        caller.transport.flush()
        second = await server.peer()
        bye = parse(await second.read_until(b"\r\n\r\n"))
        assert isinstance(bye, Request)
        assert bye.method == "BYE"
        second.writer.write(reply(bye, 200).encode())
        assert await caller.until(Ended) == Ended(call_id, "us", 16)


async def test_an_answer_without_a_length_and_its_bye_in_one_segment(caller: Party) -> None:
    async with Server() as server:
        call_id, invite, peer = await called(caller, server)
        contact = (f"Contact: <sip:far@127.0.0.1:{server.address.port};transport=tcp>",)
        bye = within(invite, "BYE", 1, via="SIP/2.0/TCP 127.0.0.1:5060")
        answer = without_length(reply(invite, 200, ANSWER, headers=contact))
        peer.writer.write(answer + bye.encode())
        left = await peer.at_end()
        assert left.startswith(b"ACK ")
        assert b"SIP/2.0 200 " in left
        await caller.until(Answered)
        assert await caller.until(Ended) == Ended(call_id, "far", None)


async def test_a_fault_with_one_message_does_not_lose_the_others(
    callee: Party, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    receive = callee.transport.agent.receive_datagram

    def fail_for_one(agent: UserAgent, data: bytes, source: Address, now: float) -> None:
        if b"z9hG4bKbad" in data:
            raise RuntimeError("a fault")
        receive(data, source, now)

    monkeypatch.setattr(UserAgent, "receive_datagram", fail_for_one)
    peer = await Peer.connect(callee)
    for branch in ("z9hG4bKbad", "z9hG4bKgood"):
        peer.writer.write(
            request("OPTIONS", branch=branch, via="SIP/2.0/TCP 127.0.0.1:5060").encode()
        )
    assert b"z9hG4bKgood" in await peer.read_until(b"\r\n\r\n")
    assert "a fault" in caplog.text
    await peer.close()
