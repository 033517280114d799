"""A TCP or TLS connection: framing, a bounded send queue, keep-alives, delivery of INVITEs.

It knows which INVITEs the remote kernel has acknowledged (`TCP_INFO` of tcp(7) and `SIOCOUTQ`, on
Linux only), and probes an idle connection before it sends an INVITE: a NAT or a firewall may have
dropped the connection, and the INVITE would be lost silently.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import struct
import sys
import termios
from collections import deque
from dataclasses import dataclass
from fcntl import ioctl
from math import inf
from typing import Literal, NamedTuple, Protocol, cast

from bitel.sip.framing import Framer, FramingError, KeepAlive
from bitel.sip.grammar import Address

_INVITE = b"INVITE "
_TCP_INFO_SIZE = 232
_LAST_DATA_RECEIVED, _LAST_ACK_RECEIVED, _BYTES_ACKED, _BYTES_RECEIVED = 52, 56, 120, 128
"""Offsets in `struct tcp_info` of <linux/tcp.h>; the last two since Linux 4.1."""
FIRST_PROBE_CHECK, LONGEST_PROBE_CHECK = 0.001, 0.05
"""Seconds between checks whether a probe was acknowledged; doubled each time."""
MAX_BATCH = 64
"""Messages processed in one iteration of the event loop, so that a flood does not block it."""


class ConnectionUser(Protocol):
    """Callbacks of a `Connection`."""

    def connection_made(self, connection: Connection) -> None:
        """The connection is established."""

    def message_received(self, connection: Connection, data: bytes) -> None:
        """A message was received."""

    def framing_failed(self, connection: Connection, fault: FramingError) -> None:
        """Framing failed. Nothing more is read; the user closes the connection."""

    def probe_failed(self, connection: Connection) -> None:
        """An idle connection did not acknowledge a probe; the user aborts it."""

    def connection_lost(self, connection: Connection) -> None:
        """The connection is closed. Called once, after `connection_made`."""


class Connection(asyncio.Protocol):
    """A connection with the peer at `address`; `ours`: we opened it."""

    def __init__(
        self, user: ConnectionUser, address: Address, limits: StreamLimits, *, ours: bool
    ) -> None:
        self._user = user
        self.address = address
        self.ours = ours
        self.known = False
        """Whether a message was received."""
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self.behind = False
        """Whether received messages are not yet processed."""
        self._framer = Framer()
        self._liveness = Liveness(limits, self._loop.time(), ours=ours)
        self._transport: asyncio.Transport | None = None
        self._over = self._framing_failed = self._has_received = self._refused = False
        self._tcp_info: TcpInfo | None = None
        # Offset in the stream of the end of the last message. With TLS it may end earlier: record
        # headers are counted only once they are in the kernel.
        self._end = 0
        # Bytes received when our part of a TLS 1.3 handshake was complete.
        self._handshake_end = -inf
        # End offset and data of INVITEs that may not have arrived.
        self._in_flight: deque[tuple[float, bytes]] = deque()
        self._probe: asyncio.TimerHandle | None = None
        self._probe_end = 0
        self._probe_until = 0.0
        # Messages that wait for the probe, with their destinations.
        self._held: list[tuple[bytes, Address]] = []
        self.closed: asyncio.Future[None] = self._loop.create_future()

    def send(self, data: bytes, destination: Address) -> bool:
        """Queue a message; False if the connection is closing.

        An INVITE on an idle connection waits for the acknowledgement of a probe, as do messages
        after it. `destination` is where it goes if the probe fails (`take_held`).
        """
        transport = self._transport
        if self._over or transport is None or transport.is_closing():
            self._note_unsent(data)
            return False
        unsent = transport.get_write_buffer_size() + sum(len(held) for held, _ in self._held)
        if unsent + len(data) > self._limits.unsent:
            self._note_unsent(data)
            self.abort()
            return False
        if self._probe is None and not data.startswith(_INVITE):
            self._write(data)
            return True
        progress = self._progress()
        idle = 0.0 if progress is None else progress.idle
        if self._probe is None and progress is not None and idle >= self._limits.probe_after:
            self._begin_probe(progress)
        if self._probe is None:
            self._send_invite(data, progress)
        else:
            self._held.append((data, destination))
        return True

    def withdraw(self, data: bytes) -> None:
        """Drop a message that waits for a probe."""
        self._held = [held for held in self._held if held[0] != data]

    def take_held(self) -> list[tuple[bytes, Address]]:
        """Take the messages that wait for the probe, with their destinations."""
        held, self._held = self._held, []
        return held

    def unacknowledged(self) -> frozenset[bytes] | None:
        """The INVITEs sent that were not fully acknowledged; None if unknown."""
        progress = self._progress()
        if progress is None:
            return None
        # In TLS 1.3 a server may refuse our certificate after we have begun to send, with an alert
        # or just a FIN. Data acknowledged by then did not reach its SIP stack. A server that
        # accepts us sends session tickets, or at least a response.
        unseen = self._refused or progress.received <= self._handshake_end + 1
        acknowledged = -1 if unseen else progress.acknowledged
        return frozenset(data for end, data in self._in_flight if end > acknowledged)

    def check_liveness(self) -> str | None:
        """Ping or abort the connection if that is due; returns why it was aborted."""
        due = self._liveness.due(self._loop.time())
        if due == "ping" and self._transport is not None:
            self._put(KeepAlive.PING.value)
            return None
        if due is not None:
            self.abort()
        return due

    def close(self) -> None:
        """Close it after sending what is queued."""
        self._end_probe()
        self._over = True
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close it at once."""
        self._over = True
        self._cancel_probe()
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note the transport, and report the connection to the user."""
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            _enable_keepalive(sock)
            self._tcp_info = TcpInfo(sock)
            tls = transport.get_extra_info("ssl_object")
            progress = self._tcp_info.read()
            if tls is not None and tls.version() == "TLSv1.3" and self.ours and progress:
                self._handshake_end = progress.received
        self._user.connection_made(self)

    def data_received(self, data: bytes) -> None:
        """Split received bytes into messages for the user."""
        self._has_received = True
        self._end_probe()
        if not self._over and not self._framing_failed:
            self._framer.feed(data)
            self._take_frames()

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the end of the connection to the user."""
        self._over = True
        self._refused = isinstance(exc, ssl.SSLError) and not self._has_received
        self._cancel_probe()
        try:
            if not self.closed.done():
                self.closed.set_result(None)
                self._user.connection_lost(self)
        finally:
            if self._tcp_info is not None:
                self._tcp_info.close()

    def _take_frames(self) -> None:
        if self._over or self._transport is None:
            return
        now = self._loop.time()
        try:
            for _ in range(MAX_BATCH):
                frame = self._framer.next_frame()
                if frame is None:
                    break
                self._take(frame, now)
            else:
                # More may be buffered: stop reading until that is processed.
                self.behind = True
                self._transport.pause_reading()
                self._loop.call_soon(self._resume_reading)
                return
        except FramingError as fault:
            self._framing_failed = True
            self._user.framing_failed(self, fault)
            return
        self._liveness.processed(now, is_between=self._framer.is_between)

    def _resume_reading(self) -> None:
        self.behind = False
        if not self._over and self._transport is not None:
            self._transport.resume_reading()
            self._take_frames()

    def _take(self, frame: bytes | KeepAlive, now: float) -> None:
        if frame is KeepAlive.PONG:
            self._liveness.pong()
        elif frame is KeepAlive.PING:
            self._liveness.ping()
            assert self._transport is not None
            if self._transport.get_write_buffer_size() < self._limits.unsent:
                self._put(KeepAlive.PONG.value)
        elif isinstance(frame, bytes):
            self._liveness.received(now)
            self._user.message_received(self, frame)

    # Sending

    def _write(self, data: bytes) -> None:
        self._liveness.sent(self._loop.time())
        self._put(data)

    def _put(self, data: bytes) -> None:
        assert self._transport is not None
        self._end += len(data)
        self._transport.write(data)

    def _send_invite(self, data: bytes, progress: TcpProgress | None) -> None:
        if progress is not None:
            self._count_tls_overhead(progress)
            if self._has_received:
                while self._in_flight and self._in_flight[0][0] <= progress.acknowledged:
                    self._in_flight.popleft()
            self._in_flight.append((self._end + len(data), data))
        self._write(data)

    def _note_unsent(self, data: bytes) -> None:
        if data.startswith(_INVITE):
            self._in_flight.append((inf, data))

    def _count_tls_overhead(self, progress: TcpProgress) -> None:
        """Add the overhead of TLS to the offset of the last message."""
        assert self._transport is not None
        written = progress.acknowledged + progress.queued
        self._end = max(self._end, written + self._transport.get_write_buffer_size())

    def _progress(self) -> TcpProgress | None:
        return None if self._tcp_info is None else self._tcp_info.read()

    # The probe of an idle connection: a ping, which any kernel acknowledges

    def _begin_probe(self, progress: TcpProgress) -> None:
        self._count_tls_overhead(progress)
        self._put(KeepAlive.PING.value)
        now = self._loop.time()
        self._liveness.pinged(now)
        self._probe_end = self._end
        self._probe_until = now + self._limits.probe_within
        self._probe = self._loop.call_later(FIRST_PROBE_CHECK, self._check_probe, FIRST_PROBE_CHECK)

    def _check_probe(self, waited: float) -> None:
        progress = self._progress()
        if progress is None or progress.acknowledged >= self._probe_end:
            self._end_probe()
        elif self._loop.time() >= self._probe_until:
            self._probe = None
            self._user.probe_failed(self)
        else:
            wait = min(2 * waited, LONGEST_PROBE_CHECK)
            self._probe = self._loop.call_later(wait, self._check_probe, wait)

    def _end_probe(self) -> None:
        """End the probe and send the held messages."""
        if self._probe is None:
            return
        self._cancel_probe()
        if self._over or self._transport is None or self._transport.is_closing():
            return  # the user takes them in `connection_lost`
        for data, _ in self.take_held():
            if data.startswith(_INVITE):
                self._send_invite(data, self._progress())
            else:
                self._write(data)

    def _cancel_probe(self) -> None:
        if self._probe is not None:
            self._probe.cancel()
            self._probe = None


def _enable_keepalive(sock: socket.socket) -> None:
    """Let the kernel detect a dead peer within a minute."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform.startswith("linux"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)


class TcpProgress(NamedTuple):
    """The counters of a TCP connection."""

    acknowledged: int
    """Bytes that the remote kernel has acknowledged, including our SYN."""
    queued: int
    """Bytes in our kernel that the remote kernel has not acknowledged."""
    received: int
    """Bytes received, including the FIN."""
    idle: float
    """Seconds since the last data or acknowledgement."""


class TcpInfo:
    """Reads the counters of the connection of `sock`, even after `sock` is closed.

    It holds a duplicate of the socket, because the event loop closes its own before it reports the
    end of the connection, when the counters are needed. The connection stays open until `close`.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock: socket.socket | None = None
        # Without a free descriptor there are no counters, as on other systems.
        if sys.platform.startswith("linux"):
            with contextlib.suppress(OSError):
                self._sock = socket.socket(fileno=os.dup(sock.fileno()))

    def read(self) -> TcpProgress | None:
        """The counters; None if the system has none."""
        sock = self._sock
        if sock is None:
            return None
        try:
            info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
            (queued,) = struct.unpack("i", ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4))
            (acknowledged,) = struct.unpack_from("=Q", info, _BYTES_ACKED)
            (received,) = struct.unpack_from("=Q", info, _BYTES_RECEIVED)
        except (OSError, struct.error):  # no TCP, or an older kernel
            return None
        (data_received,) = struct.unpack_from("=I", info, _LAST_DATA_RECEIVED)
        (ack_received,) = struct.unpack_from("=I", info, _LAST_ACK_RECEIVED)
        return TcpProgress(acknowledged, queued, received, min(data_received, ack_received) / 1000)

    def close(self) -> None:
        """Close the duplicate socket."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Limits of connections; times are in seconds."""

    connecting: float = 5.0
    """Timeout of a connection attempt."""
    pause: float = 1.0
    """How long a destination is not tried again after a failed attempt."""
    message: float = 30.0
    """Timeout of a message that has begun, and of the first one of an accepted connection."""
    ping_every: float = 30.0
    """Silence after which a ping is sent."""
    pong_within: float = 10.0
    """Timeout of a pong, for a peer that has sent one before."""
    idle: float = 2000.0
    """How long a connection may have no messages; longer than a session without refresh."""
    probe_after: float = 5.0
    """Silence after which an INVITE waits for the acknowledgement of a ping."""
    probe_within: float = 2.0
    """Timeout of that acknowledgement."""
    unsent: int = 1024 * 1024
    """Bytes that may be queued for a connection."""
    opened: int = 1000
    """Connections that we open."""
    answering: int = 50
    """Connections that we open only for a response."""
    accepted: int = 1000
    """Connections that we accept."""
    per_source: int = 50
    """Connections that we accept from one source."""
    look_every: float = 5.0
    """Interval between checks of all connections."""


class Liveness:
    """The keep-alive state of a connection, without I/O. We ping if we opened it (`ours`)."""

    def __init__(self, limits: StreamLimits, now: float, *, ours: bool) -> None:
        self._limits = limits
        self._ours = ours
        self._message_at = self._silent_since = now
        # Since when a message is due: from its first byte, or from the accept of a connection.
        self._waiting_since = None if ours else now
        self._seen_message = ours
        self._pinged_at: float | None = None
        self._answers = self._was_answering = False

    def sent(self, now: float) -> None:
        """A message was sent."""
        self._message_at = self._silent_since = now

    def received(self, now: float) -> None:
        """A complete message was received."""
        self._message_at = now
        self._seen_message = True
        self._waiting_since = None

    def processed(self, now: float, *, is_between: bool) -> None:
        """Data was processed; `is_between`: no message is partially received."""
        self._silent_since = now
        self._pinged_at = None
        if not is_between:
            self._waiting_since = self._waiting_since or now
        elif self._seen_message:
            self._waiting_since = None

    def pinged(self, now: float) -> None:
        """A ping was sent that `due` did not request."""
        self._pinged_at = self._silent_since = now

    def pong(self) -> None:
        """A CRLF was received."""
        self._was_answering = self._answers
        self._answers = self._answers or self._pinged_at is not None

    def ping(self) -> None:
        """A second CRLF followed: it was a ping, not a pong."""
        self._answers = self._was_answering

    def due(self, now: float) -> Literal["ping", "dead", "idle", "slow"] | None:
        """The action that is due. "ping" requests a ping, which then counts as sent."""
        limits = self._limits
        if self._waiting_since is not None and now - self._waiting_since >= limits.message:
            return "slow"
        if now - self._message_at >= limits.idle:
            return "idle"
        pinged_at = self._pinged_at
        if self._answers and pinged_at is not None and now - pinged_at >= limits.pong_within:
            return "dead"
        if self._ours and now - self._silent_since >= limits.ping_every:
            self._pinged_at = self._silent_since = now
            return "ping"
        return None
