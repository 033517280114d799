"""What callees send to the ports that their streams leave from: where from, how much, and digits.

Nobody listens to what they say. So that listening costs little beside sending, the kernel hands up
a part of it: `ports.KEEP_SOME`. Reading is the sender's spare time work, and gives way to ticks.
"""

from __future__ import annotations

import contextlib
import ipaddress
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from bitel.rtp.dtmf import Digits
from bitel.rtp.packet import PacketError, RtpHeader
from bitel.rtp.ports import ONE_IN
from bitel.rtp.wire import Play

MAX_DATAGRAM = 2048  # bytes that are read of one
MOST_AT_ONCE = 32  # datagrams that are read from one socket in one go
MOST_STALE = 1024  # datagrams that are thrown away before a stream begins
_RTCP_KINDS = range(72, 77)  # RTCP on the RTP port looks like these payload types (RFC 5761 4)

Latch = Callable[[int, tuple[str, int]], None]
"""Told once the packets of a stream's callee turn out to come from another port."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What has come of one stream's callee; `at` is the time of the last packet, if any."""

    packets: int = 0
    at: float | None = None
    digits: str = ""


@dataclass(slots=True)
class _Ear:
    """The callee of one stream. Once a packet has come, it is held to that address."""

    stream: int
    port: int  # ours
    far: tuple[str, int]
    event_type: int | None
    latched: bool = False
    looked_at: int = 0
    sampled: int = 0
    at: float | None = None
    digits: Digits = field(default_factory=Digits)

    def receive(self, header: RtpHeader, payload: bytes, now: float) -> None:
        self.looked_at += 1
        self.sampled += header.sequence % ONE_IN == 0
        self.at = now
        if header.payload_type == self.event_type:
            self.digits.receive(header.ssrc, header.timestamp, payload)

    def heard(self) -> Heard:
        return Heard(max(self.looked_at, self.sampled * ONE_IN), self.at, self.digits.text)


class Listener:
    """Listens on the ports of those streams that want it."""

    def __init__(self, latch: Latch, clock: Callable[[], float] = time.monotonic) -> None:
        self._latch = latch
        self._clock = clock
        self._sockets: dict[int, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._by_port: dict[int, list[_Ear]] = {}
        self._ears: dict[int, _Ear] = {}

    def __len__(self) -> int:
        return len(self._ears)

    def open(self, port: int, bound: socket.socket) -> None:
        """What arrives for this port is to be read from this socket."""
        self._sockets[port] = bound

    def listen(self, command: Play) -> None:
        """Listens to the callee of this stream from now on."""
        far = _normal(command.far_host), command.far_port
        ear = _Ear(command.stream, command.port, far, command.event_type)
        self._ears[command.stream] = ear
        if command.port not in self._by_port:
            bound = self._sockets[command.port]
            _empty(bound)  # of what the port's last call left behind
            self._selector.register(bound, selectors.EVENT_READ, command.port)
        self._by_port.setdefault(command.port, []).append(ear)

    def expect(self, stream: int, far: tuple[str, int]) -> None:
        """The callee has named another address."""
        ear = self._ears.get(stream)
        if ear is not None:
            ear.far, ear.latched = (_normal(far[0]), far[1]), False

    def forget(self, stream: int) -> Heard:
        """Listens no more; what had been heard, also what has arrived and was not read yet."""
        ear = self._ears.get(stream)
        if ear is None:
            return Heard()
        self._read(ear.port)
        del self._ears[stream]
        ears = self._by_port[ear.port]
        ears.remove(ear)
        if not ears:
            del self._by_port[ear.port]
            self._selector.unregister(self._sockets[ear.port])
        return ear.heard()

    def read(self, deadline: float) -> None:
        """Reads what has arrived, socket by socket until the deadline, and from one at least."""
        for key, _ in self._selector.select(0):
            self._read(key.data)
            if self._clock() >= deadline:
                return

    def _read(self, port: int) -> None:
        bound, now = self._sockets[port], self._clock()
        for _ in range(MOST_AT_ONCE):
            try:
                datagram, source = bound.recvfrom(MAX_DATAGRAM)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                continue  # an ICMP error about what was sent; asking takes it off the socket
            self._take(port, datagram, (source[0], source[1]), now)

    def _take(self, port: int, datagram: bytes, source: tuple[str, int], now: float) -> None:
        try:
            header, payload = RtpHeader.parse(datagram)
        except PacketError:
            return
        if header.payload_type in _RTCP_KINDS:
            return
        ear = self._whose(self._by_port[port], source)
        if ear is None:
            return
        if ear.far != source:
            ear.far = source
            self._latch(ear.stream, source)
        ear.latched = True
        ear.receive(header, payload, now)

    def _whose(self, ears: list[_Ear], source: tuple[str, int]) -> _Ear | None:
        """The one whose address this is, else the only one that may yet turn out to have it.

        Behind a NAT the port is not the one that was named. The host must be: nobody else is
        let into a call by sending to its port.
        """
        for ear in ears:
            if ear.far == source:
                return ear
        candidates = [ear for ear in ears if not ear.latched and ear.far[0] == source[0]]
        return candidates[0] if len(candidates) == 1 else None


def _empty(bound: socket.socket) -> None:
    with contextlib.suppress(OSError):
        for _ in range(MOST_STALE):
            bound.recv(1)


def _normal(host: str) -> str:
    return str(ipaddress.ip_address(host))
