"""HTTP connections with limits: what a stranger may send, and how long, before a request is one.

uvicorn bounds neither the size of a request's head nor the time that it takes to arrive; this
subclass of its protocol does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

LONGEST_HEAD: Final = 32 * 1024
"""Bytes of a request that are not body, beyond as many again as the body has: room for the
framing of a chunked one, not for trailers without end."""
HEAD_SECONDS: Final = 10.0
"""How long the head of a request may take to arrive, and a new connection to begin one."""
MOST_CONNECTIONS: Final = 4096
MOST_PIPELINED: Final = 64
"""Requests that may be sent ahead on one connection, before the first is answered."""


class BoundedProtocol(HttpToolsProtocol):
    """A connection that is cut when it passes one of the limits above."""

    _overhead = 0
    _in_head = True
    _head_timer: asyncio.TimerHandle | None = None
    _unanswered: Sequence[RequestResponseCycle] = ()

    # uvicorn's own signature, which is narrower than asyncio's.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS:
            transport.close()
            return
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)
        # uvicorn tells only the last of several pipelined requests that nobody listens any more.
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()

    def data_received(self, data: bytes) -> None:
        self._overhead += len(data)
        super().data_received(data)
        if self._overhead > LONGEST_HEAD:
            self.transport.abort()
        elif self._in_head and self._overhead and self._head_timer is None:
            self._start_timer()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._stop_timer()
        super().on_headers_complete()
        waiting = [cycle for cycle in self._unanswered if not cycle.response_complete]
        self._unanswered = [*waiting, self.cycle]
        if len(self._unanswered) > MOST_PIPELINED:
            self.transport.abort()

    def on_body(self, body: bytes) -> None:
        # The body itself is not overhead, and pays for as much framing as it has bytes.
        self._overhead -= 2 * len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_head = True
        self._overhead = 0
        super().on_message_complete()

    def _start_timer(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def config(app: FastAPI, **more: Any) -> uvicorn.Config:
    """How uvicorn is to run `app`, with these limits; `more` are further options of uvicorn's.

    It neither names itself in its answers nor writes an access log, and leaves logging as it is.
    """
    return uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        backlog=2048,
        **more,
    )
