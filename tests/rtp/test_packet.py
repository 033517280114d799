from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitel.rtp.packet import PacketError, RtpHeader
from tests.support.rtp_packets import pack

headers = st.builds(
    RtpHeader,
    payload_type=st.integers(0, 127),
    sequence=st.integers(0, 2**16 - 1),
    timestamp=st.integers(0, 2**32 - 1),
    ssrc=st.integers(0, 2**32 - 1),
    marker=st.booleans(),
    csrcs=st.lists(st.integers(0, 2**32 - 1), max_size=15).map(tuple),
)


@settings(deadline=None)
@given(headers, st.binary(max_size=400))
def test_what_is_packed_is_parsed(header: RtpHeader, payload: bytes) -> None:
    assert RtpHeader.parse(pack(header) + payload) == (header, payload)


def test_layout_is_that_of_rfc_3550() -> None:
    header = RtpHeader(8, 0x1234, 0xDEADBEEF, 0x01020304, marker=True)
    assert pack(header) == bytes.fromhex("80 88 1234 deadbeef 01020304")


@settings(deadline=None)
@given(st.binary(max_size=100))
def test_hostile_bytes_raise_nothing_but_packet_error(data: bytes) -> None:
    try:
        header, payload = RtpHeader.parse(data)
    except PacketError:
        return
    assert len(payload) <= len(data) - 12 - 4 * len(header.csrcs)


@settings(deadline=None)
@given(st.integers(0x80, 0xBF), st.binary(min_size=11, max_size=100))
def test_hostile_bytes_of_the_right_version(first: int, rest: bytes) -> None:
    try:
        RtpHeader.parse(bytes([first]) + rest)
    except PacketError:
        return


def test_extension_and_padding_are_taken_off() -> None:
    fixed = bytes.fromhex("b0 08 0001 00000000 00000000")  # padding and extension
    extension = bytes.fromhex("bede 0001 aabbccdd")
    assert RtpHeader.parse(fixed + extension + b"voice" + b"\0\0\3")[1] == b"voice"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(11),
        bytes(12),  # version 0
        bytes.fromhex("81 08 0001 00000000 00000000"),  # a source that is not there
        bytes.fromhex("90 08 0001 00000000 00000000 bede"),
        bytes.fromhex("90 08 0001 00000000 00000000 bede 0002 00000000"),
        bytes.fromhex("a0 08 0001 00000000 00000000"),  # padding that is not there
        bytes.fromhex("a0 08 0001 00000000 00000000 00"),
        bytes.fromhex("a0 08 0001 00000000 00000000 05"),
    ],
)
def test_what_is_no_packet(data: bytes) -> None:
    with pytest.raises(PacketError):
        RtpHeader.parse(data)
