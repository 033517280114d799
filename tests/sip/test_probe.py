"""INVITEs over connections that break or were idle, by TCP and TLS, on both event loops.

A far end that a NAT or a firewall has cut off is a socket whose packet filter drops all that comes:
its kernel acknowledges nothing.
"""

from __future__ import annotations

import asyncio
import ctypes
import shutil
import socket
import ssl
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import cache
from typing import Any, cast

import pytest
import uvloop

from bitel.sip import Answered, Failed, OutgoingRequest, RequestDone
from bitel.sip.grammar import Address, Transport
from bitel.sip.message import Request, parse
from bitel.sip_transport.connection import StreamLimits
from bitel.sip_transport.tls import TlsFiles
from tests.support.certificates import Authority, Certificate
from tests.support.sip_bench import ANSWER, reply
from tests.support.sip_party import Party
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="other systems do not say what was acknowledged"
)
TCP, TLS = Transport.TCP, Transport.TLS
IDLE = 0.05
LIMITS = StreamLimits(probe_after=IDLE, probe_within=0.3)
HURRIED = StreamLimits(probe_after=1000.0)
PING = b"\r\n\r\n"
SO_ATTACH_FILTER = 26


class End(asyncio.Protocol):
    """One connection as the far end sees it."""

    def __init__(self, far: Far) -> None:
        self.far = far
        self.got = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.far.ends.append(self)

    def data_received(self, data: bytes) -> None:
        self.got += data
        if self.far.answers_pings and self.got.endswith(PING) and len(data) == len(PING):
            self.transport.write(b"\r\n")
        while self.far.answers_options and self.got.startswith(b"OPTIONS "):
            head, self.got = self.got.split(PING, 1)
            options = parse(head + PING)
            assert isinstance(options, Request)
            self.transport.write(reply(options, 200).encode())

    @property
    def invites(self) -> list[bytes]:
        """The Call-IDs of the INVITEs that came, in order, repeats included."""
        return _call_ids(self.got, b"INVITE")

    @property
    def socket(self) -> socket.socket:
        return cast(socket.socket, self.transport.get_extra_info("socket"))

    def go_deaf(self) -> None:
        """Have the kernel drop what comes, unacknowledged."""
        nothing = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
        program = struct.pack("HL", 1, ctypes.addressof(nothing))
        self.socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)

    def reset(self) -> None:
        """Break the connection at once."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()


def _call_ids(got: bytes, method: bytes) -> list[bytes]:
    found = []
    for message in got.split(method + b" ")[1:]:
        if b"\r\nCall-ID: " in message:
            found.append(message.split(b"\r\nCall-ID: ")[1].split(b"\r\n")[0])
    return found


class Far:
    """A server, and every connection to it."""

    def __init__(self) -> None:
        self.ends: list[End] = []
        self.answers_pings = False
        self.answers_options = True
        self.address: Address


@asynccontextmanager
async def world(
    by: Transport, papers: Authority | None, limits: StreamLimits = LIMITS
) -> AsyncIterator[tuple[Party, Far]]:
    """A caller, and a far end; the first connection stands, over which OPTIONS was answered."""
    context, files = None, None
    if by is TLS:
        assert papers is not None
        own = _signed(papers)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(own.certificate, own.key)
        files = TlsFiles(papers.files.certificate)
    far = Far()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: End(far), "127.0.0.1", 0, ssl=context)
    far.address = Address("127.0.0.1", server.sockets[0].getsockname()[1], by)
    caller = await Party.open(tls=files, limits=limits)
    try:
        uri = f"sip:127.0.0.1:{far.address.port}"
        options = OutgoingRequest("OPTIONS", uri, far.address, "sip:us@127.0.0.1", uri)
        caller.transport.agent.request(options, caller.transport.now())
        caller.transport.flush()
        await caller.until(RequestDone)
        yield caller, far
    finally:
        await caller.transport.close()
        server.close()
        for end in far.ends:
            end.transport.abort()


async def idle(caller: Party) -> None:
    """Wait until nothing has come over the connection for as long as makes it idle."""
    (connection,) = caller.transport._streams._connections.values()

    def is_idle() -> bool:
        progress = connection._progress()
        return progress is not None and progress.idle >= IDLE

    await until(is_idle)


async def arrived(caller: Party, end: End, call_id: str) -> None:
    """Wait until an INVITE is there, and our kernel knows: acknowledgements may take 40 ms."""
    (connection,) = caller.transport._streams._connections.values()
    await until(lambda: call_id.encode() in end.invites and not connection.unacknowledged())


@cache
def _signed(papers: Authority) -> Certificate:
    return papers.sign("IP:127.0.0.1")


Test = Callable[[Party, Far], Awaitable[None]]
Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(scope="module")
def papers(tmp_path_factory: pytest.TempPathFactory) -> Authority | None:
    if shutil.which("openssl") is None:
        return None
    return Authority.make(tmp_path_factory.mktemp("papers"))


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    made: Run = request.param
    return made


@pytest.fixture(params=[TCP, TLS])
def by(request: pytest.FixtureRequest, papers: Authority | None) -> Transport:
    made: Transport = request.param
    if made is TLS and papers is None:
        pytest.skip("openssl makes certificates")
    return made


@pytest.fixture
def play(run: Run, by: Transport, papers: Authority | None) -> Callable[..., None]:
    def play(test: Test, limits: StreamLimits = LIMITS) -> None:
        async def main() -> None:
            async with world(by, papers, limits) as (caller, far):
                await test(caller, far)

        run(main())

    return play


Play = Callable[..., None]

# Connections that break


@pytest.mark.parametrize("how", ["reset", "close"])
def test_an_invite_that_was_acknowledged_is_not_sent_again(play: Play, how: str) -> None:
    async def test(caller: Party, far: Far) -> None:
        call_id = caller.invite(far.address)
        (first,) = far.ends
        await arrived(caller, first, call_id)
        first.reset() if how == "reset" else first.transport.close()
        failed = await caller.until(Failed)
        assert isinstance(failed, Failed)
        assert (failed.why, failed.delivered) == ("timeout", True)
        assert far.ends == [first]

    play(test, HURRIED)


def test_of_two_invites_only_the_one_that_was_not_is_sent_again(play: Play) -> None:
    async def test(caller: Party, far: Far) -> None:
        there = caller.invite(far.address)
        (first,) = far.ends
        await arrived(caller, first, there)
        first.go_deaf()
        lost = caller.invite(far.address).encode()
        (connection,) = caller.transport._streams._connections.values()
        await until(lambda: len(connection.unacknowledged() or ()) == 1)
        first.reset()
        await until(lambda: len(far.ends) == 2)
        await until(lambda: far.ends[1].invites)
        assert far.ends[1].invites == [lost]
        await until(lambda: sum(isinstance(event, Failed) for event in caller.events) == 2)
        told = {event.call_id: event for event in caller.events if isinstance(event, Failed)}
        assert told[there].delivered
        assert far.ends[1].invites == [lost]

    play(test, HURRIED)


def test_an_invite_for_a_connection_that_was_just_reset_is_sent_again(play: Play) -> None:
    async def test(caller: Party, far: Far) -> None:
        (first,) = far.ends
        # The kernel knows before the event loop does.
        first.reset()
        await asyncio.sleep(0)
        call_id = caller.invite(far.address).encode()
        await until(lambda: len(far.ends) == 2 and far.ends[1].invites == [call_id])
        assert first.invites == []

    play(test, HURRIED)


def test_the_answer_may_come_over_a_connection_of_the_far_end(run: Run) -> None:
    async def main() -> None:
        async with world(TCP, None, HURRIED) as (caller, far):
            call_id = caller.invite(far.address)
            (first,) = far.ends
            await arrived(caller, first, call_id)
            invite = parse(first.got)
            assert isinstance(invite, Request)
            first.reset()
            await until(lambda: not len(caller.transport._streams))
            _, writer = await asyncio.open_connection(*caller.transport.local)
            for code, body in ((180, ""), (200, ANSWER)):
                writer.write(reply(invite, code, body, headers=()).encode())
            await caller.until(Answered)
            writer.close()

    run(main())


# Connections that were idle


@pytest.mark.parametrize("answers_pings", [True, False])
def test_who_acknowledges_a_ping_gets_the_invite(play: Play, answers_pings: bool) -> None:
    async def test(caller: Party, far: Far) -> None:
        far.answers_pings = answers_pings
        await idle(caller)
        call_ids = [caller.invite(far.address).encode() for _ in range(3)]
        (first,) = far.ends
        await until(lambda: first.invites == call_ids)
        assert first.got.startswith(PING + b"INVITE ")
        assert first.got.count(PING + b"INVITE ") == 1, "one ping"
        assert len(far.ends) == 1

    play(test)


def test_a_connection_in_use_is_not_probed(play: Play) -> None:
    async def test(caller: Party, far: Far) -> None:
        caller.invite(far.address)
        (first,) = far.ends
        await until(lambda: first.invites)
        assert first.got.startswith(b"INVITE ")

    play(test, HURRIED)


def test_what_a_dead_connection_held_goes_over_a_new_one_in_order(play: Play) -> None:
    async def test(caller: Party, far: Far) -> None:
        far.answers_options = False
        (first,) = far.ends
        first.go_deaf()
        await idle(caller)
        call_ids = [caller.invite(far.address).encode() for _ in range(2)]
        uri = f"sip:127.0.0.1:{far.address.port}"
        options = OutgoingRequest("OPTIONS", uri, far.address, "sip:us@127.0.0.1", uri)
        call_ids.append(caller.transport.agent.request(options, 0.0).encode())
        await until(lambda: len(far.ends) == 2)
        second = far.ends[1]
        await until(lambda: b"OPTIONS " in second.got)
        assert second.invites == call_ids[:2]
        assert second.got.index(call_ids[1]) < second.got.index(call_ids[2])
        assert first.got == b""
        assert caller.transport.agent.counts().retransmissions == 0
        assert not any(isinstance(event, Failed) for event in caller.events)

    play(test)


def test_so_it_does_where_the_connection_breaks_while_it_is_probed(play: Play) -> None:
    async def test(caller: Party, far: Far) -> None:
        (first,) = far.ends
        first.go_deaf()
        await idle(caller)
        call_id = caller.invite(far.address).encode()
        (connection,) = caller.transport._streams._connections.values()
        await until(lambda: connection._held)
        first.reset()
        await until(lambda: len(far.ends) == 2 and far.ends[1].invites == [call_id])

    play(test, StreamLimits(probe_after=IDLE, probe_within=1000.0))


def test_what_is_given_up_meanwhile_does_not_leave_at_all(play: Play) -> None:
    async def test(caller: Party, far: Far) -> None:
        (first,) = far.ends
        first.go_deaf()
        await idle(caller)
        given_up = caller.invite(far.address)
        call_id = caller.invite(far.address).encode()
        (connection,) = caller.transport._streams._connections.values()
        await until(lambda: len(connection._held) == 2)
        assert caller.transport.agent.give_up(given_up, caller.transport.now())
        caller.transport.flush()
        await until(lambda: len(far.ends) == 2 and far.ends[1].invites)
        assert far.ends[1].invites == [call_id]

    play(test)


def test_bytes_of_any_kind_end_the_wait(play: Play) -> None:
    async def test(caller: Party, far: Far) -> None:
        (first,) = far.ends
        first.go_deaf()
        await idle(caller)
        caller.invite(far.address)
        (connection,) = caller.transport._streams._connections.values()
        await until(lambda: connection._held)
        first.transport.write(b"\r\n")
        await until(lambda: not connection._held)
        assert connection.unacknowledged(), "it has been sent"

    play(test, StreamLimits(probe_after=IDLE, probe_within=1000.0))


def test_closing_sends_what_was_held(play: Play) -> None:
    async def test(caller: Party, far: Far) -> None:
        await idle(caller)
        caller.invite(far.address)
        (connection,) = caller.transport._streams._connections.values()
        caller.transport._run_turn()
        assert connection._held
        await caller.transport.close()
        await until(lambda: far.ends[0].invites)

    play(test)
