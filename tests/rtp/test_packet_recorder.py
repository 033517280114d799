from __future__ import annotations

import random
import socket

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitel.g711 import alaw_decode, alaw_encode, ulaw_decode
from bitel.rtp.packet import RtpHeader
from bitel.rtp.packet_recorder import MAX_SOURCES, PacketRecorder
from bitel.rtp.receiver import Receiver
from tests.support.waiting import until


def voice(packets: int, sequence: int = 0, timestamp: int = 0, ssrc: int = 1) -> list[bytes]:
    return [
        RtpHeader(
            8, (sequence + i) % 2**16, (timestamp + 160 * i) % 2**32, ssrc, marker=i == 0
        ).pack()
        + bytes([i % 256]) * 160
        for i in range(packets)
    ]


def decoded(numbers: list[int | None]) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
    parts = [
        np.zeros(160, np.int16) if i is None else alaw_decode(np.full(160, i % 256, np.uint8))
        for i in numbers
    ]
    return np.concatenate(parts)


def listen(packets: list[bytes], minutes: float = 10) -> PacketRecorder:
    hearing = PacketRecorder(minutes)
    for i, packet in enumerate(packets):
        hearing.receive(packet, 100 + 0.02 * i)
    return hearing


@settings(deadline=None)
@given(st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1))
def test_whole_stream_across_both_wraps(sequence: int, timestamp: int) -> None:
    heard = listen(voice(30, sequence, timestamp)).heard()
    assert (heard.packets, heard.lost, heard.duplicates, heard.reordered) == (30, 0, 0, 0)
    assert (heard.first_sequence, heard.last_sequence) == (sequence, (sequence + 29) % 2**16)
    assert (heard.payload_type, heard.ssrcs, heard.markers) == (8, (1,), 1)
    assert heard.max_gap_ms == pytest.approx(20, abs=0.01)
    assert heard.span_ms == pytest.approx(29 * 20, abs=0.01)
    assert np.array_equal(heard.pcm16, decoded(list(range(30))))


@settings(deadline=None)
@given(
    st.sets(st.integers(1, 38), max_size=20),
    st.sets(st.integers(1, 38), max_size=10),
    st.randoms(use_true_random=False),
    st.integers(0, 2**16 - 1),
)
def test_loss_duplication_and_disorder(
    lost: set[int], twice: set[int], shuffler: random.Random, sequence: int
) -> None:
    packets = voice(40, sequence)
    middle = [i for i in range(1, 39) if i not in lost] + [i for i in twice if i not in lost]
    shuffler.shuffle(middle)
    order = [0, *middle, 39]
    heard = listen([packets[i] for i in order]).heard()
    firsts = list(dict.fromkeys(order))
    assert heard.lost == len(lost)
    assert heard.duplicates == len(twice - lost)
    assert heard.packets == 40 - len(lost)
    assert heard.reordered == sum(i < max(firsts[: n + 1]) for n, i in enumerate(firsts))
    expected = decoded([None if i in lost else i for i in range(40)])
    assert np.array_equal(heard.pcm16, expected)


def test_packet_before_the_first_one() -> None:
    packets = voice(3, sequence=65535, timestamp=2**32 - 160)
    heard = listen([packets[1], packets[0], packets[2]]).heard()
    assert (heard.first_sequence, heard.last_sequence, heard.lost) == (65535, 1, 0)
    assert heard.reordered == 1
    assert np.array_equal(heard.pcm16, decoded([0, 1, 2]))


def test_silence_between_talkspurts_by_timestamp() -> None:
    packets = voice(2) + voice(2, sequence=2, timestamp=8000)
    heard = listen(packets).heard()
    assert heard.lost == 0
    assert heard.markers == 2
    assert len(heard.pcm16) == 8000 + 320
    assert not heard.pcm16[320:8000].any()


def test_second_source_lies_where_it_arrived() -> None:
    hearing = listen(voice(50))
    for i, packet in enumerate(voice(50, sequence=777, timestamp=12345, ssrc=2)):
        hearing.receive(packet, 102 + 0.02 * i)
    heard = hearing.heard()
    assert heard.ssrcs == (1, 2)
    assert heard.packets == 100
    assert heard.lost == 0
    assert np.array_equal(heard.pcm16[16000:], decoded(list(range(50))))


def test_mu_law() -> None:
    payload = bytes(range(160))
    heard = listen([RtpHeader(0, 1, 2, 3).pack() + payload]).heard()
    assert heard.payload_type == 0
    assert np.array_equal(heard.pcm16, ulaw_decode(np.frombuffer(payload, np.uint8)))


@settings(deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=30))
def test_hostile_bytes_never_raise(datagrams: list[bytes]) -> None:
    heard = listen(datagrams).heard()
    assert heard.packets + heard.ignored + heard.duplicates == len(datagrams)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1), st.integers(0, 20)),
        max_size=60,
    )
)
def test_what_is_kept_has_bounds(hostile: list[tuple[int, int, int]]) -> None:
    hearing = PacketRecorder(minutes=0.1)
    for i, (sequence, timestamp, ssrc) in enumerate(hostile):
        hearing.receive(RtpHeader(8, sequence, timestamp, ssrc).pack() + bytes(160), i * 0.02)
    heard = hearing.heard()
    assert len(heard.pcm16) <= 0.1 * 60 * 8000 + 8000
    assert len(heard.ssrcs) <= MAX_SOURCES
    assert heard.packets + heard.ignored + heard.duplicates == len(hostile)
    assert heard.lost >= 0


def test_a_long_call_is_kept_up_to_its_limit() -> None:
    heard = listen(voice(400), minutes=0.1).heard()  # 6 s, of 8
    assert (heard.packets, heard.ignored) == (300, 100)
    assert len(heard.pcm16) == 6 * 8000


def test_nothing_heard() -> None:
    heard = PacketRecorder().heard()
    assert (heard.payload_type, heard.ssrcs, heard.packets, len(heard.pcm16)) == (None, (), 0, 0)


async def test_receiver_hears_what_is_sent_to_its_port() -> None:
    receiver = await Receiver.open("127.0.0.1")
    tone = (8000 * np.sin(np.arange(1600) * 2 * np.pi * 440 / 8000)).astype(np.int16)
    codes = alaw_encode(tone).tobytes()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as caller:
        caller.sendto(b"noise", ("127.0.0.1", receiver.port))
        for i in range(10):
            packet = RtpHeader(8, i, 160 * i, 5).pack() + codes[160 * i : 160 * i + 160]
            caller.sendto(packet, ("127.0.0.1", receiver.port))
    await until(lambda: receiver.heard().packets >= 10)
    heard = receiver.close()
    assert (heard.lost, heard.ignored) == (0, 1)
    assert np.array_equal(heard.pcm16, alaw_decode(np.frombuffer(codes, np.uint8)))
