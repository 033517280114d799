"""The RTP header as a value (RFC 3550 section 5.1)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

VERSION = 2
HEADER_SIZE = 12  # bytes, without contributing sources and extension
SAMPLES_PER_PACKET = 160  # 20 ms at 8 kHz; one byte a sample in G.711
SAMPLE_RATE = 8000  # Hz, of every G.711 stream
PACKET_SECONDS = SAMPLES_PER_PACKET / SAMPLE_RATE

SAMPLES_PER_MS = SAMPLE_RATE // 1000
PTIMES = (10, 20, 30, 40, 60)  # ms of audio that a packet may hold (RFC 8866 section 6.4)

PCMU = 0  # RFC 3551 section 6: the static payload type of G.711 µ-law
PCMA = 8  # and of G.711 A-law

_FIXED = struct.Struct("!BBHII")
_EXTENSION = struct.Struct("!HH")


class PacketError(ValueError):
    """The bytes are no RTP packet, or the values fit into none."""


@dataclass(frozen=True, slots=True)
class RtpHeader:
    """What stands before the payload.

    `payload_type` is 0..127, `sequence` 0..65535, `timestamp` (in samples) and each source 32 bits,
    `csrcs` at most 15. A header extension is skipped when parsed, and never written.
    """

    payload_type: int
    sequence: int
    timestamp: int
    ssrc: int
    marker: bool = False
    csrcs: tuple[int, ...] = ()

    def pack(self) -> bytes:
        """The header in network order; a value out of its range is a `PacketError`."""
        if not 0 <= self.payload_type <= 127:
            raise PacketError(f"payload type {self.payload_type} is not in 0..127")
        if len(self.csrcs) > 15:
            raise PacketError(f"{len(self.csrcs)} contributing sources; a header holds 15")
        try:
            return _FIXED.pack(
                VERSION << 6 | len(self.csrcs),
                self.marker << 7 | self.payload_type,
                self.sequence,
                self.timestamp,
                self.ssrc,
            ) + struct.pack(f"!{len(self.csrcs)}I", *self.csrcs)
        except struct.error as error:
            raise PacketError(f"a header value is out of range: {error}") from None

    @classmethod
    def parse(cls, data: bytes) -> tuple[RtpHeader, bytes]:
        """The header and the payload of a datagram; `PacketError` where it is no RTP packet."""
        if len(data) < HEADER_SIZE:
            raise PacketError(f"{len(data)} bytes are too few for an RTP header")
        first, kind, sequence, timestamp, ssrc = _FIXED.unpack_from(data)
        if first >> 6 != VERSION:
            raise PacketError(f"RTP version {first >> 6} instead of {VERSION}")
        csrc_count = first & 0x0F
        start = HEADER_SIZE + 4 * csrc_count
        if len(data) < start:
            raise PacketError(f"{csrc_count} contributing sources do not fit the packet")
        csrcs = struct.unpack_from(f"!{csrc_count}I", data, HEADER_SIZE)
        if first & 0x10:
            start = _after_extension(data, start)
        end = len(data)
        if first & 0x20:
            end -= _padding(data, start)
        header = cls(kind & 0x7F, sequence, timestamp, ssrc, bool(kind & 0x80), csrcs)
        return header, bytes(data[start:end])


def _after_extension(data: bytes, start: int) -> int:
    """Where the payload begins behind the header extension (RFC 3550 section 5.3.1)."""
    if len(data) < start + _EXTENSION.size:
        raise PacketError("the header extension does not fit the packet")
    _, words = _EXTENSION.unpack_from(data, start)
    end: int = start + _EXTENSION.size + 4 * words
    if len(data) < end:
        raise PacketError("the header extension does not fit the packet")
    return end


def _padding(data: bytes, start: int) -> int:
    """How many bytes at the end are padding; the last of them says so."""
    count = data[-1]
    if not 1 <= count <= len(data) - start:
        raise PacketError(f"{count} bytes of padding do not fit the packet")
    return count
