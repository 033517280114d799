"""An agent on real sockets of this machine, and what became of its calls."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from bitel.sip import (
    AgentConfig,
    Answered,
    Confirmed,
    Ended,
    Event,
    Incoming,
    Invitation,
    UserAgent,
    make_answer,
    make_offer,
)
from bitel.sip.grammar import Address, HostPort, Transport, host_in_uri
from bitel.sip_transport.connection import StreamLimits
from bitel.sip_transport.tls import TlsFiles
from bitel.sip_transport.transport import SipTransport, Tap

HOME: HostPort = ("127.0.0.1", 0)

Link = Callable[[bytes, Address], Iterable[tuple[float, bytes]]]
"""What really leaves for a datagram, and after how many seconds."""


def agent_at(local: HostPort) -> UserAgent:
    return UserAgent(AgentConfig(local, t1=0.05))


class Party:
    """A transport, the events it gave, and a way to wait for one."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.changed = asyncio.Event()
        self.transport: SipTransport
        self.on_event: Callable[[Event], None] | None = None

    @classmethod
    async def open(
        cls,
        link: Link | None = None,
        *,
        bind: HostPort = HOME,
        tls: TlsFiles | None = None,
        limits: StreamLimits | None = None,
        tap: Tap | None = None,
    ) -> Party:
        party = cls()
        party.transport = SipTransport(bind, agent_at, party.take, tls=tls, limits=limits, tap=tap)
        if link is not None:
            party._put_between(link)
        return party

    def _put_between(self, link: Link) -> None:
        """Have datagrams leave as `link` says."""
        socket = self.transport._udp
        send, call_later = socket.send, asyncio.get_running_loop().call_later

        def send_by_link(data: bytes, destination: Address) -> None:
            for delay, datagram in link(data, destination):
                call_later(delay, send, datagram, destination)

        socket.send = send_by_link  # type: ignore[method-assign]

    def at(self, transport: Transport = Transport.UDP, domain: str = "") -> Address:
        """Where it is reached by a transport."""
        host, port = self.transport.local
        port += transport is Transport.TLS
        return Address(host, port, transport, domain)

    def take(self, event: Event) -> None:
        self.events.append(event)
        self.changed.set()
        if self.on_event is not None:
            self.on_event(event)

    async def until(self, kind: type[Event]) -> Event:
        async with asyncio.timeout(10):
            while not any(isinstance(event, kind) for event in self.events):
                self.changed.clear()
                await self.changed.wait()
        return next(event for event in self.events if isinstance(event, kind))

    def invite(self, destination: Address, *headers: tuple[str, str]) -> str:
        call_id = self.transport.agent.invite(
            Invitation(
                f"sip:1@{host_in_uri(destination.host)}:{destination.port}",
                destination,
                "sip:us@127.0.0.1",
                make_offer((self.transport.local[0], 30000)),
                headers=headers,
            ),
            self.transport.now(),
        )
        self.transport.flush()
        return call_id


def answers(party: Party) -> Callable[[Event], None]:
    def take(event: Event) -> None:
        if isinstance(event, Incoming):
            assert event.offer is not None
            answer = make_answer(event.offer, (party.transport.local[0], 40000))
            party.transport.agent.accept(event.call_id, answer, party.transport.now())

    return take


async def one_call(
    caller: Party, callee: Party, transport: Transport = Transport.UDP, domain: str = ""
) -> None:
    call_id = caller.invite(callee.at(transport, domain))
    await caller.until(Answered)
    await callee.until(Confirmed)
    caller.transport.agent.hang_up(call_id, caller.transport.now())
    caller.transport.flush()
    assert await caller.until(Ended) == Ended(call_id, "us", 16)
    assert await callee.until(Ended) == Ended(call_id, "far", 16)
