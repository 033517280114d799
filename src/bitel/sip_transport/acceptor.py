"""Accepts TCP and TLS connections, up to a number for all and for each source."""

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
"""Connections taken in one go."""
REST = 1.0
"""Seconds without accepting, after the system had no room for another connection."""


class Door:
    """Counts the accepted connections of all listeners of one agent.

    Hosts that `accepts` is false of get half of the room together; None: it is true of all.
    """

    def __init__(self, limits: StreamLimits, accepts: Callable[[str], bool] | None = None) -> None:
        self._limits = limits
        self._accepts = accepts
        self._inside = Counter[str]()

    def enter(self, host: str) -> bool:
        """Count one more connection of `host`; False if there are enough."""
        is_known = self._accepts is None or self._accepts(host)
        inside, limits, host = self._inside, self._limits, source_network(host)
        # A stranger's connections must not take the room of the carrier's.
        room = limits.accepted if is_known else limits.accepted // 2
        if inside.total() >= room or inside[host] >= limits.per_source:
            return False
        inside[host] += 1
        return True

    def leave(self, host: str) -> None:
        """Count one connection of `host` less."""
        host = source_network(host)
        self._inside[host] -= 1
        if not self._inside[host]:
            del self._inside[host]


class Listener:
    """Accepts on `sock`. `user` is told of each connection once its TLS is established."""

    def __init__(
        self,
        sock: socket.socket,
        transport: Transport,
        context: ssl.SSLContext | None,
        user: ConnectionUser,
        door: Door,
        limits: StreamLimits,
    ) -> None:
        self._sock = sock
        self._transport = transport
        self._context = context
        self._user = user
        self._door = door
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._greeting: set[asyncio.Task[None]] = set()
        self._resting: asyncio.TimerHandle | None = None
        self._loop.add_reader(sock.fileno(), self._accept)

    async def close(self) -> None:
        """Listen no more. Connections that stand are not touched."""
        if self._resting is not None:
            self._resting.cancel()
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()
        for task in self._greeting:
            task.cancel()
        await asyncio.gather(*self._greeting, return_exceptions=True)

    def _accept(self) -> None:
        for _ in range(MAX_BATCH):
            try:
                sock, peer = self._sock.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                # Out of files: the ones that wait would be offered again at once, and for ever.
                logger.error("no connection can be accepted for a while: %s", error)
                self._loop.remove_reader(self._sock.fileno())
                self._resting = self._loop.call_later(REST, self._go_on)
                return
            if not self._door.enter(peer[0]):
                sock.close()
                continue
            task = self._loop.create_task(self._greet(sock, peer[0], peer[1]))
            self._greeting.add(task)
            task.add_done_callback(self._greeting.discard)

    def _go_on(self) -> None:
        self._resting = None
        self._loop.add_reader(self._sock.fileno(), self._accept)

    async def _greet(self, sock: socket.socket, host: str, port: int) -> None:
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
            self._door.leave(host)
            if isinstance(error, asyncio.CancelledError):
                raise
            logger.debug("a connection from %s came to nothing: %s", host, error)
            return
        connection.closed.add_done_callback(lambda _: self._door.leave(host))


def listening_socket(bind: HostPort) -> socket.socket:
    """A TCP socket that listens at `bind`, an IP address and a port. Raises OSError."""
    sock = socket.socket(
        socket.AF_INET6 if ":" in bind[0] else socket.AF_INET,
        socket.SOCK_STREAM,
        socket.IPPROTO_TCP,
    )
    try:
        sock.setblocking(False)
        # Connections of the last run that are not quite over must not stop this one.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(bind)
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock
