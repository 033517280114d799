"""Receives RTP from the remotes of streams: source addresses, packet counts and digits.

The audio is used only for tones of keys, of the few streams that listen for them. Otherwise the
kernel delivers only a sample of it (`bpf`), which gets smaller with the number of streams, so that
receiving costs little CPU.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from bitel.rtp.bpf import DENSEST, attach, keep_one_in, one_in
from bitel.rtp.ipc import Change, Heard, Pressed
from bitel.rtp.packet import PacketError, RtpHeader
from bitel.rtp.sender.dtmf_tones import ToneDigits
from bitel.rtp.stream_spec import Latch, StreamSpec, host_problem
from bitel.rtp.telephone_event import Digits

MAX_DATAGRAM = 2048  # bytes read of a datagram
MOST_AT_ONCE = 32  # datagrams read from a socket at a time
MOST_LISTENING = 512  # the same, of one whose packets all arrive
MOST_STALE = 1024  # datagrams dropped before a stream begins
MOST_LOST = 50  # packets in a row that count as lost; more are a new numbering
MOST_AUDIO = 250  # packets of audio of one stream that wait to be reported
YOUNG = 0.5  # seconds in which a new stream is sampled densely, to find its source soon
IN_FLIGHT = 1.0  # seconds after a change in which packets sent before it may arrive
LINGERING = 5.0  # seconds after a stream's end in which its remote may still send to a shared port
USUAL_PACKET = 0.02  # seconds of audio in most packets of remotes, whatever our packet time
_DYNAMIC_TYPES = frozenset({*range(35, 64), *range(96, 128)})  # RFC 3551 section 3
_VERSIONS = {socket.AF_INET: 4, socket.AF_INET6: 6}
_RTCP_KINDS = range(72, 77)  # RTCP on the RTP port looks like these payload types (RFC 5761 4)


@dataclass(slots=True)
class RemoteSource:
    """The RTP source of one stream, and statistics of its packets. Its first packet latches it."""

    stream: int
    address: tuple[str, int]
    latch: Latch
    packet_seconds: float
    awaited: bool
    """Whether `on_latch` is called for its first packet even without a new address."""
    young_until: float
    event_types: frozenset[int] = frozenset()
    latched: bool = False
    ssrc: int | None = None
    """SSRC of the last accepted packet; None before the first from this address."""
    former: tuple[str, int] | None = None
    """The address before a change. Until `former_until`, packets from it count as sent before the
    change and do not latch."""
    former_until: float = 0.0
    read: int = 0
    sampled: int = 0
    at: float | None = None
    """Time of the last packet read, or of a later change of the media."""
    events: Digits | None = None
    tones: ToneDigits | None = None
    """The digits in its audio, if it reports keys and agreed to no telephone events."""
    digits_before: str = ""
    """Those before the remote last agreed to telephone events, or to none."""
    audio_type: int = -1
    """Payload type of the audio."""
    audio: list[bytes | None] | None = None
    """Payloads that are not reported yet, None for lost packets; None: audio is not reported."""
    next_sequence: int | None = None
    """Sequence number of the next packet of audio."""
    digits_at: float | None = None
    """Time of the first digit."""
    unexpected: int = 0
    """RTP packets from addresses that were not accepted."""
    reports_keys: bool = False
    reported: int = 0
    """Digits that were reported."""
    gap: float = 0.0
    """Longest expected time in seconds between packets read, while the remote sends."""

    @property
    def listens(self) -> bool:
        """Whether all of its audio is wanted."""
        return self.tones is not None or self.audio is not None

    @property
    def packets(self) -> int:
        """Packets received, estimated from those read."""
        return max(self.read, self.sampled)

    @property
    def digits(self) -> str:
        """The telephone events, or the tones, as digits."""
        if self.tones is not None:
            return self.digits_before + self.tones.text
        return self.digits_before + (self.events.text if self.events else "")

    def accepts(self, ssrc: int) -> bool:
        """Whether a packet from its address with this SSRC is accepted."""
        return self.latch != "host" or self.ssrc is None or self.ssrc == ssrc

    def is_former(self, address: tuple[str, int], now: float) -> bool:
        """Whether a packet may have been sent before the change of the address."""
        return address == self.former and now < self.former_until

    def receive(self, header: RtpHeader, payload: bytes, now: float, one_in: int) -> None:
        """Counts a packet and reads its digits; the kernel delivers one packet in `one_in`."""
        self.read += 1
        if header.sequence % one_in == 0:
            self.sampled += one_in
        self.at = now
        if self.audio is not None and header.payload_type == self.audio_type:
            self._keep_audio(header, payload)
        if self.tones is not None and header.payload_type == self.audio_type:
            before = len(self.tones.text)
            self.tones.receive(payload)
            if self.digits_at is None and len(self.tones.text) > before:
                self.digits_at = now
        if header.payload_type in self.event_types:
            if self.events is None:
                self.events = Digits()
            self.events.receive(header.ssrc, header.timestamp, payload)
            if self.digits_at is None and self.events.text:
                self.digits_at = now

    def _keep_audio(self, header: RtpHeader, payload: bytes) -> None:
        assert self.audio is not None
        if self.next_sequence is not None:
            lost = (header.sequence - self.next_sequence) % 2**16
            if lost < MOST_LOST:
                self.audio += [None] * lost
            elif lost > 2**15:
                return  # a late or repeated packet
        self.next_sequence = (header.sequence + 1) % 2**16
        if len(self.audio) < MOST_AUDIO:
            self.audio.append(payload)


@dataclass(slots=True)
class _Port:
    """A local port and its sources."""

    bound: socket.socket
    sources: dict[int, RemoteSource] = field(default_factory=dict)  # by stream
    by_address: dict[tuple[str, int], dict[int, RemoteSource]] = field(default_factory=dict)
    event_types: Counter[int] = field(default_factory=Counter)  # of all sources
    one_in: int = DENSEST
    sparsest: int = DENSEST  # the largest `one_in` since the first current source
    young_until: float = 0.0
    shared_until: float = 0.0
    """Until then packets for a stream that has ended may arrive."""
    is_stale: bool = True  # whether `event_types` changed since the filter was attached
    attached: tuple[int, frozenset[int]] | None = None  # parameters of the filter; None: unknown

    def place(self, source: RemoteSource, address: tuple[str, int]) -> None:
        """Sets the address of a source."""
        self.remove(source)
        source.address = address
        self.sources[source.stream] = source
        self.by_address.setdefault(address, {})[source.stream] = source

    def remove(self, source: RemoteSource) -> None:
        """Removes a source."""
        self.sources.pop(source.stream, None)
        there = self.by_address.get(source.address, {})
        if there.pop(source.stream, None) is not None and not there:
            del self.by_address[source.address]

    def set_event_types(self, source: RemoteSource, wanted: frozenset[int]) -> None:
        """Sets the payload types of the source's telephone events."""
        counts = self.event_types
        for kind in wanted - source.event_types:
            counts[kind] += 1
            self.is_stale = self.is_stale or counts[kind] == 1
        for kind in source.event_types - wanted:
            counts[kind] -= 1
            if not counts[kind]:
                del counts[kind]
                self.is_stale = True
        source.event_types = wanted

    def source_of(self, address: tuple[str, int], ssrc: int, now: float) -> RemoteSource | None:
        """The oldest source with this address, else the only one that may still latch onto it.

        Behind a NAT the port differs from the one in SDP. The host must be the same, unless the
        stream latches onto any host: then its first packet decides, later the SSRC. None if several
        streams of the port could latch.
        """
        for source in self.by_address.get(address, {}).values():
            if source.accepts(ssrc):
                return source
        waiting = []
        for source in self.sources.values():
            if source.is_former(address, now):
                return source
            if source.latched:
                if source.latch == "host" and source.ssrc == ssrc:
                    return source
            elif source.latch != "off":
                waiting.append(source)
        named = [source for source in waiting if source.address[0] == address[0]]
        if not named:
            named = [source for source in waiting if source.latch == "host"]
        return named[0] if len(named) == 1 else None

    def count_unexpected(self, ssrc: int, now: float) -> None:
        """Counts a packet from an address that is not accepted, if its stream can be determined.

        That is the only stream of the port, or the one with the SSRC of the packet if several share
        it or did so in the last `LINGERING` seconds. Nothing is counted for a young stream, as
        early media may come from another address.
        """
        matching = list(self.sources.values())
        if len(matching) > 1 or now < self.shared_until:
            matching = [source for source in matching if source.ssrc == ssrc]
        if len(matching) == 1 and now >= matching[0].young_until:
            matching[0].unexpected += 1


class RtpReceiver:
    """Reads the RTP of all streams that receive.

    `on_latch` is called with the stream and the address when a stream latches onto a new address,
    or was `awaited`; `on_packet` with the stream and the time of each packet read.
    """

    def __init__(
        self,
        on_latch: Callable[[int, tuple[str, int]], None],
        clock: Callable[[], float] = time.monotonic,
        on_packet: Callable[[int, float], None] = lambda stream, now: None,
    ) -> None:
        self._on_latch = on_latch
        self._clock = clock
        self._on_packet = on_packet
        self._selector = selectors.DefaultSelector()
        self._ports: dict[int, _Port] = {}
        self._of_stream: dict[int, _Port] = {}
        self._first = 0
        self._with_audio: set[int] = set()
        """Streams that report audio."""
        self.pressed: list[Pressed] = []
        """Keys of streams that report them, since the caller has cleared this."""
        self._silence_timeout = 0.0  # the shortest that a stream has had

    def __len__(self) -> int:
        return len(self._of_stream)

    def open(self, port: int, bound: socket.socket) -> None:
        """Sets the socket of a port."""
        self._ports[port] = _Port(bound)

    def add(
        self,
        stream: int,
        spec: StreamSpec,
        *,
        reports_keys: bool = False,
        reports_audio: bool = False,
    ) -> None:
        """Starts receiving for a stream."""
        port = self._ports[spec.port]
        if not port.sources:
            _drain(port.bound)  # packets for the port's last call
            self._selector.register(port.bound, selectors.EVENT_READ, port)
            port.sparsest = DENSEST
        port.young_until = self._clock() + YOUNG
        source = RemoteSource(
            stream,
            spec.remote,
            spec.latch,
            _packet_seconds(spec.ptime),
            spec.awaited,
            port.young_until,
            reports_keys=reports_keys,
            audio_type=spec.payload_type,
        )
        port.place(source, spec.remote)
        port.set_event_types(source, _event_types_of(spec.event_types, spec.payload_type))
        if reports_keys and spec.tones:
            source.tones = ToneDigits(spec.law)
        if reports_audio:
            source.audio = []
            self._with_audio.add(stream)
        self._of_stream[stream] = port
        if timeout := spec.silence_timeout:
            self._silence_timeout = min(timeout, self._silence_timeout or timeout)
        self._set_filter(port, DENSEST)

    def change(self, command: Change) -> None:
        """Applies a change of the stream's media; a new address restarts latching."""
        spec, port = command.spec, self._of_stream.get(command.stream)
        if port is None:
            return
        source = port.sources[command.stream]
        if source.at is not None:
            source.at = self._clock()  # silence counts from the change
        source.packet_seconds = _packet_seconds(spec.ptime)
        if command.moved:
            source.former, source.former_until = source.address, self._clock() + IN_FLIGHT
            port.place(source, spec.remote)
            source.latched, source.ssrc = False, None
            source.awaited = spec.awaited
        # Payload types keep their meaning throughout the call (RFC 3264 section 8.3.2), and events
        # with the old one may still arrive.
        types = source.event_types.union(spec.event_types)
        port.set_event_types(source, _event_types_of(types, spec.payload_type))
        source.audio_type = spec.payload_type
        if source.reports_keys and spec.tones != (source.tones is not None):
            source.digits_before = source.digits
            source.tones, source.events = ToneDigits(spec.law) if spec.tones else None, None
        self._set_filter(port, port.one_in)

    def heard(self) -> list[Heard]:
        """The audio since the last call, of the streams that report it."""
        found: list[Heard] = []
        for stream in self._with_audio:
            audio = self._of_stream[stream].sources[stream].audio
            if audio:
                found.append(Heard(stream, tuple(audio)))
                audio.clear()
        return found

    def stop_audio(self, stream: int) -> None:
        """Reports no further audio of a stream."""
        self._with_audio.discard(stream)
        port = self._of_stream.get(stream)
        if port is not None:
            port.sources[stream].audio = None

    def remove(self, stream: int) -> RemoteSource | None:
        """Reads the pending packets of a stream and stops receiving; None if it was not added."""
        port = self._of_stream.get(stream)
        if port is None:
            return None
        self._read(port)
        self._with_audio.discard(stream)
        del self._of_stream[stream]
        source = port.sources[stream]
        port.remove(source)
        port.set_event_types(source, frozenset())
        port.shared_until = self._clock() + LINGERING
        if not port.sources:
            self._selector.unregister(port.bound)
        source.gap = port.sparsest * source.packet_seconds
        return source

    def read(self, deadline: float) -> bool:
        """Reads one readable socket, and others until the deadline.

        False if some were not read; the next call begins with these.
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
        now = self._clock()
        listens = any(source.listens for source in port.sources.values())
        most = MOST_LISTENING if listens else MOST_AT_ONCE
        for datagram, address in datagrams(port.bound, most):
            self._receive(port, datagram, address, now)
        if now >= port.young_until:
            self._set_filter(port, one_in(len(self._of_stream), self._silence_timeout))

    def _receive(self, port: _Port, datagram: bytes, address: tuple[str, int], now: float) -> None:
        try:
            header, payload = RtpHeader.parse(datagram)
        except PacketError:
            return
        # A spoofed source port 0 can't be sent to.
        if header.payload_type in _RTCP_KINDS or not address[1]:
            return
        source = port.source_of(address, header.ssrc, now)
        if source is None:
            port.count_unexpected(header.ssrc, now)
            return
        is_new = source.address != address
        if not is_new or not source.is_former(address, now):
            if is_new:
                if host_problem(address[0], _VERSIONS[port.bound.family]):
                    return  # such as a link-local address, which needs an interface
                port.place(source, address)
            source.latched, source.ssrc = True, header.ssrc
            if is_new or source.awaited:
                source.awaited = False
                self._on_latch(source.stream, address)
        source.receive(header, payload, now, port.one_in)
        if source.reports_keys and len(source.digits) > source.reported:
            keys = source.digits[source.reported :]
            source.reported += len(keys)
            self.pressed.append(Pressed(source.stream, keys, now))
        self._on_packet(source.stream, now)

    def _set_filter(self, port: _Port, wanted: int) -> None:
        """Makes the kernel deliver one audio packet in `wanted`, and all telephone events.

        All of them, while the audio of one of its streams is listened to.
        """
        if any(source.listens for source in port.sources.values()):
            wanted = 1
        if wanted == port.one_in and not port.is_stale:
            return
        port.one_in = wanted
        port.sparsest = max(port.sparsest, wanted)
        port.is_stale = False
        parameters = wanted, frozenset(port.event_types)
        if parameters != port.attached:
            port.attached = parameters
            attach(port.bound, keep_one_in(*parameters))


def datagrams(bound: socket.socket, most: int) -> Iterator[tuple[bytes, tuple[str, int]]]:
    """Reads up to `most` pending datagrams, each with its source address."""
    for _ in range(most):
        try:
            datagram, address = bound.recvfrom(MAX_DATAGRAM)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            continue  # an ICMP error for a sent packet, which is cleared by reading it
        yield datagram, (address[0], address[1])


def _packet_seconds(ptime: int) -> float:
    """Assumed seconds between packets of the remote, if ours have `ptime` ms."""
    return max(ptime / 1000, USUAL_PACKET)


def _event_types_of(event_types: Iterable[int], audio_type: int) -> frozenset[int]:
    """The payload types that are read as telephone events.

    The kernel delivers every packet of these, so the type of the audio and static types (RFC 3551
    section 6) are excluded.
    """
    return frozenset(kind for kind in event_types if kind in _DYNAMIC_TYPES and kind != audio_type)


def _drain(bound: socket.socket) -> None:
    with contextlib.suppress(OSError):
        for _ in range(MOST_STALE):
            bound.recv(1)
