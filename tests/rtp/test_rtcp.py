from __future__ import annotations

import contextlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitel.rtp.packet import PacketError
from bitel.rtp.sender.rtcp import (
    ReceptionReport,
    goodbye,
    receiver_report,
    reception_reports,
    sender_report,
    source_description,
)

words = st.integers(0, 2**32 - 1)
blocks = st.builds(ReceptionReport, words, st.integers(-(2**23), 2**23 - 1), words, words)


def packed(report: ReceptionReport, fraction: int = 77) -> bytes:
    lost = fraction << 24 | report.lost & 0xFFFFFF
    return struct.pack("!IIIIII", report.ssrc, lost, report.highest, report.jitter, 1, 2)


def with_blocks(kind: int, reports: list[ReceptionReport], tail: bytes = b"") -> bytes:
    body = bytes(4 if kind == 201 else 24) + b"".join(map(packed, reports)) + tail
    return struct.pack("!BBH", 0x80 | len(reports), kind, len(body) // 4) + body


@given(st.sampled_from([200, 201]), st.lists(blocks, max_size=31), st.lists(blocks, max_size=31))
def test_blocks_of_compound_packets(
    kind: int, first: list[ReceptionReport], second: list[ReceptionReport]
) -> None:
    extension = bytes(8)  # profile-specific, behind the blocks
    datagram = (
        with_blocks(kind, first, extension)
        + source_description(7, "callee@example")
        + with_blocks(201, second)
        + goodbye(7)
    )
    assert reception_reports(datagram) == first + second


def test_our_sender_report() -> None:
    # 1900 to 1970 are 2,208,988,800 s; half a second is the upper bit of the fraction.
    data = sender_report(0xCAFEBABE, 1_000_000_000.5, 2**32 + 5, 250, 40000)
    assert struct.unpack("!BBHIIIIII", data) == (
        *(0x80, 200, 6, 0xCAFEBABE),
        *(3_208_988_800, 2**31, 5, 250, 40000),
    )
    assert reception_reports(data) == []


@pytest.mark.parametrize("cname", ["", "a", "ab", "abc", "abcd", "x" * 255])
def test_our_source_description_fills_its_words(cname: str) -> None:
    data = source_description(1, cname)
    assert len(data) % 4 == 0
    assert len(data) == 4 * (struct.unpack_from("!H", data, 2)[0] + 1)
    assert data[8:10] == bytes([1, len(cname)])
    assert data[10:].rstrip(b"\0") == cname.encode()
    assert data.endswith(b"\0")


def test_our_other_packets() -> None:
    assert receiver_report(1) == bytes.fromhex("80c9000100000001")
    assert goodbye(1) == bytes.fromhex("81cb000100000001")


@pytest.mark.parametrize(
    "datagram",
    [
        b"",
        b"\x80",
        goodbye(1),  # no report at its beginning
        b"\x40" + receiver_report(1)[1:],  # version 1
        b"\xa0" + receiver_report(1)[1:],  # padding in the first packet
        receiver_report(1)[:-1],
        receiver_report(1) + b"\x80\xca",
        b"\x81" + receiver_report(1)[1:],  # a block that is not there
        b"\x9f" + sender_report(1, 0, 0, 0, 0)[1:],
    ],
)
def test_what_is_no_rtcp(datagram: bytes) -> None:
    with pytest.raises(PacketError):
        reception_reports(datagram)


@settings(deadline=None)
@given(
    st.binary(max_size=300)
    | st.builds(
        lambda head, rest: head + rest, st.just(b"\x81\xc8\x00\x0c"), st.binary(max_size=90)
    )
)
def test_hostile_bytes_are_an_error_or_reports(datagram: bytes) -> None:
    with contextlib.suppress(PacketError):
        assert len(reception_reports(datagram)) <= len(datagram) // 24
