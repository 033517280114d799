"""A UDP socket for SIP: hands out datagrams as they come, keeps those that can't leave yet.

The socket is read and written directly, since asyncio's datagram protocol does not say to which
destination a datagram could not be delivered.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import deque
from typing import Protocol

from bitel.sip.grammar import Address, HostPort
from bitel.transports.icmp import ask_for_errors, unreachable

RECEIVE_BUFFER = 4 * 1024 * 1024
MAX_BATCH = 64
"""Datagrams read in one go, so that a flood leaves the loop time for everything else."""
LONGEST = 65_536
"""Bytes; no datagram has as many."""
MAX_SOURCES = 1024
"""Addresses that are remembered, so that none is made for each datagram of a carrier's."""
MAX_UNSENT = 50_000
_BUSY = (errno.EAGAIN, errno.ENOBUFS)


class DatagramUser(Protocol):
    """Whose socket it is."""

    def datagrams_came(self, datagrams: list[tuple[bytes, Address]]) -> None: ...

    def datagrams_failed(self, destinations: list[Address]) -> None:
        """They can't be reached; perhaps none."""


def datagram_socket(bind: HostPort) -> socket.socket:
    """A UDP socket at `bind`, an IP address and a port. Raises OSError."""
    family = socket.AF_INET6 if ":" in bind[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        ask_for_errors(sock)
        sock.bind(bind)
    except BaseException:
        sock.close()
        raise
    return sock


class UdpSocket:
    """Reads and writes `sock` for `user`. Made within a running loop."""

    def __init__(self, sock: socket.socket, user: DatagramUser) -> None:
        self._sock = sock
        self._user = user
        self._loop = asyncio.get_running_loop()
        self._sources: dict[tuple[str | int, ...], Address] = {}
        self._unsent: deque[tuple[bytes, Address]] = deque()
        self._closed = False
        self._behind_since: float | None = None
        self._loop.add_reader(sock.fileno(), self._receive)

    @property
    def behind(self) -> float:
        """Seconds for which more datagrams have been waiting than were read in one go; else 0."""
        return 0.0 if self._behind_since is None else self._loop.time() - self._behind_since

    @property
    def is_behind(self) -> bool:
        """Whether more datagrams were waiting than were read in one go."""
        return self._behind_since is not None

    def close(self) -> None:
        """Let go of the socket."""
        self._closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()

    def send(self, data: bytes, destination: Address) -> None:
        """Send a datagram, or keep it while the socket is full."""
        if self._closed:
            return
        if self._unsent:
            self._keep(data, destination)
        elif not self._try_to_send(data, destination):
            self._keep(data, destination)
            self._loop.add_writer(self._sock.fileno(), self._send_kept)

    def _receive(self) -> None:
        came: list[tuple[bytes, Address]] = []
        for _ in range(MAX_BATCH):
            try:
                data, name = self._sock.recvfrom(LONGEST)
            except BlockingIOError:
                break
            except OSError:
                self._take_errors()
                continue
            source = self._sources.get(name)
            if source is None:
                if len(self._sources) >= MAX_SOURCES:
                    self._sources.clear()
                source = self._sources[name] = Address(name[0], name[1])
            came.append((data, source))
        if len(came) < MAX_BATCH:
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = self._loop.time()
        self._user.datagrams_came(came)

    def _take_errors(self) -> None:
        self._user.datagrams_failed(unreachable(self._sock))
        # uvloop stops watching a socket that had an error.
        self._loop.remove_reader(self._sock.fileno())
        self._loop.add_reader(self._sock.fileno(), self._receive)

    def _keep(self, data: bytes, destination: Address) -> None:
        # Beyond this the datagram is lost, as datagrams may be; SIP repeats what matters.
        if len(self._unsent) < MAX_UNSENT:
            self._unsent.append((data, destination))

    def _send_kept(self) -> None:
        while self._unsent:
            if not self._try_to_send(*self._unsent[0]):
                return
            self._unsent.popleft()
        self._loop.remove_writer(self._sock.fileno())

    def _try_to_send(self, data: bytes, destination: Address) -> bool:
        """False where the socket is full. A destination that can't be reached is told of."""
        for first_try in (True, False):
            try:
                self._sock.sendto(data, destination[:2])
            except OSError as error:
                if error.errno in _BUSY:
                    return False
                # On the first try the error may be about an earlier datagram to someone else.
                if first_try and error.errno == errno.ECONNREFUSED:
                    self._take_errors()
                    continue
                self._user.datagrams_failed([destination])
            return True
        return True
