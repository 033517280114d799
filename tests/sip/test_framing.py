"""Cutting a stream into messages: however it arrives, and whatever arrives."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitel.sip.framing import MAX_FIRST_LINE, Framer, FramingError, KeepAlive
from bitel.sip.message import MAX_DATAGRAM, MAX_HEAD
from tests.support.sip_bench import ANSWER, request

PING, PONG = KeepAlive.PING, KeepAlive.PONG
OPTIONS = request("OPTIONS").encode()
INVITE = request("INVITE", body=ANSWER).encode()
COMPACT = OPTIONS.replace(b"Content-Length:", b"l :")
FOLDED = OPTIONS.replace(b"Content-Length: ", b"Content-Length:\r\n  ")
RESPONSE = b"SIP/2.0 200 OK\r\nCONTENT-LENGTH:3\r\n\r\nabc"

Frame = bytes | KeepAlive


def frames(*pieces: bytes) -> list[Frame]:
    framer, found = Framer(), list[Frame]()
    for piece in pieces:
        framer.feed(piece)
        while (frame := framer.next_frame()) is not None:
            found.append(frame)
    return found


def outcome(*pieces: bytes) -> tuple[list[Frame], tuple[str, bytes] | None]:
    """The frames before the fault, and the fault."""
    framer, found = Framer(), list[Frame]()
    try:
        for piece in pieces:
            framer.feed(piece)
            while (frame := framer.next_frame()) is not None:
                found.append(frame)
    except FramingError as fault:
        return found, (str(fault), b"".join(fault.messages))
    return found, None


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(bounds)]


messages = st.sampled_from([OPTIONS, INVITE, COMPACT, FOLDED, RESPONSE])


@given(st.lists(messages, max_size=5), st.lists(st.integers(0, 10_000), max_size=20))
def test_any_cutting_yields_the_same_messages(sent: list[bytes], places: list[int]) -> None:
    assert frames(*cut(b"".join(sent), places)) == sent


def test_pieces_of_one_byte() -> None:
    stream = b"\r\n\r\n" + INVITE + b"\r\n" + OPTIONS + RESPONSE
    found = frames(*(stream[at : at + 1] for at in range(len(stream))))
    assert found == [PONG, PING, INVITE, PONG, OPTIONS, RESPONSE]


def test_keep_alives_between_messages() -> None:
    assert frames(b"\r\n") == [PONG]
    assert frames(b"\r\n\r\n\r\n\r\n") == [PONG, PING, PONG, PING]
    assert frames(b"\r\n", OPTIONS, b"\r\n") == [PONG, OPTIONS, PONG]
    assert frames(b"\r") == []


pieces = st.one_of(
    messages,
    st.sampled_from([b"\r\n", b"\r\n\r\n", b"\n", b"\r", b"\0", b"GET / HTTP/1.1\r\n\r\n"]),
    st.sampled_from([b"Content-Length: 5\r\n", b"SIP/2.0 200 OK\r\n", b"x", b"\xff\xfe"]),
    st.binary(max_size=30),
)


@settings(max_examples=300)
@given(st.lists(pieces, max_size=8), st.lists(st.integers(0, 10_000), max_size=20))
def test_hostile_bytes_meet_the_same_end_however_they_are_cut(
    sent: list[bytes], places: list[int]
) -> None:
    stream = b"".join(sent)
    whole, _ = outcome(stream)
    in_pieces, _ = outcome(*cut(stream, places))
    assert in_pieces == whole
    assert sum(len(frame) for frame in whole if isinstance(frame, bytes)) <= len(stream)


@pytest.mark.parametrize(
    "stream",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01\x02\x00",
        b"\0\0\0\0",
        b" INVITE",
        b"\rx",
        b"INVITE sip:a SIP/3.0\r\n",
        b"x" * MAX_FIRST_LINE,
        b"SIP/2.0 200 OK\r\n" + b"A: b\r\n" * 4000,
    ],
)
def test_what_is_not_sip_ends_the_stream_at_once(stream: bytes) -> None:
    found, fault = outcome(stream)
    assert found == []
    assert fault is not None
    assert fault[1] == b""


@pytest.mark.parametrize(
    "lengths",
    [
        b"",
        b"Content-Length: 0\r\nl: 5\r\n",
        b"Content-Length: -1\r\n",
        b"Content-Length: \xd9\xa3\r\n",
        b"Content-Length: 1 2\r\n",
        b"Content-Length:\r\n",
        b"Content-Length: 9999999\r\n",
        b"Content-Length: 65536\r\n",
    ],
)
def test_a_message_whose_end_cannot_be_told(lengths: bytes) -> None:
    bad = OPTIONS.replace(b"Content-Length: 0\r\n", lengths)
    found, fault = outcome(OPTIONS + bad + OPTIONS)
    assert found == [OPTIONS], "what came before is still of use"
    assert fault is not None
    assert fault[1] == bad + OPTIONS


def test_the_longest_message() -> None:
    head = b"SIP/2.0 200 OK\r\nContent-Length: %d\r\n\r\n"
    size = MAX_DATAGRAM - len(head % 10_000)
    whole = head % size + b"x" * size
    assert frames(whole) == [whole]
    assert outcome(head % (size + 1))[1] is not None
    long_head = b"SIP/2.0 200 OK\r\nl: 0\r\nX: "
    longest = long_head + b"x" * (MAX_HEAD - len(long_head)) + b"\r\n\r\n"
    assert frames(longest) == [longest]


def test_between_and_within() -> None:
    framer = Framer()
    assert framer.is_between
    framer.feed(OPTIONS[:50])
    assert framer.next_frame() is None
    assert not framer.is_between
    framer.feed(OPTIONS[50:])
    assert framer.next_frame() == OPTIONS
    assert framer.is_between
