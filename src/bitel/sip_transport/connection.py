"""One TCP or TLS connection: frames messages, bounds what waits to be sent, pings when idle.

It also knows which INVITEs the far end's kernel has acknowledged (`TCP_INFO` of tcp(7) and
`SIOCOUTQ`, on Linux only), and probes an idle connection before it sends an INVITE over it: a NAT
or a firewall may have dropped the connection, and the INVITE would be lost silently.
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
"""Offsets in `struct tcp_info` of <linux/tcp.h>; the last two are there from Linux 4.1 on."""
FIRST_PROBE_CHECK, LONGEST_PROBE_CHECK = 0.001, 0.05
"""Seconds between two checks whether a probe was acknowledged; doubled from one to the next."""
MAX_BATCH = 64
"""Messages taken in one go, so that a flood leaves the loop time for everything else."""


class ConnectionUser(Protocol):
    """Whose connection it is."""

    def connection_made(self, connection: Connection) -> None:
        """It is established, and messages may be sent."""

    def message_came(self, connection: Connection, data: bytes) -> None:
        """A message was received."""

    def stream_broke(self, connection: Connection, fault: FramingError) -> None:
        """It can't be framed any further. Nothing more is read; the user closes it."""

    def probe_failed(self, connection: Connection) -> None:
        """It was idle, and did not acknowledge a probe; the user aborts it."""

    def connection_lost(self, connection: Connection) -> None:
        """It is over. Called once, and not before `connection_made`."""


class Connection(asyncio.Protocol):
    """`address` names the far end; with `ours`, we have opened it."""

    def __init__(
        self, user: ConnectionUser, address: Address, limits: StreamLimits, *, ours: bool
    ) -> None:
        self._user = user
        self.address = address
        self.ours = ours
        self.known = False
        """Whether a message has come."""
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self.behind = False
        """Whether messages were received that have not been handed out yet."""
        self._framer = Framer()
        self._liveness = Liveness(limits, self._loop.time(), ours=ours)
        self._transport: asyncio.Transport | None = None
        self._over = self._deaf = self._heard = self._refused = False
        self._tcp_info: TcpInfo | None = None
        # Where the last message ends among the bytes of the connection; by TLS, at the latest
        # there: the headers of its records are counted only once the kernel has them.
        self._end = 0
        # How much had been received when our part of a TLS 1.3 handshake was over.
        self._handshake_end = -inf
        # INVITEs that may not have arrived, and where they end.
        self._in_flight: deque[tuple[float, bytes]] = deque()
        self._probe: asyncio.TimerHandle | None = None
        self._probe_end = 0
        self._probe_until = 0.0
        # What waits for the probe, with its destination, in order.
        self._held: list[tuple[bytes, Address]] = []
        self.closed: asyncio.Future[None] = self._loop.create_future()

    def send(self, data: bytes, destination: Address) -> bool:
        """Queue a message; False where the connection is no longer of use.

        An INVITE for a connection that was idle waits for a probe to be acknowledged, and so does
        what follows it. `destination` is where it goes should that fail (`take_held`).
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

    def take_back(self, data: bytes) -> None:
        """Have a message not leave that still waits for a probe."""
        self._held = [held for held in self._held if held[0] != data]

    def take_held(self) -> list[tuple[bytes, Address]]:
        """What has not left, as the probe was not acknowledged, with its destinations."""
        held, self._held = self._held, []
        return held

    def unacknowledged(self) -> frozenset[bytes] | None:
        """The INVITEs sent of which not every byte was acknowledged; None where none can say."""
        progress = self._progress()
        if progress is None:
            return None
        # By TLS 1.3 a server may refuse our certificate after we have begun to send: with an alert,
        # or by nothing but a FIN. What its kernel has acknowledged by then its SIP has not seen. A
        # server that accepts us sends session tickets, or at least a response.
        unseen = self._refused or progress.received <= self._handshake_end + 1
        acknowledged = -1 if unseen else progress.acknowledged
        return frozenset(data for end, data in self._in_flight if end > acknowledged)

    def look_after(self) -> str | None:
        """Ping it or give it up if that is due; why it was given up."""
        due = self._liveness.due(self._loop.time())
        if due == "ping" and self._transport is not None:
            self._put(KeepAlive.PING.value)
            return None
        if due is not None:
            self.abort()
        return due

    def close(self) -> None:
        """Close it, after what is queued."""
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
            _notice_silence(sock)
            self._tcp_info = TcpInfo(sock)
            tls = transport.get_extra_info("ssl_object")
            progress = self._tcp_info.read()
            if tls is not None and tls.version() == "TLSv1.3" and self.ours and progress:
                self._handshake_end = progress.received
        self._user.connection_made(self)

    def data_received(self, data: bytes) -> None:
        """Split received bytes into messages for the user."""
        self._heard = True
        self._end_probe()
        if not self._over and not self._deaf:
            self._framer.feed(data)
            self._take_frames()

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the end of the connection to the user."""
        self._over = True
        self._refused = isinstance(exc, ssl.SSLError) and not self._heard
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
                # More may be waiting: nothing is read until that has been dealt with.
                self.behind = True
                self._transport.pause_reading()
                self._loop.call_soon(self._take_the_rest)
                return
        except FramingError as fault:
            self._deaf = True
            self._user.stream_broke(self, fault)
            return
        self._liveness.heard(now, is_between=self._framer.is_between)

    def _take_the_rest(self) -> None:
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
            self._user.message_came(self, frame)

    # Sending, and what was acknowledged

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
            if self._heard:
                while self._in_flight and self._in_flight[0][0] <= progress.acknowledged:
                    self._in_flight.popleft()
            self._in_flight.append((self._end + len(data), data))
        self._write(data)

    def _note_unsent(self, data: bytes) -> None:
        if data.startswith(_INVITE):
            self._in_flight.append((inf, data))

    def _count_tls_overhead(self, progress: TcpProgress) -> None:
        """Count what TLS has added to what we sent."""
        assert self._transport is not None
        written = progress.acknowledged + progress.queued
        self._end = max(self._end, written + self._transport.get_write_buffer_size())

    def _progress(self) -> TcpProgress | None:
        return None if self._tcp_info is None else self._tcp_info.read()

    # The probe of an idle connection: a ping, which any far end's kernel acknowledges

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
        """The far end is there, or it is too late to ask: send what was held back."""
        if self._probe is None:
            return
        self._cancel_probe()
        if self._over or self._transport is None or self._transport.is_closing():
            return  # the receiver takes them in `connection_lost`
        for data, _ in self.take_held():
            if data.startswith(_INVITE):
                self._send_invite(data, self._progress())
            else:
                self._write(data)

    def _cancel_probe(self) -> None:
        if self._probe is not None:
            self._probe.cancel()
            self._probe = None


def _notice_silence(sock: socket.socket) -> None:
    """Have the kernel find out within a minute that the far end is gone without a word."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform.startswith("linux"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)


class TcpProgress(NamedTuple):
    """A connection at one moment."""

    acknowledged: int
    """Bytes that the far end's kernel has acknowledged since the start, its SYN included."""
    queued: int
    """Bytes that our kernel has, and theirs has not acknowledged."""
    received: int
    """Bytes that have come from the far end, its FIN included."""
    idle: float
    """Seconds since the far end last sent bytes or an acknowledgement."""


class TcpInfo:
    """Asks about the connection of `sock`, also once that is closed, until `close`.

    It holds a duplicate of the socket: after a reset or an end of the connection the event loop
    has closed its own by the time it says so, and the counters are needed just then. As the
    connection stays open until the duplicate is closed, that must follow at once.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock: socket.socket | None = None
        # Without a free descriptor nothing is known, as on other systems.
        if sys.platform.startswith("linux"):
            with contextlib.suppress(OSError):
                self._sock = socket.socket(fileno=os.dup(sock.fileno()))

    def read(self) -> TcpProgress | None:
        """The counters now; None where the system has none."""
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
        """Let go of the connection."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """What a connection may cost, times in seconds.

    `connecting` bounds a connection attempt, and `pause` is how long a destination is not tried
    again after one that failed. `message` is how long a stranger may take for a first message, and
    any peer for one that has begun. A ping leaves after `ping_every` of silence; a peer that has
    ever answered one has `pong_within` for the next. A connection without a message for `idle` is
    closed: longer than a session lasts without a refresh (half of RFC 4028's 1800 s). `unsent`
    bytes may wait for a far end that does not read, and as many for a connection being made.
    An INVITE for a connection from which nothing came for `probe_after`, not even an
    acknowledgement, waits up to `probe_within` until it has acknowledged a ping.
    `opened` counts connections of ours, `answering` those that were opened only for a response,
    `accepted` and `per_source` those of others. All of it is looked at every `look_every`.
    """

    connecting: float = 5.0
    pause: float = 1.0
    message: float = 30.0
    ping_every: float = 30.0
    pong_within: float = 10.0
    idle: float = 2000.0
    probe_after: float = 5.0
    probe_within: float = 2.0
    unsent: int = 1024 * 1024
    opened: int = 1000
    answering: int = 50
    accepted: int = 1000
    per_source: int = 50
    look_every: float = 5.0


class Liveness:
    """The keep-alive state of one connection, without I/O. We ping if `ours`: we opened it."""

    def __init__(self, limits: StreamLimits, now: float, *, ours: bool) -> None:
        self._limits = limits
        self._ours = ours
        self._message_at = self._quiet_since = now
        # Since when the end of a message is waited for; a stranger owes us one from the start.
        self._waiting_since = None if ours else now
        self._seen_message = ours
        self._pinged_at: float | None = None
        self._answers = self._was_answering = False

    def sent(self, now: float) -> None:
        """A message left."""
        self._message_at = self._quiet_since = now

    def received(self, now: float) -> None:
        """A whole message came."""
        self._message_at = now
        self._seen_message = True
        self._waiting_since = None

    def heard(self, now: float, *, is_between: bool) -> None:
        """Bytes came and were dealt with; `is_between` where no message is half received."""
        self._quiet_since = now
        self._pinged_at = None
        if not is_between:
            self._waiting_since = self._waiting_since or now
        elif self._seen_message:
            self._waiting_since = None

    def pinged(self, now: float) -> None:
        """A ping left that `due` did not ask for."""
        self._pinged_at = self._quiet_since = now

    def pong(self) -> None:
        """One CRLF came."""
        self._was_answering = self._answers
        self._answers = self._answers or self._pinged_at is not None

    def ping(self) -> None:
        """Another CRLF came right after it: that was no answer of theirs, but their own ping."""
        self._answers = self._was_answering

    def due(self, now: float) -> Literal["ping", "dead", "idle", "slow"] | None:
        """What has to be done by now. After "ping" one is taken to have been sent."""
        limits = self._limits
        if self._waiting_since is not None and now - self._waiting_since >= limits.message:
            return "slow"
        if now - self._message_at >= limits.idle:
            return "idle"
        pinged_at = self._pinged_at
        if self._answers and pinged_at is not None and now - pinged_at >= limits.pong_within:
            return "dead"
        if self._ours and now - self._quiet_since >= limits.ping_every:
            self._pinged_at = self._quiet_since = now
            return "ping"
        return None
