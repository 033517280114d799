"""The arrays against the plain values: what leaves is what `RtpHeader.pack` would have made."""

from __future__ import annotations

import ctypes
import errno
import socket
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitel.rtp.packet import RtpHeader
from bitel.rtp.sender.packet_batch import Batch, StreamRow
from bitel.rtp.sender.sendmmsg import Group, Packets, Refused, Sendmmsg, Transmit, sockaddr
from tests.rtp.streams import host_and_port
from tests.support.rtp_packets import pack

VOICE = np.arange(160 * 20, dtype=np.uint32).astype(np.uint8)


class Wire:
    """Reads the packets as the kernel would, and refuses what it is told to."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, tuple[str, int], bytes]] = []
        self.refuse: set[int] = set()  # ports

    def __call__(self, packets: Packets, groups: Sequence[Group]) -> Refused:
        refused = []
        for descriptor, first, count in groups:
            for row in range(first, first + count):
                far = host_and_port(packets.family, packets.names[row].tobytes())
                if far[1] in self.refuse:
                    refused.append((row, errno.EPERM))
                    continue
                payload = ctypes.string_at(int(packets.payloads[row]), 160)
                self.sent.append((descriptor, far, packets.headers[row].tobytes() + payload))
        return refused


def new_stream(number: int, descriptor: int = 5, **changes: Any) -> StreamRow:
    values: dict[str, Any] = {"payload_type": 8, "sequence": 0, "timestamp": 0}
    values |= {"ssrc": number, "packets": 20}
    values |= changes
    far = sockaddr(socket.AF_INET, "192.0.2.1", 1000 + number)
    return StreamRow(number, descriptor, far, payload=VOICE.ctypes.data, **values)


starts = st.tuples(
    st.integers(1, 6),  # descriptor
    st.integers(0, 127),
    st.integers(0, 2**16 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
)


@settings(deadline=None, max_examples=40)
@given(st.lists(starts, min_size=1, max_size=150), st.integers(1, 5), st.data())
def test_headers_are_those_of_the_plain_value(
    streams: list[tuple[int, int, int, int, int]], ticks: int, data: st.DataObject
) -> None:
    wire = Wire()
    batch = Batch(socket.AF_INET, wire)
    for number, (descriptor, payload_type, sequence, timestamp, ssrc) in enumerate(streams):
        batch.add(
            new_stream(
                number,
                descriptor,
                payload_type=payload_type,
                sequence=sequence,
                timestamp=timestamp,
                ssrc=ssrc,
            )
        )
    assert batch.settle() == []
    removed: set[int] = set()
    for tick in range(ticks):
        wire.sent.clear()
        assert batch.send() == (len(streams) - len(removed), 0)
        expected = sorted(
            (
                descriptor,
                ("192.0.2.1", 1000 + number),
                pack(
                    RtpHeader(
                        payload_type,
                        (sequence + tick) % 2**16,
                        (timestamp + 160 * tick) % 2**32,
                        ssrc,
                        marker=tick == 0,
                    )
                )
                + VOICE[160 * tick : 160 * tick + 160].tobytes(),
            )
            for number, (descriptor, payload_type, sequence, timestamp, ssrc) in enumerate(streams)
            if number not in removed
        )
        assert sorted(wire.sent) == expected
        descriptors = [descriptor for descriptor, _, _ in wire.sent]
        assert descriptors == sorted(descriptors)  # one run for each socket
        leave = data.draw(st.sets(st.sampled_from(range(len(streams))))) - removed
        for number in leave:
            batch.remove(number)
        assert {row.stream: row.sent for row in batch.settle()} == dict.fromkeys(leave, tick + 1)
        removed |= leave


def test_batch_grows_and_shrinks() -> None:
    wire = Wire()
    batch = Batch(socket.AF_INET, wire)
    for number in range(1000):
        batch.add(new_stream(number))
    batch.settle()
    assert batch.send() == (1000, 0)
    for number in range(5, 1000):
        batch.remove(number)
    assert len(batch.settle()) == 995
    wire.sent.clear()
    batch.send()
    assert [RtpHeader.parse(data)[0].sequence for _, _, data in wire.sent] == [1] * 5
    assert len(batch) == 5


def test_a_stream_removed_before_its_first_packet_is_still_counted() -> None:
    batch = Batch(socket.AF_INET, Wire())
    batch.add(new_stream(1))
    batch.remove(1)
    assert not batch.idle
    assert [(row.stream, row.sent) for row in batch.settle()] == [(1, 0)]
    assert batch.idle


def test_rows_that_have_run_out_are_pointed_on() -> None:
    wire = Wire()
    batch = Batch(socket.AF_INET, wire)
    batch.add(new_stream(1, packets=1))
    batch.add(new_stream(2, packets=5))
    batch.settle()
    assert batch.run_out() == []
    batch.send()
    [(row, stream)] = batch.run_out()
    assert stream == 1
    batch.point(row, VOICE.ctypes.data + 160 * 7, 2)
    assert batch.run_out() == []
    wire.sent.clear()
    batch.send()
    assert wire.sent[row][2][12:] == VOICE[160 * 7 : 160 * 8].tobytes()


def test_refused_packets_are_counted_and_their_place_in_the_sequence_is_kept() -> None:
    wire = Wire()
    batch = Batch(socket.AF_INET, wire)
    batch.add(new_stream(1))
    batch.add(new_stream(2))
    batch.settle()
    wire.refuse = {1001}
    assert batch.send() == (1, 1)
    wire.refuse = set()
    assert batch.send() == (2, 0)
    sequences = {far[1]: RtpHeader.parse(data)[0].sequence for _, far, data in wire.sent}
    assert sequences == {1001: 1, 1002: 1}
    batch.remove(1)
    [row] = batch.settle()
    assert (row.sent, row.refused, row.errno) == (1, 1, errno.EPERM)


@pytest.fixture
def transmit() -> Transmit:
    return Sendmmsg()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_packets_reach_their_addresses(transmit: Transmit, host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with (
        socket.socket(family, socket.SOCK_DGRAM) as ours,
        socket.socket(family, socket.SOCK_DGRAM) as theirs,
    ):
        ours.bind((host, 0))
        theirs.bind((host, 0))
        theirs.settimeout(5)
        batch = Batch(family, transmit)
        far = sockaddr(family, host, theirs.getsockname()[1])
        voice = VOICE.ctypes.data
        batch.add(StreamRow(1, ours.fileno(), far, 8, 7, 9, 11, voice, 3))
        batch.add(StreamRow(2, ours.fileno(), far, 0, 7, 9, 12, voice, 3))
        batch.settle()
        assert batch.send() == (2, 0)
        data = [theirs.recv(400) for _ in range(2)]
        assert data[0] == pack(RtpHeader(8, 7, 9, 11, marker=True)) + VOICE[:160].tobytes()
        assert data[1] == pack(RtpHeader(0, 7, 9, 12, marker=True)) + VOICE[:160].tobytes()


def test_a_bad_destination_does_not_stop_the_others(transmit: Transmit) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as theirs,
    ):
        ours.setblocking(False)
        ours.bind(("127.0.0.1", 0))
        theirs.bind(("127.0.0.1", 0))
        theirs.setblocking(False)
        batch = Batch(socket.AF_INET, transmit)
        good = sockaddr(socket.AF_INET, "127.0.0.1", theirs.getsockname()[1])
        bad = [
            sockaddr(socket.AF_INET, "255.255.255.255", 9),  # EACCES: no broadcast
            sockaddr(socket.AF_INET, "8.8.8.8", 9),  # EINVAL: not from a loopback address
        ]
        for number, far in enumerate([bad[0], good, bad[1], bad[0], good, good, bad[1]]):
            batch.add(StreamRow(number, ours.fileno(), far, 8, 0, 0, number, VOICE.ctypes.data, 9))
        batch.settle()
        assert batch.send() == (3, 4)
        sources = [RtpHeader.parse(theirs.recv(400))[0].ssrc for _ in range(3)]
        assert sources == [1, 4, 5]


class FullSocket(Sendmmsg):
    """A kernel that takes so many packets in all, then answers EAGAIN."""

    def __init__(self, room: int, problem: int) -> None:
        super().__init__()
        self.room = room
        self.calls = 0

        def call(descriptor: int, address: int, count: int, flags: int) -> int:
            self.calls += 1
            taken = min(count, self.room, 3)
            self.room -= taken
            ctypes.set_errno(problem)
            return taken or -1

        def quick(*arguments: Any) -> int:
            return call(*(argument.value for argument in arguments))

        self._call = call  # type: ignore[assignment]
        self._quick = quick  # type: ignore[assignment]


@pytest.mark.parametrize("problem", [errno.EAGAIN, errno.ENOBUFS])
def test_full_buffers_cost_packets_but_not_the_tick(problem: int) -> None:
    full = FullSocket(10, problem)
    batch = Batch(socket.AF_INET, full)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
        for number in range(25):
            batch.add(new_stream(number, ours.fileno()))
        batch.settle()
        assert batch.send() == (10, 15)
    assert full.calls < 40
