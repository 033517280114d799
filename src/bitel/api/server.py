"""HTTP protocol for uvicorn with limits: sizes, times and numbers of connections.

uvicorn limits neither the size of a request's head, nor the time that it takes to arrive, nor the
time for which a response stays unread; this subclass of its protocol does.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, Final

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from bitel.api.responses import failure
from bitel.errors import InvalidRequestError
from bitel.ip_addresses import embedded_ipv4
from bitel.settings import HttpSettings

LONGEST_HEAD: Final = 32 * 1024
"""Bytes of a request besides its body and as many again for chunked framing, trailers included."""
HEAD_SECONDS: Final = 10.0
"""Seconds for the head of a request, and for the first byte on a new connection."""
MOST_CONNECTIONS: Final = 4096
UNREAD_SECONDS: Final = 60.0
"""Seconds within which a client must read the transport's buffer, 64 KiB."""
MOST_PIPELINED: Final = 64
"""Pipelined requests on one connection."""

END_STREAM: Final = "bitel.end_stream"
"""Key of the ASGI scope with a function that ends the response to the request, which would not end
by itself; called when the server shuts down."""


class BoundedProtocol(HttpToolsProtocol):
    """A connection that is aborted when it exceeds one of the limits above."""

    _overhead = 0
    _in_head = True
    _head_timer: asyncio.TimerHandle | None = None
    _unread_timer: asyncio.TimerHandle | None = None
    _unanswered: Sequence[RequestResponseCycle] = ()
    _source = ""

    def __init__(self, *args: Any, sources: Sources | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self._sources = sources

    # uvicorn's own signature, which is narrower than asyncio's.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection, unless there are too many."""
        super().connection_made(transport)
        if len(self.connections) > MOST_CONNECTIONS or not self._is_admitted():
            transport.close()
            return
        _limit_unread(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers and cancel all requests that are not answered yet."""
        self._stop_timer()
        self._stop_unread_timer()
        if self._sources is not None and self._source:
            self._sources.leave(self._source)
        super().connection_lost(exc)
        # uvicorn marks only the last of several pipelined requests as disconnected.
        for cycle in self._unanswered:
            cycle.disconnected = True
            cycle.message_event.set()

    def _is_admitted(self) -> bool:
        host = self.client[0] if self.client else ""
        if self._sources is None or not host:
            return True
        if not self._sources.enter(host):
            return False
        self._source = host
        return True

    def shutdown(self) -> None:
        """End the connection after its requests in progress, and those without end at once."""
        for cycle in self._unanswered:
            end: Any = cycle.scope.get(END_STREAM)
            if end is not None and not cycle.response_complete:
                end()
        super().shutdown()

    def pause_writing(self) -> None:
        """Start the limit for a client that does not read its answers."""
        super().pause_writing()
        self._stop_unread_timer()
        self._unread_timer = self.loop.call_later(UNREAD_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop that limit: the client reads again."""
        self._stop_unread_timer()
        super().resume_writing()

    def _stop_unread_timer(self) -> None:
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def data_received(self, data: bytes) -> None:
        """Parse received bytes; abort if a request head is too long or too slow."""
        self._overhead += len(data)
        super().data_received(data)
        if self._overhead > LONGEST_HEAD:
            self.transport.abort()
        elif self._in_head and self._overhead and self._head_timer is None:
            self._start_timer()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no HTTP request, as all errors are answered, and disconnect."""
        body = bytes(failure(InvalidRequestError("the request is not valid HTTP/1.1")).body)
        head = (
            "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

    def on_headers_complete(self) -> None:
        """Stop the head's timer and limit the pipelined requests."""
        self._in_head = False
        self._stop_timer()
        super().on_headers_complete()
        waiting = [cycle for cycle in self._unanswered if not cycle.response_complete]
        self._unanswered = [*waiting, self.cycle]
        if len(self._unanswered) > MOST_PIPELINED:
            self.transport.abort()

    def on_body(self, body: bytes) -> None:
        """Pass on a part of the body."""
        # The body is not overhead, and allows as many bytes of framing as it has.
        self._overhead -= 2 * len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Expect the head of the next request."""
        self._in_head = True
        self._overhead = 0
        super().on_message_complete()

    def _start_timer(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def _limit_unread(transport: asyncio.Transport) -> None:
    """Have the kernel end a connection whose peer takes no data for `UNREAD_SECONDS`.

    This includes connections that are closed with an unread response in the buffer.
    """
    sock = transport.get_extra_info("socket")
    if sock is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        with contextlib.suppress(OSError):  # not a TCP socket
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNREAD_SECONDS * 1000))


class Sources:
    """Counts connections by source: an IPv4 address or an IPv6 /64 network.

    Those of `trusted_proxies` (networks) are not counted.
    """

    def __init__(self, most: int, trusted_proxies: Sequence[str]) -> None:
        self._most = most
        self._trusted = [ipaddress.ip_network(each) for each in trusted_proxies]
        self._count = Counter[str]()
        self._network_of = lru_cache(maxsize=4096)(self._look_up)

    def enter(self, host: str) -> bool:
        """Count a connection of `host`; False if it has too many."""
        network = self._network_of(host)
        if network is None:
            return True
        if self._count[network] >= self._most:
            return False
        self._count[network] += 1
        return True

    def leave(self, host: str) -> None:
        """Count the end of a connection that was accepted."""
        network = self._network_of(host)
        if network is None:
            return
        self._count[network] -= 1
        if self._count[network] <= 0:
            del self._count[network]

    def _look_up(self, host: str) -> str | None:
        """The source of `host`; None for a trusted proxy."""
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return host
        address = embedded_ipv4(address) or address
        if any(each.version == address.version and address in each for each in self._trusted):
            return None
        if address.version == 4:
            return str(address)
        return str(ipaddress.IPv6Address(int(address) >> 64 << 64))


def config(app: FastAPI, http: HttpSettings | None = None, **more: Any) -> uvicorn.Config:
    """The configuration of uvicorn for `app`, with these limits; `more` are further options.

    Without `http`, connections are not counted by source. There is no Server header and no access
    log, and logging is not configured.
    """
    protocol: Any = BoundedProtocol
    if http is not None:
        sources = Sources(http.connections_per_source, http.trusted_proxies)
        protocol = partial(BoundedProtocol, sources=sources)
    return uvicorn.Config(
        app,
        http=protocol,
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
