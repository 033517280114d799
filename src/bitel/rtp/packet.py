"""The RTP fixed header (RFC 3550 section 5.1), and constants of G.711 over RTP (RFC 3551)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

VERSION = 2
HEADER_SIZE = 12  # bytes, without contributing sources and extension

SAMPLE_RATE = 8000  # Hz, of every G.711 stream; a sample is one byte
SAMPLES_PER_MS = SAMPLE_RATE // 1000
PTIMES = (10, 20, 30, 40, 60)  # ms of audio that a packet may hold (RFC 8866 section 6.4)
SAMPLES_PER_PACKET = 160  # of 20 ms

PCMU = 0  # RFC 3551 section 6: the static payload type of G.711 µ-law
PCMA = 8  # and of G.711 A-law

_FIXED = struct.Struct("!BBHII")
_EXTENSION = struct.Struct("!HH")


class PacketError(ValueError):
    """The bytes are not a valid RTP or RTCP packet."""


@dataclass(frozen=True, slots=True)
class RtpHeader:
    """An RTP header without its extension. `timestamp` is in samples."""

    payload_type: int
    sequence: int
    timestamp: int
    ssrc: int
    marker: bool = False
    csrcs: tuple[int, ...] = ()

    @classmethod
    def parse(cls, data: bytes) -> tuple[RtpHeader, bytes]:
        """The header, and the payload without padding, of a datagram; raises PacketError."""
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
    """The offset of the payload behind the header extension (RFC 3550 section 5.3.1)."""
    end = start + _EXTENSION.size
    if len(data) >= end:
        end += 4 * _EXTENSION.unpack_from(data, start)[1]
    if len(data) < end:
        raise PacketError("the header extension does not fit the packet")
    return end


def _padding(data: bytes, start: int) -> int:
    """The length of the padding in bytes: its last byte says it."""
    count = data[-1]
    if not 1 <= count <= len(data) - start:
        raise PacketError(f"{count} bytes of padding do not fit the packet")
    return count
