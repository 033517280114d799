"""A bare caller for tests: a user agent on a UDP port, and what became of each of its calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from bitel.sip.auth import Credentials
from bitel.sip.config import AgentConfig
from bitel.sip.events import Answered, Ended, Event, Failed, Provisional
from bitel.sip.grammar import Address, HostPort
from bitel.sip.invite_client import Invitation
from bitel.sip.sdp import make_offer
from bitel.sip.user_agent import UserAgent
from bitel.sip_transport.transport import SipTransport

HOST = "127.0.0.1"

Kind = TypeVar("Kind", Answered, Failed, Ended, Provisional)


class Caller:
    """Places calls to `to`, and keeps every event. Timers run at `t1`; it never hangs up itself."""

    def __init__(self, to: HostPort) -> None:
        self.to = to
        self.events: dict[str, list[Event]] = {}
        self.transport: SipTransport
        self._changed = asyncio.Event()

    async def open(self, t1: float) -> None:
        """Bind a free port."""

        def make_agent(local: HostPort) -> UserAgent:
            return UserAgent(AgentConfig(local=local, t1=t1))

        self.transport = SipTransport((HOST, 0), make_agent, self._on_event)

    def call(self, number: str, rtp_port: int = 9, credentials: Credentials | None = None) -> str:
        """Send an INVITE; the Call-ID. RTP would be taken on `rtp_port`."""
        host, port = self.to
        call_id = self.transport.agent.invite(
            Invitation(
                request_uri=f"sip:{number}@{host}:{port}",
                destination=Address(*self.to),
                from_uri=f"sip:caller@{HOST}",
                offer=make_offer((HOST, rtp_port)),
                credentials=credentials,
            ),
            self.now,
        )
        self.transport.flush()
        return call_id

    @property
    def now(self) -> float:
        """The clock that the agent lives by."""
        return asyncio.get_running_loop().time()

    def cancel(self, call_id: str) -> None:
        """Give up a call that is not answered yet."""
        self.transport.agent.cancel(call_id, self.now)
        self.transport.flush()

    def hang_up(self, call_id: str) -> None:
        """End an answered call."""
        self.transport.agent.hang_up(call_id, self.now)
        self.transport.flush()

    def result(self, call_id: str) -> Answered | Failed | None:
        """What the call came to, None while it is open."""
        for event in self.events.get(call_id, ()):
            if isinstance(event, Answered | Failed):
                return event
        return None

    async def settled(self, call_id: str) -> Answered | Failed:
        """Wait for what the call comes to."""
        await self._until(lambda: self.result(call_id) is not None)
        result = self.result(call_id)
        assert result is not None
        return result

    async def saw(self, call_id: str, kind: type[Kind]) -> Kind:
        """Wait for the call's first event of that kind."""

        def found() -> Kind | None:
            events = self.events.get(call_id, ())
            return next((event for event in events if isinstance(event, kind)), None)

        await self._until(lambda: found() is not None)
        event = found()
        assert event is not None
        return event

    async def _until(self, true: Callable[[], bool], timeout: float = 20.0) -> None:
        async with asyncio.timeout(timeout):
            while not true():
                self._changed.clear()
                await self._changed.wait()

    def _on_event(self, event: Event) -> None:
        self.events.setdefault(event.call_id, []).append(event)
        self._changed.set()


@asynccontextmanager
async def caller(to: HostPort, *, t1: float = 0.5) -> AsyncIterator[Caller]:
    """A caller on a free port of 127.0.0.1."""
    one = Caller(to)
    await one.open(t1)
    try:
        yield one
    finally:
        await one.transport.close()
