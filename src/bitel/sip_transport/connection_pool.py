"""The TCP and TLS connections of an agent, by address; opened when first needed."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Container
from typing import Final, Protocol

from bitel.sip.framing import FramingError
from bitel.sip.grammar import MAX_PORT, Address, Transport
from bitel.sip.headers import alias_of, response_route
from bitel.sip_transport.connection import Connection, ConnectionUser, StreamLimits
from bitel.sip_transport.tls import TlsFiles

logger = logging.getLogger(__name__)

_RESPONSE = b"SIP/2.0 "
CLOSE_WITHIN = 1.0
"""Seconds for a connection to send its queued messages after a framing error."""
MAX_PAUSED = 4096
"""Destinations remembered as paused after a failed attempt."""


class StreamUser(Protocol):
    """Callbacks of a `ConnectionPool`."""

    def messages_received(self, messages: list[tuple[bytes, Address]]) -> None:
        """Messages were received, each with its source."""

    def unframed_received(self, messages: tuple[bytes, ...], source: Address) -> None:
        """Framing failed at a message of unknown length, which others may follow. The connection is
        closed after the queued responses are sent."""

    def delivery_failed(
        self,
        destination: Address,
        *,
        lost: bool = False,
        unacknowledged: Container[bytes] | None = None,
        moved: Container[bytes] = (),
    ) -> None:
        """A connection could not be made, or an established one was `lost`.

        `unacknowledged` are its INVITEs that may not have arrived, None if unknown; `moved` are
        unsent messages, which are sent over another connection.
        """


class ConnectionPool(ConnectionUser):
    """Needs a running event loop. `local` is the host that connections are bound to.

    Without a TLS listener, `tls_port` is the port of our TLS Contact, else 0. TLS connections are
    bound to it, so that a peer which follows the Contact reuses the open one.
    """

    def __init__(
        self,
        user: StreamUser,
        limits: StreamLimits,
        tls: TlsFiles,
        local: str | None,
        tls_port: int = 0,
    ) -> None:
        self._user = user
        self._limits = limits
        self._tls = tls
        self._local = local
        self._tls_port = tls_port
        self._context: ssl.SSLContext | None = None
        self._loop = asyncio.get_running_loop()
        self._connections: dict[Address, Connection] = {}
        self._aliases: dict[Address, Connection] = {}
        # Opened only for a response, which any source can cause.
        self._answering: set[Address] = set()
        self._waiting: dict[Address, list[bytes]] = {}
        self._attempts: dict[Address, asyncio.Task[None]] = {}
        self._paused_until: dict[Address, float] = {}
        self._check_timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.arrivals = 0
        """Messages received and connections established so far."""

    def __len__(self) -> int:
        """The number of connections."""
        return len(self._connections)

    def send(self, data: bytes, destination: Address) -> None:
        """Send over the connection to `destination`, or a new one."""
        connection = self._find(destination)
        is_response = connection is None and data.startswith(_RESPONSE)
        if is_response:
            route = response_route(data, destination)
            if route is None:
                return
            destination, connection = route, self._find(route)
        if connection is not None:
            # If that fails, the connection is closing, and `connection_lost` follows.
            connection.send(data, destination)
        elif destination in self._waiting:
            # Beyond the limit it is dropped.
            waiting = self._waiting[destination]
            if sum(map(len, waiting)) + len(data) <= self._limits.unsent:
                waiting.append(data)
        elif not is_response:
            self._open(data, destination)
        elif len(self._answering) < self._limits.answering:
            self._answering.add(destination)
            self._open(data, destination)

    def withdraw(self, data: bytes, destination: Address) -> None:
        """Drop a message that waits for its connection, or for a probe of it."""
        waiting = self._waiting.get(destination, [])
        if data in waiting:
            waiting.remove(data)
        if connection := self._find(destination):
            connection.withdraw(data)

    @property
    def behind(self) -> bool:
        """Whether received messages are not yet processed."""
        return any(connection.behind for connection in self._connections.values())

    async def close(self) -> None:
        """Close all connections; queued messages have one second to be sent."""
        self._closed = True
        if self._check_timer is not None:
            self._check_timer.cancel()
        for task in self._attempts.values():
            task.cancel()
        await asyncio.gather(*self._attempts.values(), return_exceptions=True)
        connections = list(self._connections.values())
        for connection in connections:
            connection.close()
        if connections:
            await asyncio.wait([each.closed for each in connections], timeout=1.0)
        for connection in connections:
            connection.abort()

    def _find(self, destination: Address) -> Connection | None:
        return self._connections.get(destination) or self._aliases.get(destination)

    # Opening

    def _open(self, data: bytes, destination: Address) -> None:
        now = self._loop.time()
        ours = len(self._attempts) + sum(each.ours for each in self._connections.values())
        full = ours - len(self._answering) >= self._limits.opened
        full = full and destination not in self._answering
        paused = self._paused_until.get(destination, 0.0) > now
        if paused or full or self._closed:
            self._answering.discard(destination)
            self._user.delivery_failed(destination)
            return
        self._waiting[destination] = [data]
        self._attempts[destination] = self._loop.create_task(self._connect(destination))

    def renew_context(self) -> None:
        """Read the TLS files again for the next connection."""
        self._context = None

    async def _connect(self, destination: Address) -> None:
        is_tls = destination.transport is Transport.TLS
        try:
            if is_tls and self._context is None:
                self._context = self._tls.client_context()
            async with asyncio.timeout(self._limits.connecting):
                port = self._tls_port if is_tls else 0
                sock = await connected_socket(destination, self._local, port)
                # From here on the event loop closes the socket.
                await self._loop.create_connection(
                    lambda: Connection(self, destination, self._limits, ours=True),
                    sock=sock,
                    ssl=self._context if is_tls else None,
                    server_hostname=(destination.domain or destination.host) if is_tls else None,
                )
        # ValueError: unusable files, or a name that is invalid in a certificate.
        except (OSError, ValueError) as error:
            self._failed(destination, error)
        finally:
            self._attempts.pop(destination, None)
            self._waiting.pop(destination, None)

    def _failed(self, destination: Address, error: Exception) -> None:
        fault = str(error) or f"no answer within {self._limits.connecting:g} s"
        place = f"{destination.host} port {destination.port}"
        logger.warning("no %s connection to %s: %s", destination.transport, place, fault)
        while len(self._paused_until) >= MAX_PAUSED:
            del self._paused_until[next(iter(self._paused_until))]
        # Also fails what the agent has queued by now.
        self._paused_until[destination] = self._loop.time() + self._limits.pause
        self._waiting.pop(destination, None)
        self._answering.discard(destination)
        self._user.delivery_failed(destination)

    # Callbacks of connections

    def connection_made(self, connection: Connection) -> None:
        """See `ConnectionUser.connection_made`."""
        if self._closed:
            connection.abort()
            return
        self.arrivals += 1
        self._connections[connection.address] = connection
        for data in self._waiting.pop(connection.address, ()):
            connection.send(data, connection.address)
        if self._check_timer is None:
            self._check_timer = self._loop.call_later(
                self._limits.look_every, self._check_connections
            )

    def message_received(self, connection: Connection, data: bytes) -> None:
        """See `ConnectionUser.message_received`."""
        self.arrivals += 1
        source = connection.address
        if not connection.ours and not connection.known and source.transport is Transport.TLS:
            alias = alias_of(data, source)
            if alias is not None:
                self._aliases[alias] = connection
        connection.known = True
        self._user.messages_received([(data, source)])

    def framing_failed(self, connection: Connection, fault: FramingError) -> None:
        """See `ConnectionUser.framing_failed`."""
        logger.info("the stream from %s is no SIP any more: %s", connection.address.host, fault)
        if fault.messages:
            self._user.unframed_received(fault.messages, connection.address)
        # The agent's ACKs and responses are written in the turn before this. Unanswered requests
        # are sent again over a new connection.
        self._loop.call_soon(self._close_broken, connection)

    def _close_broken(self, connection: Connection) -> None:
        connection.close()
        self._loop.call_later(CLOSE_WITHIN, connection.abort)
        # Further messages need a new connection.
        self.connection_lost(connection)

    def probe_failed(self, connection: Connection) -> None:
        """See `ConnectionUser.probe_failed`."""
        host = connection.address.host
        logger.info("the connection with %s is closed: it was idle, and is dead", host)
        connection.abort()
        self.connection_lost(connection)

    def connection_lost(self, connection: Connection) -> None:
        """See `ConnectionUser.connection_lost`."""
        aliases = [key for key, each in self._aliases.items() if each is connection]
        for alias in aliases:
            del self._aliases[alias]
        if self._connections.get(connection.address) is not connection:
            return
        del self._connections[connection.address]
        self._answering.discard(connection.address)
        if self._closed:
            return
        held, unacknowledged = connection.take_held(), connection.unacknowledged()
        moved = frozenset(data for data, _ in held)
        for destination in (connection.address, *aliases):
            self._user.delivery_failed(
                destination, lost=True, unacknowledged=unacknowledged, moved=moved
            )
        for data, destination in held:
            self.send(data, destination)

    def _check_connections(self) -> None:
        self._check_timer = None
        for connection in list(self._connections.values()):
            fault = connection.check_liveness()
            if fault is not None:
                logger.info("the connection with %s is closed: %s", connection.address.host, fault)
        if self._connections:
            self._check_timer = self._loop.call_later(
                self._limits.look_every, self._check_connections
            )


_PORT_IS_TAKEN: Final = {errno.EADDRINUSE, errno.EADDRNOTAVAIL}


async def connected_socket(destination: Address, host: str | None, port: int) -> socket.socket:
    """Connect to `destination` from `host` (None: any), and from `port` if it is free (0: any).

    Raises OSError.
    """
    if 0 < port <= MAX_PORT:
        try:
            return await _connected(destination, host, port)
        except OSError as error:
            # The port is bound, or the last such connection is in TIME_WAIT.
            if error.errno not in _PORT_IS_TAKEN:
                raise
    return await _connected(destination, host, 0)


async def _connected(destination: Address, host: str | None, port: int) -> socket.socket:
    is_ipv6 = ":" in destination.host
    sock = socket.socket(
        socket.AF_INET6 if is_ipv6 else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP
    )
    try:
        sock.setblocking(False)
        if port:
            # Connections to several destinations share one port.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host is not None or port:
            sock.bind((host or ("::" if is_ipv6 else "0.0.0.0"), port))
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, (destination.host, destination.port))
    except BaseException:
        sock.close()
        raise
    return sock
