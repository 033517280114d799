"""What was heard of one call: RTP packets by sequence number, their audio by timestamp.

Nothing is played out here, so nothing has to wait: packets are sorted when the call is over. A
stranger controls every byte that comes in; each count and each length below has a bound.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bitel.g711 import Pcm, alaw_decode, ulaw_decode
from bitel.rtp.packet import PCMA, PCMU, SAMPLE_RATE, PacketError, RtpHeader

DEFAULT_MINUTES = 10.0  # of audio that are kept
MAX_SOURCES = 8  # SSRCs that are listened to; a call has one, and one more after a transfer
MAX_PAYLOAD = 1600  # samples in one packet: 200 ms
LARGEST_JUMP = 3000  # sequence numbers (RFC 3550 A.1, MAX_DROPOUT); a farther one is no loss

_DECODERS = {PCMU: ulaw_decode, PCMA: alaw_decode}


@dataclass(frozen=True, slots=True)
class ReceptionStats:
    """One call's RTP, summed up.

    Counts are over all sources; a packet that came twice counts as received once. `lost` are the
    sequence numbers missing between first and last, `reordered` packets came after a later one.
    `first_sequence` and `last_sequence` are those of the first source, the last one without its
    cycles. `max_gap_ms` is the longest time between two arrivals, `span_ms` that from the first to
    the last. `ignored` are datagrams that are no RTP with G.711, or over a limit. `pcm16` is what a
    listener would have heard, 8 kHz mono from the first sample on, missing packets as silence.
    """

    payload_type: int | None = None
    ssrcs: tuple[int, ...] = ()
    first_sequence: int | None = None
    last_sequence: int | None = None
    packets: int = 0
    lost: int = 0
    duplicates: int = 0
    reordered: int = 0
    markers: int = 0
    ignored: int = 0
    max_gap_ms: float = 0.0
    span_ms: float = 0.0
    pcm16: Pcm = field(default_factory=lambda: np.zeros(0, np.int16))


@dataclass(slots=True)
class _Source:
    """One SSRC. Sequence numbers and timestamps are extended: they don't wrap."""

    origin: int  # sample of the recording at which its first packet lies
    first_timestamp: int
    sequence: int  # highest so far
    lowest: int
    seen: set[int] = field(default_factory=set)
    packets: list[tuple[int, int, bytes]] = field(default_factory=list)  # sample, payload type


class PacketRecorder:
    """Takes one call's datagrams with their arrival times, in seconds of any steady clock."""

    def __init__(self, minutes: float = DEFAULT_MINUTES) -> None:
        """Keeps the first `minutes` of audio; what lies beyond is ignored."""
        self._limit = int(minutes * 60 * SAMPLE_RATE)
        # Packets of 20 ms are usual, and of 10 ms in use.
        self._max_packets = max(1, self._limit // (SAMPLE_RATE // 100))
        self._sources: dict[int, _Source] = {}
        self._payload_type: int | None = None
        self._first_arrival = 0.0
        self._last_arrival = 0.0
        self._max_gap = 0.0
        self._packets = 0
        self._duplicates = 0
        self._reordered = 0
        self._markers = 0
        self._ignored = 0

    def receive(self, datagram: bytes, now: float) -> None:
        """Takes a datagram in; never raises, whatever it holds."""
        try:
            header, payload = RtpHeader.parse(datagram)
        except PacketError:
            self._ignored += 1
            return
        known = header.payload_type in _DECODERS and 0 < len(payload) <= MAX_PAYLOAD
        if not known or self._packets >= self._max_packets:
            self._ignored += 1
            return
        source = self._sources.get(header.ssrc) or self._new_source(header, now)
        if source is None or not self._place(source, header, payload):
            return
        if self._packets == 0:
            self._first_arrival = now
            self._payload_type = header.payload_type
        else:
            self._max_gap = max(self._max_gap, now - self._last_arrival)
        self._last_arrival = now
        self._packets += 1
        self._markers += header.marker

    def heard(self) -> ReceptionStats:
        """All that has come in so far."""
        sources = list(self._sources.values())
        first = sources[0] if sources else None
        return ReceptionStats(
            payload_type=self._payload_type,
            ssrcs=tuple(self._sources),
            first_sequence=first.lowest & 0xFFFF if first else None,
            last_sequence=first.sequence & 0xFFFF if first else None,
            packets=self._packets,
            lost=sum(s.sequence - s.lowest + 1 - len(s.seen) for s in sources),
            duplicates=self._duplicates,
            reordered=self._reordered,
            markers=self._markers,
            ignored=self._ignored,
            max_gap_ms=self._max_gap * 1000,
            span_ms=(self._last_arrival - self._first_arrival) * 1000,
            pcm16=_assemble(sources),
        )

    def _new_source(self, header: RtpHeader, now: float) -> _Source | None:
        if len(self._sources) >= MAX_SOURCES:
            self._ignored += 1
            return None
        origin = round((now - self._first_arrival) * SAMPLE_RATE) if self._packets else 0
        sequence = header.sequence + (1 << 16)  # so that one that overtook it is not negative
        source = _Source(origin, header.timestamp, sequence - 1, sequence)
        self._sources[header.ssrc] = source
        return source

    def _place(self, source: _Source, header: RtpHeader, payload: bytes) -> bool:
        """Sorts a packet in; False where it is a duplicate or out of all bounds."""
        jump = _signed(header.sequence - source.sequence, 16)
        sequence = source.sequence + jump
        if sequence in source.seen:
            self._duplicates += 1
            return False
        sample = source.origin + _signed(header.timestamp - source.first_timestamp, 32)
        too_early = sequence < 0 or sample < -SAMPLE_RATE
        if abs(jump) > LARGEST_JUMP or too_early or sample + len(payload) > self._limit:
            self._ignored += 1
            return False
        if jump < 0:
            self._reordered += 1
        source.seen.add(sequence)
        source.sequence = max(source.sequence, sequence)
        source.lowest = min(source.lowest, sequence)
        source.packets.append((sample, header.payload_type, payload))
        return True


def _assemble(sources: list[_Source]) -> Pcm:
    """The audio of all sources at its place; where they overlap, the later source."""
    placed = [packet for source in sources for packet in source.packets]
    if not placed:
        return np.zeros(0, np.int16)
    start = min(sample for sample, _, _ in placed)
    end = max(sample + len(payload) for sample, _, payload in placed)
    pcm = np.zeros(end - start, np.int16)
    for sample, payload_type, payload in placed:
        decoded = _DECODERS[payload_type](np.frombuffer(payload, np.uint8))
        pcm[sample - start : sample - start + len(payload)] = decoded
    return pcm


def _signed(difference: int, bits: int) -> int:
    """A difference of two wrapping counters, as the shorter way round."""
    half = 1 << (bits - 1)
    return ((difference + half) & ((1 << bits) - 1)) - half
