"""An agent on UDP, on real sockets of this machine."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import uvloop

from bitel.sip import (
    Answered,
    DeliveryDoubted,
    Event,
    Failed,
    Incoming,
    Invitation,
    make_offer,
)
from bitel.sip.grammar import Address
from bitel.sip_transport.transport import SipTransport
from tests.support.prerequisites import need_ipv6
from tests.support.sip_party import HOME, Party, agent_at, answers, one_call


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


async def test_a_call_from_end_to_end(caller: Party, callee: Party) -> None:
    await one_call(caller, callee)


async def test_a_lossy_link_is_made_up_for_by_timers(callee: Party) -> None:
    seen: set[bytes] = set()

    def link(data: bytes, destination: Address) -> list[tuple[float, bytes]]:
        # The first copy of everything is lost, the second comes late and twice.
        if data not in seen:
            seen.add(data)
            return []
        return [(0.01, data), (0.0, data)]

    caller = await Party.open(link)
    try:
        await one_call(caller, callee)
        assert caller.transport.agent.counts().retransmissions > 0
    finally:
        await caller.transport.close()


def free_port() -> Address:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(HOME)
        host, port = sock.getsockname()
        return Address(host, port)


async def dead_trunk(caller: Party, callee: Party) -> None:
    """ICMP casts doubt on the calls to a port where nobody listens, and ends none."""
    dead = free_port()
    doubted = {caller.invite(dead) for _ in range(3)}
    caller.invite(callee.at())
    await caller.until(Answered)
    async with asyncio.timeout(10):
        while len([e for e in caller.events if isinstance(e, DeliveryDoubted)]) < 3:
            caller.changed.clear()
            await caller.changed.wait()
    doubts = [event for event in caller.events if isinstance(event, DeliveryDoubted)]
    assert {(event.call_id, event.destination) for event in doubts} == {
        (call_id, dead) for call_id in doubted
    }
    assert not [event for event in caller.events if isinstance(event, Failed)]
    # The socket is still being read.
    caller.events.clear()
    callee.events.clear()
    await one_call(caller, callee)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ICMP errors are read on Linux")
async def test_a_port_where_nobody_listens(caller: Party, callee: Party) -> None:
    await dead_trunk(caller, callee)


def on_uvloop(test: Callable[[Party, Party], Awaitable[None]]) -> None:
    async def main() -> None:
        caller, callee = await Party.open(), await Party.open()
        callee.on_event = answers(callee)
        try:
            await test(caller, callee)
        finally:
            await caller.transport.close()
            await callee.transport.close()

    uvloop.run(main())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ICMP errors are read on Linux")
@pytest.mark.parametrize("test", [one_call, dead_trunk])
def test_on_uvloop_too(test: Callable[[Party, Party], Awaitable[None]]) -> None:
    on_uvloop(test)


async def test_a_destination_that_cannot_be_sent_to(caller: Party) -> None:
    # An IPv6 destination is beyond an IPv4 socket.
    caller.invite(Address("2001:db8::1", 5060))
    failed = await caller.until(Failed)
    assert isinstance(failed, Failed)
    assert failed.why == "transport"


async def test_a_fault_of_the_taker_hurts_no_other_event(
    caller: Party, callee: Party, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(event: Event) -> None:
        raise RuntimeError("taker")

    caller.on_event = fails
    with caplog.at_level(logging.ERROR):
        await one_call(caller, callee)
    assert "was not handled" in caplog.text


async def test_garbage_does_no_harm(caller: Party, callee: Party) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for data in (b"", b"\0" * 100, b"\xff" * 60000, b"INVITE", b"SIP/2.0 200 OK\r\n\r\n"):
            sock.sendto(data, callee.transport.local)
    await one_call(caller, callee)


async def test_a_port_that_is_taken(caller: Party) -> None:
    with pytest.raises(OSError, match="in use"):
        SipTransport(caller.transport.local, agent_at, lambda event: None)


async def test_close_sends_what_is_queued_and_may_be_repeated(callee: Party) -> None:
    caller = await Party.open()
    caller.invite(callee.at())
    await caller.transport.close()
    await caller.transport.close()
    caller.transport.flush()
    await callee.until(Incoming)


async def test_events_are_never_handed_out_from_within_a_call(caller: Party) -> None:
    caller.invite(Address("2001:db8::1", 5060))
    assert caller.events == []


async def test_ipv6_on_this_machine() -> None:
    need_ipv6()
    callee = Party()
    callee.transport = SipTransport(("::1", 0), agent_at, callee.take)
    caller = Party()
    caller.transport = SipTransport(("::1", 0), agent_at, caller.take)
    host, port = callee.transport.local
    caller.transport.agent.invite(
        Invitation(
            f"sip:1@[{host}]:{port}", Address(host, port), "sip:us@h", make_offer(("::1", 4000))
        ),
        caller.transport.now(),
    )
    caller.transport.flush()
    incoming = await callee.until(Incoming)
    assert isinstance(incoming, Incoming)
    assert incoming.source[:2] == caller.transport.local
    await caller.transport.close()
    await callee.transport.close()
