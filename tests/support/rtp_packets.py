"""RTP as the tests send it."""

from __future__ import annotations

import struct

from bitel.rtp.packet import RtpHeader


def pack(header: RtpHeader) -> bytes:
    """The header in network order (RFC 3550 section 5.1)."""
    return struct.pack(
        f"!BBHII{len(header.csrcs)}I",
        2 << 6 | len(header.csrcs),
        header.marker << 7 | header.payload_type,
        header.sequence,
        header.timestamp,
        header.ssrc,
        *header.csrcs,
    )
