"""What callees send to the ports that their streams leave from: where from, how much, and digits.

Nobody listens to what they say. So that listening costs little beside sending, the kernel hands up
a part of it (`filters`), the smaller the more streams there are. Reading is the sender's spare time
work, and gives way to ticks.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from bitel.rtp.addresses import normal
from bitel.rtp.dtmf import Digits
from bitel.rtp.filters import DENSEST, attach, keep_one_in, one_in
from bitel.rtp.packet import PacketError, RtpHeader
from bitel.rtp.wire import Play

MAX_DATAGRAM = 2048  # bytes that are read of one
MOST_AT_ONCE = 32  # datagrams that are read from one socket in one go
MOST_STALE = 1024  # datagrams that are thrown away before a stream begins
YOUNG = 0.5  # seconds in which a new stream is listened to densely, to find its callee soon
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
    far: tuple[str, int]
    event_type: int | None
    latched: bool = False
    looked_at: int = 0
    sampled: int = 0
    at: float | None = None
    digits: Digits | None = None  # none keyed yet

    def receive(self, header: RtpHeader, payload: bytes, now: float, one_in: int) -> None:
        self.looked_at += 1
        if header.sequence % one_in == 0:
            self.sampled += one_in
        self.at = now
        if header.payload_type == self.event_type:
            if self.digits is None:
                self.digits = Digits()
            self.digits.receive(header.ssrc, header.timestamp, payload)

    def heard(self) -> Heard:
        text = "" if self.digits is None else self.digits.text
        return Heard(max(self.looked_at, self.sampled), self.at, text)


@dataclass(slots=True)
class _Port:
    """A local port, and whose packets arrive there."""

    bound: socket.socket
    ears: dict[int, _Ear] = field(default_factory=dict)  # by stream
    by_far: dict[tuple[str, int], dict[int, _Ear]] = field(default_factory=dict)
    one_in: int = DENSEST
    young_until: float = 0.0

    def place(self, ear: _Ear, far: tuple[str, int]) -> None:
        """The ear's callee sends from there."""
        self.lift(ear)
        ear.far = far
        self.ears[ear.stream] = ear
        self.by_far.setdefault(far, {})[ear.stream] = ear

    def lift(self, ear: _Ear) -> None:
        """Nothing of this ear any more."""
        self.ears.pop(ear.stream, None)
        there = self.by_far.get(ear.far, {})
        if there.pop(ear.stream, None) is not None and not there:
            del self.by_far[ear.far]

    def whose(self, source: tuple[str, int]) -> _Ear | None:
        """The oldest whose address this is, else the only one that may yet turn out to have it.

        Behind a NAT the port is not the one that was named. The host must be: nobody else is
        let into a call by sending to its port.
        """
        there = self.by_far.get(source)
        if there:
            return next(iter(there.values()))
        candidates = [e for e in self.ears.values() if not e.latched and e.far[0] == source[0]]
        return candidates[0] if len(candidates) == 1 else None


class Listener:
    """Listens on the ports of those streams that want it.

    `alive` is told of each packet that is looked at: its stream, and when.
    """

    def __init__(
        self,
        latch: Latch,
        clock: Callable[[], float] = time.monotonic,
        alive: Callable[[int, float], None] = lambda stream, now: None,
    ) -> None:
        self._latch = latch
        self._clock = clock
        self._alive = alive
        self._selector = selectors.DefaultSelector()
        self._ports: dict[int, _Port] = {}
        self._of_stream: dict[int, _Port] = {}
        self._first = 0
        self._patience = 0.0  # the shortest that a stream has had

    def __len__(self) -> int:
        return len(self._of_stream)

    def open(self, port: int, bound: socket.socket) -> None:
        """What arrives for this port is to be read from this socket."""
        self._ports[port] = _Port(bound)

    def listen(self, command: Play) -> None:
        """Listens to the callee of this stream from now on."""
        port = self._ports[command.port]
        if not port.ears:
            _empty(port.bound)  # of what the port's last call left behind
            self._selector.register(port.bound, selectors.EVENT_READ, port)
        far = normal(command.far_host), command.far_port
        port.place(_Ear(command.stream, far, command.event_type), far)
        self._of_stream[command.stream] = port
        if command.patience:
            self._patience = min(command.patience, self._patience or command.patience)
        port.young_until = self._clock() + YOUNG
        self._thin_out(port, DENSEST)

    def expect(self, stream: int, far: tuple[str, int]) -> None:
        """The callee has named another address."""
        port = self._of_stream.get(stream)
        if port is not None:
            ear = port.ears[stream]
            port.place(ear, (normal(far[0]), far[1]))
            ear.latched = False

    def forget(self, stream: int) -> Heard:
        """Listens no more; what had been heard, also what has arrived and was not read yet."""
        port = self._of_stream.get(stream)
        if port is None:
            return Heard()
        self._read(port)
        del self._of_stream[stream]
        ear = port.ears[stream]
        port.lift(ear)
        if not port.ears:
            self._selector.unregister(port.bound)
        return ear.heard()

    def read(self, deadline: float) -> bool:
        """Reads what has arrived, socket by socket until the deadline, and from one at least.

        False where there was no time for all of them; the others come first the next time.
        """
        ready = [key.data for key, _ in self._selector.select(0)]
        first = self._first % len(ready) if ready else 0
        for count, port in enumerate(ready[first:] + ready[:first]):
            if count and self._clock() >= deadline:
                self._first = first + count
                return False
            self._read(port)
        return True

    def _read(self, port: _Port) -> None:
        bound, now = port.bound, self._clock()
        for _ in range(MOST_AT_ONCE):
            try:
                datagram, source = bound.recvfrom(MAX_DATAGRAM)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                continue  # an ICMP error about what was sent; asking takes it off the socket
            self._take(port, datagram, (source[0], source[1]), now)
        if now >= port.young_until:
            self._thin_out(port, one_in(len(self._of_stream), self._patience))

    def _take(self, port: _Port, datagram: bytes, source: tuple[str, int], now: float) -> None:
        try:
            header, payload = RtpHeader.parse(datagram)
        except PacketError:
            return
        if header.payload_type in _RTCP_KINDS:
            return
        ear = port.whose(source)
        if ear is None or not source[1]:
            return  # a packet may claim to come from port 0, to which none can be sent
        if ear.far != source:
            port.place(ear, source)
            self._latch(ear.stream, source)
        ear.latched = True
        ear.receive(header, payload, now, port.one_in)
        self._alive(ear.stream, now)

    def _thin_out(self, port: _Port, wanted: int) -> None:
        """Has the kernel hand up one packet in so many from now on."""
        if wanted != port.one_in:
            port.one_in = wanted
            attach(port.bound, keep_one_in(wanted))


def _empty(bound: socket.socket) -> None:
    with contextlib.suppress(OSError):
        for _ in range(MOST_STALE):
            bound.recv(1)
