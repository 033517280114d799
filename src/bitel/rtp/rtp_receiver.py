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
from bitel.rtp.bpf import DENSEST, attach, keep_one_in, one_in
from bitel.rtp.ipc import Change, Latch, Play
from bitel.rtp.packet import PacketError, RtpHeader
from bitel.rtp.telephone_event import Digits

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
class Reception:
    """What was received from one stream's callee.

    `packets` is an estimate from those that were read. `at` is the time of the last one, or of a
    later change of the media, and `digits_at` that of the first digit; None where there was none.
    `unexpected` counts RTP packets from addresses that were not accepted. While a callee sends, one
    of its packets is read every `gap` seconds or more often.
    """

    packets: int = 0
    at: float | None = None
    digits: str = ""
    digits_at: float | None = None
    unexpected: int = 0
    gap: float = 0.0


@dataclass(slots=True)
class _Callee:
    """The callee of one stream. Its first packet fixes its address."""

    stream: int
    far: tuple[str, int]
    latch: Latch
    packet_seconds: float
    event_types: frozenset[int] = frozenset()
    young_until: float = 0.0
    awaited: bool = False
    """Whether `on_latch` is called for its first packet, wherever that comes from."""
    latched: bool = False
    ssrc: int | None = None
    """Of the packet that was accepted last; None before the first from this address."""
    former: tuple[str, int] | None = None
    """The address before the callee named a new one. Until `former_until` packets from it are taken
    as sent before the change, and do not count as the first from the new address."""
    former_until: float = 0.0
    looked_at: int = 0
    sampled: int = 0
    at: float | None = None
    digits: Digits | None = None  # none keyed yet
    digits_at: float | None = None
    unexpected: int = 0

    def accepts(self, ssrc: int) -> bool:
        """Whether a packet from its address is its own."""
        return self.latch != "host" or self.ssrc is None or self.ssrc == ssrc

    def is_former(self, source: tuple[str, int], now: float) -> bool:
        """Whether a packet may have been sent before the callee named its new address."""
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

    def reception(self, gap: float) -> Reception:
        text = "" if self.digits is None else self.digits.text
        packets = max(self.looked_at, self.sampled)
        return Reception(packets, self.at, text, self.digits_at, self.unexpected, gap)


@dataclass(slots=True)
class _Port:
    """A local port, and the callees whose packets arrive at it."""

    bound: socket.socket
    callees: dict[int, _Callee] = field(default_factory=dict)  # by stream
    by_far: dict[tuple[str, int], dict[int, _Callee]] = field(default_factory=dict)
    event_types: Counter[int] = field(default_factory=Counter)  # of all callees
    one_in: int = DENSEST
    sparsest: int = DENSEST  # the largest `one_in` since the first of the callees
    young_until: float = 0.0
    shared_until: float = 0.0
    """Until then packets for a stream that has ended may arrive among those of others."""
    is_stale: bool = True  # the attached filter lacks a change of `event_types`
    attached: tuple[int, frozenset[int]] | None = None  # None: unknown

    def place(self, callee: _Callee, far: tuple[str, int]) -> None:
        """The callee sends from this address."""
        self.lift(callee)
        callee.far = far
        self.callees[callee.stream] = callee
        self.by_far.setdefault(far, {})[callee.stream] = callee

    def lift(self, callee: _Callee) -> None:
        """Remove the callee."""
        self.callees.pop(callee.stream, None)
        there = self.by_far.get(callee.far, {})
        if there.pop(callee.stream, None) is not None and not there:
            del self.by_far[callee.far]

    def set_event_types(self, callee: _Callee, wanted: frozenset[int]) -> None:
        """Read telephone events of this callee under these payload types from now on."""
        counts = self.event_types
        for kind in wanted - callee.event_types:
            counts[kind] += 1
            self.is_stale = self.is_stale or counts[kind] == 1
        for kind in callee.event_types - wanted:
            counts[kind] -= 1
            if not counts[kind]:
                del counts[kind]
                self.is_stale = True
        callee.event_types = wanted

    def callee_of(self, source: tuple[str, int], ssrc: int, now: float) -> _Callee | None:
        """The oldest callee with this address, else the only one that may still latch onto it.

        Behind a NAT the port differs from the one in the SDP. The host must be the same, unless the
        stream latches onto any host: then its first packet decides, and after that the SSRC. Where
        several streams of the port still wait for their first packet, it is None.
        """
        for callee in self.by_far.get(source, _NONE).values():
            if callee.accepts(ssrc):
                return callee
        waiting = []
        for callee in self.callees.values():
            if callee.is_former(source, now):
                return callee
            if callee.latched:
                if callee.latch == "host" and callee.ssrc == ssrc:
                    return callee
            elif callee.latch != "off":
                waiting.append(callee)
        named = [callee for callee in waiting if callee.far[0] == source[0]]
        if named:
            return named[0] if len(named) == 1 else None
        open_to_all = [callee for callee in waiting if callee.latch == "host"]
        return open_to_all[0] if len(open_to_all) == 1 else None

    def count_unexpected(self, source: tuple[str, int], ssrc: int, now: float) -> None:
        """Count a packet from an address that is not accepted, if its stream can be determined.

        That is the only stream of the port or, where several share it or did so `LINGERING` seconds
        ago, the one with the SSRC of the packet. While a stream is young nothing is counted: early
        media may come from another address.
        """
        if len(self.callees) == 1 and now >= self.shared_until:
            meant = list(self.callees.values())
        else:
            meant = [callee for callee in self.callees.values() if callee.ssrc == ssrc]
        if len(meant) == 1 and now >= meant[0].young_until:
            meant[0].unexpected += 1


_NONE: dict[int, _Callee] = {}


class RtpReceiver:
    """Reads the RTP of the streams that ask for it.

    `on_latch` is called when a callee turns out to send from another address than it named, or was
    awaited, and `alive` for each packet that is read, with its stream and the time.
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
        if not port.callees:
            _empty(port.bound)  # of what the port's last call left behind
            self._selector.register(port.bound, selectors.EVENT_READ, port)
            port.sparsest = DENSEST
        far = normal(command.far_host), command.far_port
        callee = _Callee(command.stream, far, command.latch, _packet_seconds(command.ptime))
        callee.awaited = command.awaited
        port.place(callee, far)
        port.set_event_types(callee, _event_types_of(command.event_types, command.payload_type))
        self._of_stream[command.stream] = port
        if command.patience:
            self._patience = min(command.patience, self._patience or command.patience)
        port.young_until = callee.young_until = self._clock() + YOUNG
        self._set_filter(port, DENSEST)

    def change(self, command: Change) -> None:
        """Apply a change of the callee's media; a new address restarts latching."""
        port = self._of_stream.get(command.stream)
        if port is None:
            return
        callee = port.callees[command.stream]
        if callee.at is not None:
            callee.at = self._clock()  # silence counts from the change
        callee.packet_seconds = _packet_seconds(command.ptime)
        if command.far is not None:
            callee.former, callee.former_until = callee.far, self._clock() + UNDER_WAY
            port.place(callee, (normal(command.far[0]), command.far[1]))
            callee.latched, callee.ssrc = False, None
            callee.awaited = command.awaited
        # A payload type of telephone events keeps its meaning throughout the call (RFC 3264 section
        # 8.3.2), and events may be under way.
        types = callee.event_types.union(command.event_types)
        port.set_event_types(callee, _event_types_of(types, command.payload_type))
        self._set_filter(port, port.one_in)

    def forget(self, stream: int) -> Reception:
        """Stop listening. Returns what was received, including packets that were not read yet."""
        port = self._of_stream.get(stream)
        if port is None:
            return Reception()
        self._read(port)
        del self._of_stream[stream]
        callee = port.callees[stream]
        port.lift(callee)
        port.set_event_types(callee, frozenset())
        port.shared_until = self._clock() + LINGERING
        if not port.callees:
            self._selector.unregister(port.bound)
        return callee.reception(port.sparsest * callee.packet_seconds)

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
        callee = port.callee_of(source, header.ssrc, now)
        if callee is None:
            port.count_unexpected(source, header.ssrc, now)
            return
        if callee.far == source:
            callee.latched, callee.ssrc = True, header.ssrc
            if callee.awaited:
                callee.awaited = False
                self._on_latch(callee.stream, source)
        elif not callee.is_former(source, now):
            if host_problem(source[0], _VERSIONS[port.bound.family]):
                return  # such as a link-local address, which needs an interface beside it
            port.place(callee, source)
            callee.latched, callee.ssrc = True, header.ssrc
            callee.awaited = False
            self._on_latch(callee.stream, source)
        callee.receive(header, payload, now, port.one_in)
        self._alive(callee.stream, now)

    def _set_filter(self, port: _Port, wanted: int) -> None:
        """Have the kernel deliver one audio packet in `wanted`, and all telephone events."""
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
    """Assumed seconds from one packet of the callee to the next, ours being `ptime` ms long."""
    return max(ptime / 1000, USUAL_PACKET)


def _event_types_of(event_types: Iterable[int], audio_type: int) -> frozenset[int]:
    """Those of the payload types that are read as telephone events.

    Not that of the audio, nor static ones (RFC 3551 section 6): every packet of these types is
    read, which would be too many for audio.
    """
    return frozenset(kind for kind in event_types if kind in _DYNAMIC_TYPES and kind != audio_type)


def _empty(bound: socket.socket) -> None:
    with contextlib.suppress(OSError):
        for _ in range(MOST_STALE):
            bound.recv(1)
