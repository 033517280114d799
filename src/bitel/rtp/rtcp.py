"""RTCP packets as values (RFC 3550 section 6): what we report, and what is reported to us."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from bitel.rtp.packet import VERSION, PacketError

SENDER_REPORT = 200
RECEIVER_REPORT = 201
SOURCE_DESCRIPTION = 202
GOODBYE = 203

CNAME = 1  # the one item that a source description must have
UNIX_IN_NTP = 2_208_988_800  # seconds from 1900 to 1970

_HEADER = struct.Struct("!BBH")
_BLOCK_SIZE = 24
_SENDER_INFO = 20  # bytes between a sender report's SSRC and its blocks
_PADDING = 0x20


@dataclass(frozen=True, slots=True)
class ReceptionReport:
    """How one source is heard by whoever reports.

    `lost` is the number of packets lost since the beginning; negative where more came than were
    sent, as duplicates. `highest` is the highest sequence number with its cycles above 16 bits,
    `jitter` is in timestamp units (section 6.4.1).
    """

    ssrc: int
    lost: int
    highest: int
    jitter: int


def reception_reports(datagram: bytes) -> list[ReceptionReport]:
    """All reception reports of a compound packet; `PacketError` where it is none."""
    reports: list[ReceptionReport] = []
    start = 0
    while start < len(datagram):
        if len(datagram) - start < _HEADER.size:
            raise PacketError("a piece of an RTCP header stands at the end")
        first, kind, words = _HEADER.unpack_from(datagram, start)
        end = start + 4 * (words + 1)
        if first >> 6 != VERSION or end > len(datagram):
            raise PacketError(f"no RTCP packet of {4 * (words + 1)} bytes at byte {start}")
        # Each compound packet begins with a report, which has no padding (appendix A.2).
        if start == 0 and (kind not in (SENDER_REPORT, RECEIVER_REPORT) or first & _PADDING):
            raise PacketError(f"an RTCP datagram begins with a packet of type {kind}")
        if kind in (SENDER_REPORT, RECEIVER_REPORT):
            skipped = 8 + (_SENDER_INFO if kind == SENDER_REPORT else 0)
            reports += _blocks(datagram[start + skipped : end], first & 0x1F)
        start = end
    if not start:
        raise PacketError("an empty RTCP datagram")
    return reports


def _blocks(data: bytes, count: int) -> list[ReceptionReport]:
    if len(data) < count * _BLOCK_SIZE:
        raise PacketError(f"{count} reception reports do not fit their packet")
    reports = []
    for start in range(0, count * _BLOCK_SIZE, _BLOCK_SIZE):
        ssrc, lost, highest, jitter = struct.unpack_from("!IIII", data, start)
        lost &= 0xFFFFFF  # above it the fraction lost since the last report
        reports.append(ReceptionReport(ssrc, lost - (lost >> 23 << 24), highest, jitter))
    return reports


def sender_report(ssrc: int, time: float, timestamp: int, packets: int, octets: int) -> bytes:
    """A sender report without blocks; `time` in Unix seconds is that of the RTP `timestamp`."""
    ntp = round((time + UNIX_IN_NTP) * 2**32)
    body = struct.pack(
        "!IQIII", ssrc, ntp % 2**64, timestamp % 2**32, packets % 2**32, octets % 2**32
    )
    return _packet(SENDER_REPORT, 0, body)


def receiver_report(ssrc: int) -> bytes:
    """A receiver report without blocks: what stands first where nothing was sent of late."""
    return _packet(RECEIVER_REPORT, 0, struct.pack("!I", ssrc))


def source_description(ssrc: int, cname: str) -> bytes:
    """Names the source; `cname` is at most 255 bytes."""
    item = cname.encode()
    text = struct.pack("!IBB", ssrc, CNAME, len(item)) + item
    # At least one zero ends the list of items, and as many as fill the word (section 6.5).
    return _packet(SOURCE_DESCRIPTION, 1, text + bytes(4 - len(text) % 4))


def goodbye(ssrc: int) -> bytes:
    """The source sends no more."""
    return _packet(GOODBYE, 1, struct.pack("!I", ssrc))


def _packet(kind: int, count: int, body: bytes) -> bytes:
    return _HEADER.pack(VERSION << 6 | count, kind, len(body) // 4) + body
