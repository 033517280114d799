"""One INVITE as the dialer waits for it: what was decided, and when it was over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from bitel.dialer.media_address import MediaAddresses, Resolve
from bitel.rtp.telephone_event import MAX_DIGITS
from bitel.sip import (
    Answered,
    Ended,
    Ending,
    Event,
    Failed,
    KeyedDigits,
    MediaChanged,
    MessageDropped,
    Provisional,
)
from bitel.sip.grammar import Address
from bitel.sip.sdp import NegotiatedMedia


class CallLeg:
    """Collects the events of one call; a dialer awaits its two futures and follows its media."""

    __slots__ = (
        "_addresses",
        "_follow",
        "_media",
        "_ringing",
        "address",
        "call_id",
        "decided",
        "digits",
        "digits_at",
        "dropped_from",
        "ended",
        "ending",
    )

    def __init__(
        self, call_id: str, address: Address, ringing: Callable[[], None], resolve: Resolve
    ) -> None:
        """The INVITE was sent to `address`. `resolve` looks up the host names in the far end's
        session descriptions."""
        loop = asyncio.get_running_loop()
        self._addresses = MediaAddresses(resolve)
        self.call_id = call_id
        self.address = address
        self._ringing: Callable[[], None] | None = ringing
        self.decided: asyncio.Future[Answered | Failed] = loop.create_future()
        self.ending: asyncio.Future[None] = loop.create_future()
        """Done when the call begins to end other than by us: playback must stop."""
        self.ended: asyncio.Future[Ended] = loop.create_future()
        self.digits = ""
        """The digits received by INFO."""
        self.digits_at: float | None = None
        """When the first of them was received, by CLOCK_MONOTONIC."""
        self.dropped_from: Address | None = None
        """Where a response came from that was dropped, as its source is not accepted."""
        self._media: MediaChanged | None = None
        self._follow: Callable[[MediaChanged], None] | None = None

    async def resolved(self, agreed: NegotiatedMedia) -> NegotiatedMedia:
        """`agreed` with an IP address to send to; RemoteAddressError if its host has none."""
        return await self._addresses.resolved(agreed)

    def close(self) -> None:
        """Cancel pending look-ups: the call is over."""
        self._addresses.close()

    def follow_media(self, follow: Callable[[MediaChanged], None]) -> None:
        """Call `follow` with each change of the media; at once if there has been one."""
        self._follow = follow
        if self._media is not None:
            follow(self._media)

    def receive(self, event: Event) -> None:
        """Take note of an event of this call; those that decide nothing are passed over."""
        match event:
            case Answered() | Failed() if not self.decided.done():
                self._ringing = None  # it refers to the attempt, and that to this leg
                self.decided.set_result(event)
            case Provisional():
                if event.answer is not None:
                    self._addresses.prepare(event.answer)
                if 180 <= event.code <= 189 and self._ringing is not None:
                    self._ringing()
            case Ending():
                self._begin_to_end()
            case Ended() if not self.ended.done():
                self._begin_to_end()
                self.ended.set_result(event)
            case MediaChanged():
                self._addresses.follow(event, self._change_media)
            case MessageDropped() if event.is_response:
                self.dropped_from = event.source
            case KeyedDigits():
                if self.digits_at is None:
                    self.digits_at = time.monotonic()
                self.digits = (self.digits + event.digits)[:MAX_DIGITS]
            case _:
                pass

    def _begin_to_end(self) -> None:
        if not self.ending.done():
            self.ending.set_result(None)

    def _change_media(self, changed: MediaChanged) -> None:
        self._media = changed
        if self._follow is not None:
            self._follow(changed)
