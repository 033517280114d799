"""One TCP or TLS connection: frames what comes, keeps what is sent within bounds."""

from __future__ import annotations

import asyncio
import socket
import sys
from typing import Protocol, cast

from bitel.sip.framing import Framer, FramingError, KeepAlive
from bitel.sip.grammar import Address
from bitel.transports.liveness import Liveness, StreamLimits

MAX_BATCH = 64
"""Messages taken in one go, so that a flood leaves the loop time for everything else."""


class Receiver(Protocol):
    """Whose connection it is."""

    def connection_made(self, connection: Connection) -> None:
        """It stands, and messages may be sent."""

    def message_came(self, connection: Connection, data: bytes) -> None: ...

    def stream_broke(self, connection: Connection, fault: FramingError) -> None:
        """It can't be framed any further. Nothing more is read; the receiver closes it."""

    def connection_lost(self, connection: Connection) -> None:
        """It is over, whoever ended it. Told once, and not before it was made."""


class Connection(asyncio.Protocol):
    """`address` names the far end; with `ours`, we have opened it."""

    def __init__(
        self, receiver: Receiver, address: Address, limits: StreamLimits, *, ours: bool
    ) -> None:
        self._receiver = receiver
        self.address = address
        self.ours = ours
        self.known = False
        """Whether a message has come."""
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._framer = Framer()
        self._liveness = Liveness(limits, self._loop.time(), ours=ours)
        self._transport: asyncio.Transport | None = None
        self._over = self._deaf = False
        self.closed: asyncio.Future[None] = self._loop.create_future()

    def send(self, data: bytes) -> bool:
        """Queue a message; False where the connection is no longer of use."""
        transport = self._transport
        if self._over or transport is None or transport.is_closing():
            return False
        if transport.get_write_buffer_size() + len(data) > self._limits.unsent:
            self.abort()
            return False
        self._liveness.sent(self._loop.time())
        transport.write(data)
        return True

    def look_after(self) -> str | None:
        """Ping it or give it up if that is due; why it was given up."""
        due = self._liveness.due(self._loop.time())
        if due == "ping" and self._transport is not None:
            self._transport.write(KeepAlive.PING.value)
            return None
        if due is not None:
            self.abort()
        return due

    def close(self) -> None:
        """Close it, after what is queued."""
        self._over = True
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close it at once."""
        self._over = True
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        sock = transport.get_extra_info("socket")
        if sock is not None:
            _notice_silence(sock)
        self._receiver.connection_made(self)

    def data_received(self, data: bytes) -> None:
        if not self._over and not self._deaf:
            self._framer.feed(data)
            self._take_frames()

    def connection_lost(self, exc: Exception | None) -> None:
        self._over = True
        if not self.closed.done():
            self.closed.set_result(None)
            self._receiver.connection_lost(self)

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
                self._transport.pause_reading()
                self._loop.call_soon(self._take_the_rest)
                return
        except FramingError as fault:
            self._deaf = True
            self._receiver.stream_broke(self, fault)
            return
        self._liveness.heard(now, is_between=self._framer.is_between)

    def _take_the_rest(self) -> None:
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
                self._transport.write(KeepAlive.PONG.value)
        elif isinstance(frame, bytes):
            self._liveness.received(now)
            self._receiver.message_came(self, frame)


def _notice_silence(sock: socket.socket) -> None:
    """Have the kernel find out within a minute that the far end is gone without a word."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform.startswith("linux"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
