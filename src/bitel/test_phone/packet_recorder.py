"""The audio of one received call: RTP packets placed by their timestamps.

Nothing is played out here, so nothing has to wait: packets are sorted when the call is over. A
stranger controls every byte that comes in; each count and each length below has a bound.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bitel.g711 import Pcm, alaw_decode, ulaw_decode
from bitel.rtp.packet import PCMA, PCMU, SAMPLE_RATE, PacketError, RtpHeader

DEFAULT_MINUTES = 10.0  # of audio that are kept
MAX_SOURCES = 8  # SSRCs that are recorded; a call has one, and one more after a transfer
MAX_PAYLOAD = 1600  # samples in one packet: 200 ms
LARGEST_JUMP = 3000  # sequence numbers (RFC 3550 A.1, MAX_DROPOUT); a farther one is no loss

_DECODERS = {PCMU: ulaw_decode, PCMA: alaw_decode}


@dataclass(slots=True)
class _Source:
    """One SSRC. Sequence numbers and timestamps are extended: they don't wrap."""

    origin: int  # sample of the recording at which its first packet lies
    first_timestamp: int
    sequence: int  # highest so far
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
        self._first_arrival = 0.0
        self.packets = 0  # kept

    def receive(self, datagram: bytes, now: float) -> None:
        """Takes a datagram; never raises, whatever it holds.

        Ignored are what is no RTP with G.711, duplicates, and what is over a limit.
        """
        try:
            header, payload = RtpHeader.parse(datagram)
        except PacketError:
            return
        known = header.payload_type in _DECODERS and 0 < len(payload) <= MAX_PAYLOAD
        if not known or self.packets >= self._max_packets:
            return
        source = self._sources.get(header.ssrc)
        if source is None:
            if len(self._sources) >= MAX_SOURCES:
                return
            origin = round((now - self._first_arrival) * SAMPLE_RATE) if self.packets else 0
            sequence = header.sequence + (1 << 16)  # so that one that overtook it is not negative
            source = self._sources[header.ssrc] = _Source(origin, header.timestamp, sequence)
        jump = _signed(header.sequence - source.sequence, 16)
        sequence = source.sequence + jump
        sample = source.origin + _signed(header.timestamp - source.first_timestamp, 32)
        too_early = sequence < 0 or sample < -SAMPLE_RATE
        too_late = sample + len(payload) > self._limit
        if sequence in source.seen or abs(jump) > LARGEST_JUMP or too_early or too_late:
            return
        if not self.packets:
            self._first_arrival = now
        self.packets += 1
        source.seen.add(sequence)
        source.sequence = max(source.sequence, sequence)
        source.packets.append((sample, header.payload_type, payload))

    def pcm16(self) -> Pcm:
        """What a listener would have heard: 8 kHz mono from the first sample on, missing packets as
        silence. Where sources overlap, it is the later source."""
        placed = [packet for source in self._sources.values() for packet in source.packets]
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
