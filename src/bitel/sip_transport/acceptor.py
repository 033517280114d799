"""Accepts TCP and TLS connections within limits for each source and altogether."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable

from bitel.sip.grammar import Address, HostPort, Transport, source_network
from bitel.sip_transport.connection import Connection, ConnectionUser, StreamLimits

logger = logging.getLogger(__name__)

BACKLOG = 128
MAX_BATCH = 16
"""Connections accepted in one iteration of the event loop."""
ACCEPT_PAUSE = 1.0
"""Seconds without accepting after the system ran out of resources."""


class ConnectionQuota:
    """Limits the accepted connections of all listeners of an agent.

    Sources for which `accepts` is false may use half of the total; None: it is true for all.
    """

    def __init__(self, limits: StreamLimits, accepts: Callable[[str], bool] | None = None) -> None:
        self._limits = limits
        self._accepts = accepts
        self._open = Counter[str]()

    def acquire(self, host: str) -> bool:
        """Count a connection from `host`; False if a limit is reached."""
        is_known = self._accepts is None or self._accepts(host)
        limits, source = self._limits, source_network(host)
        limit = limits.accepted if is_known else limits.accepted // 2
        if self._open.total() >= limit or self._open[source] >= limits.per_source:
            return False
        self._open[source] += 1
        return True

    def release(self, host: str) -> None:
        """Count the end of a connection from `host`."""
        source = source_network(host)
        self._open[source] -= 1
        if not self._open[source]:
            del self._open[source]


class Listener:
    """Accepts connections on `sock` for `user`."""

    def __init__(
        self,
        sock: socket.socket,
        transport: Transport,
        context: ssl.SSLContext | None,
        user: ConnectionUser,
        quota: ConnectionQuota,
        limits: StreamLimits,
    ) -> None:
        self._sock = sock
        self._transport = transport
        self._context = context
        self._user = user
        self._quota = quota
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._pause_timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(sock.fileno(), self._accept)

    async def close(self) -> None:
        """Stop listening; established connections stay open."""
        if self._pause_timer is not None:
            self._pause_timer.cancel()
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        for task in self._handshakes:
            task.cancel()
        await asyncio.gather(*self._handshakes, return_exceptions=True)

    def _accept(self) -> None:
        for _ in range(MAX_BATCH):
            try:
                sock, peer = self._sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                # Out of descriptors: the socket stays readable, so the loop would spin.
                logger.error("no connection can be accepted for a while: %s", error)
                self._loop.remove_reader(self._sock.fileno())
                self._pause_timer = self._loop.call_later(ACCEPT_PAUSE, self._resume)
                return
            if not self._quota.acquire(peer[0]):
                sock.close()
                continue
            task = self._loop.create_task(self._establish(sock, peer[0], peer[1]))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    def _resume(self) -> None:
        self._pause_timer = None
        self._loop.add_reader(self._sock.fileno(), self._accept)

    async def _establish(self, sock: socket.socket, host: str, port: int) -> None:
        connection = Connection(
            self._user, Address(host, port, self._transport), self._limits, ours=False
        )
        try:
            sock.setblocking(False)
            await self._loop.connect_accepted_socket(
                lambda: connection,
                sock,
                ssl=self._context,
                ssl_handshake_timeout=self._limits.message if self._context else None,
            )
        except (OSError, asyncio.CancelledError) as error:
            sock.close()
            self._quota.release(host)
            if isinstance(error, asyncio.CancelledError):
                raise
            logger.debug("a connection from %s came to nothing: %s", host, error)
            return
        connection.closed.add_done_callback(lambda _: self._quota.release(host))


def listening_socket(bind: HostPort) -> socket.socket:
    """A listening TCP socket at `bind`. Raises OSError."""
    sock = socket.socket(
        socket.AF_INET6 if ":" in bind[0] else socket.AF_INET,
        socket.SOCK_STREAM,
        socket.IPPROTO_TCP,
    )
    try:
        sock.setblocking(False)
        # Connections of an earlier process may still be in TIME_WAIT.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(bind)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock
