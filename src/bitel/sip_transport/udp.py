"""A UDP socket for SIP, with a bounded send queue and ICMP errors.

The socket is read and written directly, because asyncio's datagram protocol does not report which
datagram was not delivered. On Linux, ICMP errors are read from the error queue (`ip(7)`
IP_RECVERR), with the destination and the quoted start of the datagram. They may be forged.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import struct
import sys
from collections import deque
from typing import NamedTuple, Protocol

from bitel.sip.grammar import Address, HostPort

RECEIVE_BUFFER = 4 * 1024 * 1024
MAX_BATCH = 64
"""Datagrams read in one iteration of the event loop, so that a flood does not block it."""
LONGEST = 65_536
"""Read size in bytes; longer than any datagram."""
MAX_SOURCES = 1024
"""Cached source addresses."""
MAX_UNSENT = 50_000
MAX_UNSENT_BYTES = 64 * 1024 * 1024
"""Datagrams, and their bytes, that are queued while the socket is full."""
SEND_TRIES = 4
"""Attempts to send a datagram while `sendto` reports ICMP errors about earlier ones."""
_BUSY = (errno.EAGAIN, errno.ENOBUFS)


_IP_RECVERR = 11
_IPV6_RECVERR = 25
_EXTENDED_ERROR = struct.Struct("=IBBBB")  # errno, origin, type, code, padding
_ANCILLARY_SPACE = 512
_QUOTED = 1024
"""Bytes read of the quoted datagram: an error has 576 (RFC 1812 §4.3.2.3), or 1280."""
MAX_ERRORS = 64
"""ICMP errors read at a time."""


class DeliveryError(NamedTuple):
    """An ICMP error about our datagram to `destination`, of which it quotes the start."""

    quoted: bytes
    destination: Address


class DatagramUser(Protocol):
    """Callbacks of a `UdpSocket`."""

    def messages_received(self, messages: list[tuple[bytes, Address]]) -> None:
        """Messages were received, each with its source."""

    def delivery_failed(self, destination: Address) -> None:
        """Sending to `destination` failed."""

    def delivery_errors(self, errors: list[DeliveryError]) -> None:
        """ICMP errors were received, possibly none. They may be forged."""


def datagram_socket(bind: HostPort) -> socket.socket:
    """A UDP socket at `bind`. Raises OSError."""
    family = socket.AF_INET6 if ":" in bind[0] else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        # Without the option, unreachable destinations time out.
        with contextlib.suppress(OSError):
            if not sys.platform.startswith("linux"):
                pass
            elif family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        sock.bind(bind)
    except BaseException:
        sock.close()
        raise
    return sock


class UdpSocket:
    """Reads and writes `sock` for `user`; needs a running event loop."""

    def __init__(self, sock: socket.socket, user: DatagramUser) -> None:
        self._sock = sock
        self._user = user
        self._loop = asyncio.get_running_loop()
        self._sources: dict[tuple[str | int, ...], Address] = {}
        self._unsent: deque[tuple[bytes, Address]] = deque()
        self._unsent_bytes = 0
        self._closed = False
        self._behind_since: float | None = None
        self._loop.add_reader(sock.fileno(), self._receive)

    @property
    def behind(self) -> float:
        """Seconds for which datagrams have been waiting beyond `MAX_BATCH`; 0 if none are."""
        return 0.0 if self._behind_since is None else self._loop.time() - self._behind_since

    @property
    def is_behind(self) -> bool:
        """Whether more datagrams have been waiting than were read in one go."""
        return self._behind_since is not None

    def close(self) -> None:
        """Close the socket."""
        self._closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()

    def send(self, data: bytes, destination: Address) -> None:
        """Send a datagram, or queue it while the socket is full."""
        if self._closed:
            return
        if self._unsent:
            self._queue(data, destination)
        elif not self._try_to_send(data, destination):
            self._queue(data, destination)
            self._loop.add_writer(self._sock.fileno(), self._send_queued)

    def _receive(self) -> None:
        received: list[tuple[bytes, Address]] = []
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
            received.append((data, source))
        if len(received) < MAX_BATCH:
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = self._loop.time()
        self._user.messages_received(received)

    def _take_errors(self) -> bool:
        """Report pending ICMP errors; returns whether there were any."""
        errors = _read_errors(self._sock)
        self._user.delivery_errors(errors)
        # uvloop stops watching a socket that had an error.
        self._loop.remove_reader(self._sock.fileno())
        self._loop.add_reader(self._sock.fileno(), self._receive)
        return bool(errors)

    def _queue(self, data: bytes, destination: Address) -> None:
        # Beyond the limit the datagram is dropped; SIP retransmits.
        if len(self._unsent) < MAX_UNSENT and self._unsent_bytes < MAX_UNSENT_BYTES:
            self._unsent.append((data, destination))
            self._unsent_bytes += len(data)

    def _send_queued(self) -> None:
        while self._unsent:
            if not self._try_to_send(*self._unsent[0]):
                return
            self._unsent_bytes -= len(self._unsent.popleft()[0])
        self._loop.remove_writer(self._sock.fileno())

    def _try_to_send(self, data: bytes, destination: Address) -> bool:
        """Returns False if the socket is full. Reports a destination that can't be reached."""
        is_clean = False
        for _ in range(SEND_TRIES):
            try:
                self._sock.sendto(data, destination[:2])
            except OSError as error:
                if error.errno in _BUSY:
                    return False
                # `sendto` also reports ICMP errors about earlier datagrams.
                if self._take_errors() or not is_clean:
                    is_clean = True
                    continue
                self._user.delivery_failed(destination)
            return True
        return True  # dropped


def _read_errors(sock: socket.socket) -> list[DeliveryError]:
    """Read the error queue, and clear the pending error of the socket."""
    if not sys.platform.startswith("linux"):
        return []
    found: list[DeliveryError] = []
    for _ in range(MAX_ERRORS):
        try:
            quoted, ancillary, _, address = sock.recvmsg(
                _QUOTED, _ANCILLARY_SPACE, socket.MSG_ERRQUEUE
            )
        except OSError:
            break  # the queue is empty
        for _level, _type, data in ancillary:
            # EMSGSIZE does not mean that the destination is unreachable.
            if len(data) < _EXTENDED_ERROR.size or not address:
                continue
            if _EXTENDED_ERROR.unpack_from(data)[0] != errno.EMSGSIZE:
                found.append(DeliveryError(quoted, Address(address[0], address[1])))
    sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return found
