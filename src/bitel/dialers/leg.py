"""One INVITE as the dialer waits for it: what was decided, and when it was over."""

from __future__ import annotations

import asyncio

from bitel.sip import Answered, Ended, Event, Failed, SessionDescription


class Leg:
    """Collects the events of one call; a dialer awaits its two futures."""

    __slots__ = ("call_id", "decided", "ended", "offer")

    def __init__(self, call_id: str, offer: SessionDescription) -> None:
        loop = asyncio.get_running_loop()
        self.call_id = call_id
        self.offer = offer
        self.decided: asyncio.Future[Answered | Failed] = loop.create_future()
        self.ended: asyncio.Future[Ended] = loop.create_future()

    def receive(self, event: Event) -> None:
        """Take note of an event of this call; those that decide nothing are passed over."""
        match event:
            case Answered() | Failed() if not self.decided.done():
                self.decided.set_result(event)
            case Ended() if not self.ended.done():
                self.ended.set_result(event)
            case _:
                pass
