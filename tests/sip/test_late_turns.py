"""A transport whose event loop stood still: what has arrived is read, then the lease confirmed, and
then timers fire. The loop is held up by a callback that sleeps, on both kinds of event loop."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop

from bitel.sip import Answered, Credentials, Failed, Invitation, make_offer
from bitel.sip.grammar import Address, Transport
from bitel.sip.message import Request, parse
from bitel.sip_transport import transport as sip_transport
from bitel.sip_transport.connection import MAX_BATCH as STREAM_BATCH
from bitel.sip_transport.transport import BUSY_PASSES
from bitel.sip_transport.udp import MAX_BATCH
from tests.support.sip_bench import ANSWER, reply, request
from tests.support.sip_party import Party
from tests.support.tcp_server import tcp_server
from tests.support.waiting import until

Run = Callable[[Coroutine[Any, Any, None]], None]
PAUSE = 0.6
TIMER_B = 3.2
"""64 × T1 of `party.agent_at`."""
CHALLENGE = ('WWW-Authenticate: Digest realm="r", nonce="n"',)


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(sip_transport, "PAUSE_NOTICED", 0.2)
    monkeypatch.setattr(sip_transport, "LONGEST_TIMER", 0.1)
    made: Run = request.param
    return made


class Far:
    """A UDP socket that answers nothing by itself."""

    def __init__(self) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        self.sock.setblocking(False)
        self.got: list[bytes] = []

    @property
    def address(self) -> Address:
        return Address(*self.sock.getsockname())

    def of(self, method: str) -> list[Request]:
        """Every request of that method so far, repeats included."""
        while True:
            try:
                self.got.append(self.sock.recv(65536))
            except BlockingIOError:
                break
        parsed = [parse(data) for data in self.got]
        return [one for one in parsed if isinstance(one, Request) and one.method == method]

    def proven(self) -> list[Request]:
        """The INVITEs with credentials."""
        return [invite for invite in self.of("INVITE") if invite.header("authorization")]

    def responses(self) -> list[int]:
        _ = self.of("")
        return [int(data.split()[1]) for data in self.got if data.startswith(b"SIP/2.0 ")]

    def send(self, data: str, to: tuple[str, int]) -> None:
        self.sock.sendto(data.encode(), to)


@asynccontextmanager
async def called(
    confirm: Callable[[], Awaitable[bool]] | None = None,
) -> AsyncIterator[tuple[Party, Far, Request]]:
    """A caller whose INVITE has just reached a far end that says nothing."""
    far, caller = Far(), await Party.open()
    caller.transport.confirm_lease = confirm
    invitation = Invitation(
        "sip:1@127.0.0.1",
        far.address,
        "sip:us@127.0.0.1",
        make_offer(("127.0.0.1", 30000)),
        credentials=Credentials("u", "p"),
    )
    caller.transport.agent.invite(invitation, caller.transport.now())
    caller.transport.flush()
    await until(lambda: far.of("INVITE"))
    try:
        yield caller, far, far.of("INVITE")[0]
    finally:
        await caller.transport.close()
        far.sock.close()


def hold_up(seconds: float = PAUSE) -> None:
    time.sleep(seconds)


def test_what_has_arrived_is_read_before_timer_b_fires(run: Run) -> None:
    async def main() -> None:
        async with called() as (caller, far, invite):
            for _ in range(5 * MAX_BATCH):
                far.send("\r\n\r\n", caller.transport.local)
            far.send(reply(invite, 200, ANSWER), caller.transport.local)
            sent = len(far.of("INVITE"))
            hold_up(TIMER_B + 0.3)
            await until(lambda: caller.events)
            assert isinstance(caller.events[0], Answered)
            assert len(far.of("INVITE")) == sent

    run(main())


CROWDS = {"pings": "\r\n\r\n", "messages": request("OPTIONS", via="SIP/2.0/TCP 127.0.0.1")}


@pytest.mark.parametrize("crowd", CROWDS)
@pytest.mark.parametrize("by", ["connection of ours", "connection of the far end"])
def test_so_is_what_has_arrived_by_tcp(run: Run, by: str, crowd: str) -> None:
    async def main() -> None:
        ends: list[asyncio.StreamWriter] = []
        invites: asyncio.Queue[bytes] = asyncio.Queue()

        async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            ends.append(writer)
            invites.put_nowait(await reader.readuntil(b"a=sendrecv\r\n"))

        async with tcp_server(take) as (host, port):
            caller = await Party.open()
            caller.invite(Address(host, port, Transport.TCP))
            async with asyncio.timeout(5):
                invite = parse(await invites.get())
            assert isinstance(invite, Request)
            in_front = CROWDS[crowd] * (10 * STREAM_BATCH)
            answer = (in_front + reply(invite, 200, ANSWER)).encode()
            if by == "connection of ours":
                end = ends[0].transport.get_extra_info("socket").fileno()
                assert os.write(end, answer) == len(answer)
                hold_up(TIMER_B + 0.3)
            else:
                with socket.create_connection(caller.transport.local) as sock:
                    sock.sendall(answer)
                    hold_up(TIMER_B + 0.3)
                    await until(lambda: caller.events)
            await until(lambda: caller.events)
            assert isinstance(caller.events[0], Answered)
            await caller.transport.close()

    run(main())


def test_while_the_lease_is_asked_for_messages_are_answered_and_no_timer_fires(run: Run) -> None:
    async def main() -> None:
        asked, answer = asyncio.Event(), asyncio.get_running_loop().create_future()

        async def confirm() -> bool:
            asked.set()
            return bool(await answer)

        async with called(confirm) as (caller, far, _):
            hold_up()
            async with asyncio.timeout(5):
                await asked.wait()
            sent = len(far.of("INVITE"))
            due = caller.transport.agent.next_timer()
            assert due is not None
            assert due < caller.transport.now(), "it has not fired"
            for number in range(3):
                far.send(request("OPTIONS", branch=f"z9hG4bK{number}"), caller.transport.local)
            await until(lambda: far.responses() == [200] * 3)
            assert caller.transport.agent.next_timer() == due
            assert len(far.of("INVITE")) == sent
            answer.set_result(True)
            await until(lambda: len(far.of("INVITE")) > sent)

    run(main())


async def _no() -> bool:
    return False


async def _fails() -> bool:
    raise OSError("the database is away")


async def _never() -> bool:
    await asyncio.Event().wait()
    return True


@pytest.mark.parametrize("confirm", [_no, _fails, _never])
def test_without_the_lease_no_invite_is_repeated(
    run: Run, confirm: Callable[[], Awaitable[bool]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sip_transport, "CONFIRM_WITHIN", 0.2)

    async def main() -> None:
        async with called(confirm) as (caller, far, _):
            sent = len(far.of("INVITE"))
            hold_up()
            await until(lambda: any(isinstance(event, Failed) for event in caller.events))
            assert len(far.of("INVITE")) == sent
            (failed,) = caller.events
            assert isinstance(failed, Failed)
            assert failed.why == "timeout"

    run(main())


def test_nor_is_one_sent_with_credentials(run: Run) -> None:
    async def main() -> None:
        async with called(_no) as (caller, far, invite):
            far.send(reply(invite, 401, headers=CHALLENGE), caller.transport.local)
            hold_up()
            await until(lambda: far.of("ACK"))
            await until(lambda: any(isinstance(event, Failed) for event in caller.events))
            assert not far.proven()

    run(main())


def test_with_the_lease_it_is_and_once(run: Run) -> None:
    async def yes() -> bool:
        return True

    async def main() -> None:
        async with called(yes) as (caller, far, invite):
            far.send(reply(invite, 401, headers=CHALLENGE), caller.transport.local)
            hold_up()
            await until(far.proven)
            second = far.proven()[0]
            far.send(reply(second, 200, ANSWER), caller.transport.local)
            await caller.until(Answered)

    run(main())


def test_an_answer_that_arrives_while_the_lease_is_asked_for_is_taken(run: Run) -> None:
    async def main() -> None:
        async with called() as (caller, far, invite):

            async def confirm() -> bool:
                far.send(reply(invite, 200, ANSWER), caller.transport.local)
                hold_up(TIMER_B)  # another pause
                return True

            caller.transport.confirm_lease = confirm
            hold_up()
            await until(lambda: caller.events)
            assert isinstance(caller.events[0], Answered)

    run(main())


def test_a_loop_that_is_in_time_asks_for_nothing(run: Run) -> None:
    asked: list[bool] = []

    async def confirm() -> bool:
        asked.append(True)
        return False

    async def main() -> None:
        async with called(confirm) as (caller, _, _):
            await until(lambda: any(isinstance(event, Failed) for event in caller.events))
        assert not asked

    run(main())


def test_callbacks_come_after_what_has_arrived_and_its_events(run: Run) -> None:
    async def main() -> None:
        async with called() as (caller, far, invite):
            for _ in range(5 * MAX_BATCH):
                far.send("\r\n\r\n", caller.transport.local)
            far.send(reply(invite, 200, ANSWER), caller.transport.local)
            seen: list[list[str]] = []

            def fails() -> None:
                raise RuntimeError("a fault of the caller")

            def look() -> None:
                seen.append([type(event).__name__ for event in caller.events])

            for callback in (fails, look):
                caller.transport.after_reading(callback)
            assert not seen
            await until(lambda: seen)
            assert seen == [["Answered"]]

    run(main())


def test_steady_traffic_and_ever_new_callers_delay_no_callback(run: Run) -> None:
    """Many ring time-outs while many datagrams come: each is called in time."""
    turns = 300

    async def main() -> None:
        async with called() as (caller, far, _):
            transport, loop = caller.transport, asyncio.get_running_loop()
            asked = 0
            waited: list[int] = []

            def once_more() -> None:
                nonlocal asked
                far.send("\r\n\r\n", transport.local)
                since = asked
                transport.after_reading(lambda: waited.append(asked - since))
                asked += 1
                if asked < turns:
                    loop.call_soon(once_more)

            once_more()
            await until(lambda: len(waited) == turns)
            assert max(waited) <= BUSY_PASSES + 1

    run(main())
