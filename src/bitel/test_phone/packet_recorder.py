"""Recorder of the audio of one call: RTP packets placed by their timestamps.

There is no jitter buffer: packets are placed when the call is over. The input is untrusted, so
every count and length is limited.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bitel.g711 import Pcm, alaw_decode, ulaw_decode
from bitel.rtp.packet import PCMA, PCMU, SAMPLE_RATE, PacketError, RtpHeader

DEFAULT_MINUTES = 10.0  # of audio
MAX_SOURCES = 8  # SSRCs recorded; a call has one, and one more after a transfer
MAX_PAYLOAD = 1600  # samples in a packet: 200 ms
LARGEST_JUMP = 3000  # MAX_DROPOUT of RFC 3550 A.1; packets with a larger jump are ignored

_DECODERS = {PCMU: ulaw_decode, PCMA: alaw_decode}


@dataclass(slots=True)
class _Source:
    """One SSRC. Sequence numbers are extended: they do not wrap."""

    origin: int  # sample of the recording at which its first packet begins
    first_timestamp: int
    sequence: int  # highest so far
    seen: set[int] = field(default_factory=set)
    packets: list[tuple[int, int, bytes]] = field(default_factory=list)  # sample, payload type


class PacketRecorder:
    """Records the first `minutes` of a call's audio from its RTP datagrams."""

    def __init__(self, minutes: float = DEFAULT_MINUTES) -> None:
        self._limit = int(minutes * 60 * SAMPLE_RATE)
        # The shortest packets in use have 10 ms.
        self._max_packets = max(1, self._limit // (SAMPLE_RATE // 100))
        self._sources: dict[int, _Source] = {}
        self._first_arrival = 0.0
        self.packets = 0  # recorded

    def receive(self, datagram: bytes, now: float) -> None:
        """Adds a datagram that was received at `now` (seconds, monotonic clock).

        Ignores duplicates, packets beyond a limit, and everything that is not G.711 in RTP.
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
            sequence = header.sequence + (1 << 16)  # earlier packets then are not negative
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
        """Returns the recording at 8 kHz, from the first packet on.

        Missing packets are silent. Where sources overlap, the later one counts.
        """
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
    """The signed difference of two counters that wrap at `bits` bits."""
    half = 1 << (bits - 1)
    return ((difference + half) & ((1 << bits) - 1)) - half
