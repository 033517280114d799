"""Requests outside of calls, as one awaits them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from bitel.sip import OutgoingRequest, RequestDone
from bitel.sip_transport.transport import SipTransport

Ask = Callable[[OutgoingRequest], Awaitable[RequestDone]]
"""Sends a request and waits for its final answer; code 408 or 503 where there is none."""


class PendingRequests:
    """Sends requests over `transport`, whose RequestDone events go to `receive`."""

    def __init__(self, transport: SipTransport) -> None:
        self._transport = transport
        self._waiting: dict[str, tuple[int, asyncio.Future[RequestDone]]] = {}

    async def ask(self, request: OutgoingRequest) -> RequestDone:
        """Send `request`, and wait for what it comes to: up to 64 × T1, more where challenged."""
        call_id = self._transport.agent.request(request, self._transport.now())
        done: asyncio.Future[RequestDone] = asyncio.get_running_loop().create_future()
        self._waiting[call_id] = request.cseq or 1, done
        self._transport.flush()
        try:
            return await done
        finally:
            del self._waiting[call_id]

    def receive(self, event: RequestDone) -> None:
        """Hand the answer to whoever waits for it, if anybody still does."""
        cseq, waiting = self._waiting.get(event.call_id, (0, None))
        if event.cseq < cseq:
            return  # about an earlier request of the same Call-ID, which nobody waits for any more
        if waiting is not None and not waiting.done():
            waiting.set_result(event)
