"""What callees send to the ports that their streams leave from: where from, how much, and digits.

What they say is not listened to. So that listening costs little beside sending, the kernel hands up
a part of it (`filters`), the smaller the more streams there are. Reading is the sender's spare time
work, and gives way to ticks.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from bitel.rtp.addresses import host_problem, normal
from bitel.rtp.dtmf import Digits
from bitel.rtp.filters import DENSEST, attach, keep_one_in, one_in
from bitel.rtp.packet import PacketError, RtpHeader
from bitel.rtp.wire import Change, Latch, Play

MAX_DATAGRAM = 2048  # bytes that are read of one
MOST_AT_ONCE = 32  # datagrams that are read from one socket in one go
MOST_STALE = 1024  # datagrams that are thrown away before a stream begins
YOUNG = 0.5  # seconds in which a new stream is listened to densely, to find its callee soon
UNDER_WAY = 1.0  # seconds after a change in which packets may come that were sent before it
LINGERING = 5.0  # seconds after a stream's end in which its callee may still send to a shared port
USUAL_PACKET = 0.02  # seconds; what callees mostly send, also where ours are shorter
_DYNAMIC_TYPES = frozenset({*range(35, 64), *range(96, 128)})  # RFC 3551 section 3
_VERSIONS = {socket.AF_INET: 4, socket.AF_INET6: 6}
_RTCP_KINDS = range(72, 77)  # RTCP on the RTP port looks like these payload types (RFC 5761 4)

OnLatch = Callable[[int, tuple[str, int]], None]
"""Called with a stream and the address that its callee turned out to send from."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What has come of one stream's callee.

    `at` is the time of the last packet that was looked at, or of a later change of the media, and
    `digits_at` that of the first digit; None where there was none. `unexpected` counts RTP packets
    from addresses that were not accepted. While a callee sends, one of its packets is looked at
    every `gap` seconds or more often.
    """

    packets: int = 0
    at: float | None = None
    digits: str = ""
    digits_at: float | None = None
    unexpected: int = 0
    gap: float = 0.0


@dataclass(slots=True)
class _Ear:
    """The callee of one stream. Once a packet has come, it is held to that address."""

    stream: int
    far: tuple[str, int]
    latch: Latch
    packet_seconds: float
    event_types: frozenset[int] = frozenset()
    young_until: float = 0.0
    latched: bool = False
    ssrc: int | None = None
    """Of the packet that was accepted last; None before the first from this address."""
    former: tuple[str, int] | None = None
    """The address before the callee named a new one. Until `former_until` packets from there may
    have been sent before: they are taken, and don't count as the first from the new address."""
    former_until: float = 0.0
    looked_at: int = 0
    sampled: int = 0
    at: float | None = None
    digits: Digits | None = None  # none keyed yet
    digits_at: float | None = None
    unexpected: int = 0

    def accepts(self, ssrc: int) -> bool:
        """Whether a packet from its address is of its callee."""
        return self.latch != "host" or self.ssrc is None or self.ssrc == ssrc

    def is_former(self, source: tuple[str, int], now: float) -> bool:
        """Whether a packet may have been sent from there before the callee named a new address."""
        return source == self.former and now < self.former_until

    def receive(self, header: RtpHeader, payload: bytes, now: float, one_in: int) -> None:
        self.looked_at += 1
        if header.sequence % one_in == 0:
            self.sampled += one_in
        self.at = now
        if header.payload_type in self.event_types:
            if self.digits is None:
                self.digits = Digits()
            self.digits.receive(header.ssrc, header.timestamp, payload)
            if self.digits_at is None and self.digits.text:
                self.digits_at = now

    def heard(self, gap: float) -> Heard:
        text = "" if self.digits is None else self.digits.text
        packets = max(self.looked_at, self.sampled)
        return Heard(packets, self.at, text, self.digits_at, self.unexpected, gap)


@dataclass(slots=True)
class _Port:
    """A local port, and whose packets arrive there."""

    bound: socket.socket
    ears: dict[int, _Ear] = field(default_factory=dict)  # by stream
    by_far: dict[tuple[str, int], dict[int, _Ear]] = field(default_factory=dict)
    event_types: Counter[int] = field(default_factory=Counter)  # of all its ears
    one_in: int = DENSEST
    sparsest: int = DENSEST  # since there have been ears
    young_until: float = 0.0
    shared_until: float = 0.0
    """Until then packets of a stream that has ended may come beside those of others."""
    is_stale: bool = True  # the filter is not the one that is wanted
    attached: tuple[int, frozenset[int]] | None = None  # None: unknown

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

    def set_event_types(self, ear: _Ear, wanted: frozenset[int]) -> None:
        """The ear's telephone events come as these payload types from now on."""
        counts = self.event_types
        for kind in wanted - ear.event_types:
            counts[kind] += 1
            self.is_stale = self.is_stale or counts[kind] == 1
        for kind in ear.event_types - wanted:
            counts[kind] -= 1
            if not counts[kind]:
                del counts[kind]
                self.is_stale = True
        ear.event_types = wanted

    def whose(self, source: tuple[str, int], ssrc: int, now: float) -> _Ear | None:
        """The oldest whose address this is, else the only one that may yet turn out to have it.

        Behind a NAT the port is not the one that was named. The host must be, unless the stream
        follows any host: then its first packet decides, and after it the SSRC. Where several
        streams of the port still wait for theirs, nothing is guessed.
        """
        for ear in self.by_far.get(source, _NONE).values():
            if ear.accepts(ssrc):
                return ear
        waiting = []
        for ear in self.ears.values():
            if ear.is_former(source, now):
                return ear
            if ear.latched:
                if ear.latch == "host" and ear.ssrc == ssrc:
                    return ear
            elif ear.latch != "off":
                waiting.append(ear)
        named = [ear for ear in waiting if ear.far[0] == source[0]]
        if named:
            return named[0] if len(named) == 1 else None
        open_to_all = [ear for ear in waiting if ear.latch == "host"]
        return open_to_all[0] if len(open_to_all) == 1 else None

    def count_unexpected(self, source: tuple[str, int], ssrc: int, now: float) -> None:
        """Counts a packet that is of no accepted address, if it is known which stream it is for.

        That is the one that the port belongs to. Where several share it, or have done so a moment
        ago, it is the one whose SSRC the packet bears. In the first moment of a stream nothing is
        counted: early media may have come from elsewhere, and some of it may be under way.
        """
        if len(self.ears) == 1 and now >= self.shared_until:
            meant = list(self.ears.values())
        else:
            meant = [ear for ear in self.ears.values() if ear.ssrc == ssrc]
        if len(meant) == 1 and now >= meant[0].young_until:
            meant[0].unexpected += 1


_NONE: dict[int, _Ear] = {}


class Listener:
    """Listens on the ports of those streams that want it.

    `alive` is told of each packet that is looked at: its stream, and when.
    """

    def __init__(
        self,
        on_latch: OnLatch,
        clock: Callable[[], float] = time.monotonic,
        alive: Callable[[int, float], None] = lambda stream, now: None,
    ) -> None:
        self._on_latch = on_latch
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
            port.sparsest = DENSEST
        far = normal(command.far_host), command.far_port
        ear = _Ear(command.stream, far, command.latch, _packet_seconds(command.ptime))
        port.place(ear, far)
        port.set_event_types(ear, _heard_types(command.event_types, command.payload_type))
        self._of_stream[command.stream] = port
        if command.patience:
            self._patience = min(command.patience, self._patience or command.patience)
        port.young_until = ear.young_until = self._clock() + YOUNG
        self._set_filter(port, DENSEST)

    def change(self, command: Change) -> None:
        """The callee's media has changed; from a new address its first packet is waited for."""
        port = self._of_stream.get(command.stream)
        if port is None:
            return
        ear = port.ears[command.stream]
        if ear.at is not None:
            ear.at = self._clock()  # what it was meant to send before says nothing now
        ear.packet_seconds = _packet_seconds(command.ptime)
        if command.far is not None:
            ear.former, ear.former_until = ear.far, self._clock() + UNDER_WAY
            port.place(ear, (normal(command.far[0]), command.far[1]))
            ear.latched, ear.ssrc = False, None
        # A number that has meant telephone events does so for as long as the call lasts (RFC 3264
        # section 8.3.2), and some events may be under way.
        types = ear.event_types.union(command.event_types)
        port.set_event_types(ear, _heard_types(types, command.payload_type))
        self._set_filter(port, port.one_in)

    def forget(self, stream: int) -> Heard:
        """Listens no more; what had been heard, also what has arrived and was not read yet."""
        port = self._of_stream.get(stream)
        if port is None:
            return Heard()
        self._read(port)
        del self._of_stream[stream]
        ear = port.ears[stream]
        port.lift(ear)
        port.set_event_types(ear, frozenset())
        port.shared_until = self._clock() + LINGERING
        if not port.ears:
            self._selector.unregister(port.bound)
        return ear.heard(port.sparsest * ear.packet_seconds)

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
            self._set_filter(port, one_in(len(self._of_stream), self._patience))

    def _take(self, port: _Port, datagram: bytes, source: tuple[str, int], now: float) -> None:
        try:
            header, payload = RtpHeader.parse(datagram)
        except PacketError:
            return
        if header.payload_type in _RTCP_KINDS:
            return
        if not source[1]:
            return  # a packet may claim to come from port 0, to which none can be sent
        ear = port.whose(source, header.ssrc, now)
        if ear is None:
            port.count_unexpected(source, header.ssrc, now)
            return
        if ear.far == source:
            ear.latched, ear.ssrc = True, header.ssrc
        elif not ear.is_former(source, now):
            if host_problem(source[0], _VERSIONS[port.bound.family]):
                return  # such as a link-local address, which needs an interface beside it
            port.place(ear, source)
            ear.latched, ear.ssrc = True, header.ssrc
            self._on_latch(ear.stream, source)
        ear.receive(header, payload, now, port.one_in)
        self._alive(ear.stream, now)

    def _set_filter(self, port: _Port, wanted: int) -> None:
        """Has the kernel hand up one packet in so many, and the telephone events, from now on."""
        if wanted == port.one_in and not port.is_stale:
            return
        port.one_in = wanted
        port.sparsest = max(port.sparsest, wanted)
        port.is_stale = False
        wanted_now = wanted, frozenset(port.event_types)
        if wanted_now != port.attached:
            port.attached = wanted_now
            attach(port.bound, keep_one_in(*wanted_now))


def _packet_seconds(ptime: int) -> float:
    """How far apart a callee's packets are taken to be where ours are `ptime` ms long."""
    return max(ptime / 1000, USUAL_PACKET)


def _heard_types(event_types: Iterable[int], audio_type: int) -> frozenset[int]:
    """Those of the payload types under which telephone events may come.

    Neither that of the audio nor static ones (RFC 3551 section 6): all packets of these types are
    read, and audio would be too many.
    """
    return frozenset(kind for kind in event_types if kind in _DYNAMIC_TYPES and kind != audio_type)


def _empty(bound: socket.socket) -> None:
    with contextlib.suppress(OSError):
        for _ in range(MOST_STALE):
            bound.recv(1)
