from __future__ import annotations

import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bitel.g711 import alaw_decode, ulaw_decode
from bitel.rtp.packet import RtpHeader
from bitel.test_phone.packet_recorder import MAX_SOURCES, PacketRecorder
from tests.support.rtp_packets import pack


def voice(packets: int, sequence: int = 0, timestamp: int = 0, ssrc: int = 1) -> list[bytes]:
    return [
        pack(
            RtpHeader(8, (sequence + i) % 2**16, (timestamp + 160 * i) % 2**32, ssrc, marker=i == 0)
        )
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
    recorder = PacketRecorder(minutes)
    for i, packet in enumerate(packets):
        recorder.receive(packet, 100 + 0.02 * i)
    return recorder


@settings(deadline=None)
@given(st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1))
def test_whole_stream_across_both_wraps(sequence: int, timestamp: int) -> None:
    recorder = listen(voice(30, sequence, timestamp))
    assert recorder.packets == 30
    assert np.array_equal(recorder.pcm16(), decoded(list(range(30))))


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
    recorder = listen([packets[i] for i in [0, *middle, 39]])
    assert recorder.packets == 40 - len(lost)
    expected = decoded([None if i in lost else i for i in range(40)])
    assert np.array_equal(recorder.pcm16(), expected)


def test_packet_before_the_first_one() -> None:
    packets = voice(3, sequence=65535, timestamp=2**32 - 160)
    recorder = listen([packets[1], packets[0], packets[2]])
    assert np.array_equal(recorder.pcm16(), decoded([0, 1, 2]))


def test_silence_between_talkspurts_by_timestamp() -> None:
    pcm16 = listen(voice(2) + voice(2, sequence=2, timestamp=8000)).pcm16()
    assert len(pcm16) == 8000 + 320
    assert not pcm16[320:8000].any()


def test_second_source_lies_where_it_arrived() -> None:
    recorder = listen(voice(50))
    for i, packet in enumerate(voice(50, sequence=777, timestamp=12345, ssrc=2)):
        recorder.receive(packet, 102 + 0.02 * i)
    assert recorder.packets == 100
    assert np.array_equal(recorder.pcm16()[16000:], decoded(list(range(50))))


def test_mu_law() -> None:
    payload = bytes(range(160))
    recorder = listen([pack(RtpHeader(0, 1, 2, 3)) + payload])
    assert np.array_equal(recorder.pcm16(), ulaw_decode(np.frombuffer(payload, np.uint8)))


@settings(deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=30))
def test_hostile_bytes_never_raise(datagrams: list[bytes]) -> None:
    recorder = listen(datagrams)
    assert recorder.packets <= len(datagrams)
    assert len(recorder.pcm16()) <= 10 * 60 * 8000 + 8000


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2**16 - 1), st.integers(0, 2**32 - 1), st.integers(0, 20)),
        max_size=60,
    )
)
def test_what_is_kept_has_bounds(hostile: list[tuple[int, int, int]]) -> None:
    recorder = PacketRecorder(minutes=0.1)
    kept = set()
    for i, (sequence, timestamp, ssrc) in enumerate(hostile):
        before = recorder.packets
        recorder.receive(pack(RtpHeader(8, sequence, timestamp, ssrc)) + bytes(160), i * 0.02)
        if recorder.packets > before:
            kept.add(ssrc)
    assert len(recorder.pcm16()) <= 0.1 * 60 * 8000 + 8000
    assert len(kept) <= MAX_SOURCES
    assert recorder.packets <= len(hostile)


def test_a_long_call_is_kept_up_to_its_limit() -> None:
    recorder = listen(voice(400), minutes=0.1)  # 6 s, of 8
    assert recorder.packets == 300
    assert len(recorder.pcm16()) == 6 * 8000


def test_nothing_received() -> None:
    recorder = PacketRecorder()
    assert (recorder.packets, len(recorder.pcm16())) == (0, 0)
