"""A user agent on a UDP socket: moves datagrams, keeps one timer, hands out events.

The socket is read and written directly, since asyncio's datagram protocol does not say to which
destination a datagram could not be delivered.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Literal

from bitel.sip.agent import UserAgent
from bitel.sip.events import Event
from bitel.sip.grammar import Address
from bitel.transports.icmp import ask_for_errors, unreachable

logger = logging.getLogger(__name__)

Link = Callable[[bytes, Address], Iterable[tuple[float, bytes]]]
"""A link to try things on: what really leaves for a datagram, and after how many seconds."""

Tap = Callable[[Literal["in", "out"], bytes, Address, float], None]
"""Shown each datagram as it comes or leaves, with the far end's address and the time (Unix s)."""

RECEIVE_BUFFER = 4 * 1024 * 1024
MAX_BATCH = 64
"""Datagrams read in one go, so that a flood leaves the loop time for everything else."""
MAX_UNSENT = 50_000
_BUSY = (errno.EAGAIN, errno.ENOBUFS)


class UdpTransport:
    """Made with `open`. After any call on `agent`, call `flush`."""

    def __init__(
        self,
        sock: socket.socket,
        agent: UserAgent,
        local: Address,
        on_event: Callable[[Event], None],
        clock: Callable[[], float],
        link: Link | None,
        tap: Tap | None = None,
    ) -> None:
        self.agent = agent
        self.local = local
        self.now = clock
        self._sock = sock
        self._on_event = on_event
        self._link = link
        self._tap = tap
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray(65536)
        self._unsent: deque[tuple[bytes, Address]] = deque()
        self._turn: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = 0.0
        self._closed = False
        self._loop.add_reader(sock.fileno(), self._receive)

    @classmethod
    async def open(
        cls,
        bind: Address,
        make_agent: Callable[[Address], UserAgent],
        on_event: Callable[[Event], None],
        clock: Callable[[], float] | None = None,
        link: Link | None = None,
        tap: Tap | None = None,
    ) -> UdpTransport:
        """Bind `bind` (an IP address; port 0 takes a free one) and start; OSError if it can't.

        `make_agent` is given the address that was bound. `clock` gives the seconds that the agent
        sees, the loop's by default; it must run as fast as the loop's.
        """
        family = socket.AF_INET6 if ":" in bind[0] else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            ask_for_errors(sock)
            sock.bind(bind)
            host, port = sock.getsockname()[:2]
            local = (str(host), int(port))
            clock = clock or asyncio.get_running_loop().time
            return cls(sock, make_agent(local), local, on_event, clock, link, tap)
        except BaseException:
            sock.close()
            raise

    def flush(self) -> None:
        """Have what the agent queued sent, and its events handed out, in this turn of the loop.

        Cheap to call often: one turn does it once. Events are never handed out from within.
        """
        if self._turn is None and not self._closed:
            self._turn = self._loop.call_soon(self._run_turn)

    async def close(self) -> None:
        """Send what is queued, then let go of the socket. Hangs up nothing."""
        if self._closed:
            return
        self._send_all()
        self._closed = True
        for handle in (self._turn, self._timer):
            if handle is not None:
                handle.cancel()
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()

    # One turn: send, hand out events (whose takers may queue more), set the timer

    def _run_turn(self) -> None:
        self._turn = None
        while not self._closed:
            self._send_all()
            event = self.agent.next_event()
            if event is None:
                break
            self._hand_out(event)
        self._set_timer()

    def _hand_out(self, event: Event) -> None:
        try:
            self._on_event(event)
        except Exception:
            # The taker's fault; other calls must not suffer for it.
            logger.exception("an event of call %s was not handled", event.call_id)

    def _set_timer(self) -> None:
        due = self.agent.next_timer()
        if due is None or self._closed:
            return
        # An armed timer that is early enough may stay: coming too early does no harm.
        if self._timer is not None:
            if self._timer_due <= due:
                return
            self._timer.cancel()
        self._timer_due = due
        self._timer = self._loop.call_later(max(0.0, due - self.now()), self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        self.agent.handle_timer(self.now())
        self._run_turn()

    # The socket

    def _receive(self) -> None:
        now = self.now()
        for _ in range(MAX_BATCH):
            try:
                size, source = self._sock.recvfrom_into(self._buffer)
            except BlockingIOError:
                break
            except OSError:
                self._take_errors()
                continue
            data = bytes(memoryview(self._buffer)[:size])
            if self._tap is not None:
                self._tap("in", data, (source[0], source[1]), time.time())
            self.agent.receive_datagram(data, (source[0], source[1]), now)
        self.flush()

    def _take_errors(self) -> None:
        for destination in unreachable(self._sock):
            self.agent.transport_failed(destination, self.now())
        # uvloop stops watching a socket that had an error.
        self._loop.remove_reader(self._sock.fileno())
        self._loop.add_reader(self._sock.fileno(), self._receive)
        self.flush()

    def _send_all(self) -> None:
        for data, destination in self.agent.datagrams_to_send():
            if self._tap is not None:
                self._tap("out", data, destination, time.time())
            if self._link is None:
                self._send(data, destination)
                continue
            for delay, datagram in self._link(data, destination):
                if delay <= 0:
                    self._send(datagram, destination)
                else:
                    self._loop.call_later(delay, self._send, datagram, destination)

    def _send(self, data: bytes, destination: Address) -> None:
        if self._closed:
            return
        if self._unsent:
            self._keep(data, destination)
        elif not self._try_to_send(data, destination):
            self._keep(data, destination)
            self._loop.add_writer(self._sock.fileno(), self._send_kept)

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
                self._sock.sendto(data, destination)
            except OSError as error:
                if error.errno in _BUSY:
                    return False
                # On the first try the error may be about an earlier datagram to someone else.
                if first_try and error.errno == errno.ECONNREFUSED:
                    self._take_errors()
                    continue
                self.agent.transport_failed(destination, self.now())
                self.flush()
            return True
        return True
