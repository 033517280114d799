"""A stream whose media changes: hold, address, payload type and packet time, over real UDP."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from bitel.rtp.packet import RtpHeader
from bitel.rtp.streamer import RemoteAddressError, Streamer, StreamReport
from tests.rtp.streams import change, play
from tests.support.free_ports import free_range
from tests.support.waiting import until

HOST = "127.0.0.1"
Recording = Callable[[int], Path]


class FarEnd:
    """A callee's RTP port."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind((HOST, free_range(1).start))
        self.socket.setblocking(False)
        self.address: tuple[str, int] = self.socket.getsockname()
        self._packets: list[tuple[RtpHeader, bytes]] = []

    @property
    def packets(self) -> list[tuple[RtpHeader, bytes]]:
        """All that has arrived."""
        while True:
            try:
                self._packets.append(RtpHeader.parse(self.socket.recv(2048)))
            except BlockingIOError:
                return self._packets


@pytest.fixture
def far() -> Iterator[FarEnd]:
    end = FarEnd()
    yield end
    end.socket.close()


@pytest.fixture
def other() -> Iterator[FarEnd]:
    end = FarEnd()
    yield end
    end.socket.close()


@pytest.fixture
async def streamer() -> AsyncIterator[Streamer]:
    started = Streamer(HOST, free_range(20))
    await started.start()
    yield started
    await started.stop()


async def test_a_held_recording_waits_and_goes_on_elsewhere(
    streamer: Streamer, far: FarEnd, other: FarEnd, recording: Recording
) -> None:
    clip, reports = recording(8000), list[StreamReport]()
    stream = play(streamer, streamer.open_port(), far.address, 8, [clip], reports.append)
    await until(lambda: len(far.packets) >= 5)
    change(streamer, stream, far.address, 8, held=True)
    change(streamer, stream, far.address, 8, held=True)
    await asyncio.sleep(0.1)  # what was on its way
    held = len(far.packets)
    await asyncio.sleep(0.3)  # 15 packets' time, in which none may leave
    assert len(far.packets) == held
    change(streamer, stream, other.address, 8)
    change(streamer, stream, other.address, 8)
    await until(lambda: reports)
    assert reports == [StreamReport(stream, 50, finished=True)]
    assert len(far.packets) == held
    heard = far.packets + other.packets
    assert b"".join(payload for _, payload in heard) == clip.read_bytes()
    last, first = far.packets[-1][0], other.packets[0][0]
    assert first.marker
    assert first.sequence == (last.sequence + 1) % 2**16
    skipped = (first.timestamp - last.timestamp) % 2**32
    assert skipped % 160 == 0
    assert 0.3 * 8000 <= skipped <= 10 * 8000
    change(streamer, stream, far.address, 8, held=True)  # over by now: nothing happens
    change(streamer, stream, far.address, 8)


async def test_a_running_stream_is_redirected(
    streamer: Streamer, far: FarEnd, other: FarEnd, recording: Recording
) -> None:
    clip, reports = recording(4000), list[StreamReport]()
    stream = play(streamer, streamer.open_port(), far.address, 0, [clip], reports.append)
    await until(lambda: len(far.packets) >= 5)
    change(streamer, stream, other.address, 0)
    await until(lambda: reports)
    heard = far.packets + other.packets
    assert other.packets
    assert b"".join(payload for _, payload in heard) == clip.read_bytes()
    assert [header.marker for header, _ in heard] == [True] + [False] * 24
    assert {(b[0].timestamp - heard[0][0].timestamp) % 2**32 for b in heard} == {
        160 * i for i in range(25)
    }


async def test_type_and_packet_time_change_in_the_running_stream(
    streamer: Streamer, far: FarEnd, other: FarEnd, recording: Recording
) -> None:
    clips, reports = [recording(4000), recording(4900)], list[StreamReport]()
    stream = play(streamer, streamer.open_port(), far.address, 8, clips, reports.append)
    await until(lambda: len(far.packets) >= 5)
    change(streamer, stream, far.address, 98, ptime=40)
    await until(lambda: len(far.packets) >= 10)
    change(streamer, stream, other.address, 97, ptime=10)
    await until(lambda: reports)
    heard = far.packets + other.packets
    assert reports[0].packets == len(heard)
    sound = b"".join(payload for _, payload in heard)
    for clip in clips:  # each to its end, the last packet filled up with silence
        assert sound.startswith(clip.read_bytes())
        sound = sound[len(clip.read_bytes()) :].lstrip(b"\xd5")
    assert sound == b""
    kinds = [(header.payload_type, len(payload)) for header, payload in heard]
    assert list(dict.fromkeys(kinds)) == [(8, 160), (98, 320), (97, 80)]
    assert {header.ssrc for header, _ in heard} == {heard[0][0].ssrc}
    assert [header.marker for header, _ in heard] == [True] + [False] * (len(heard) - 1)
    for (last, payload), (header, _) in pairwise(heard):
        assert header.sequence == (last.sequence + 1) % 2**16
        assert header.timestamp == (last.timestamp + len(payload)) % 2**32


@pytest.mark.parametrize("ptime", [10, 30, 60])
async def test_packets_of_another_length(
    streamer: Streamer, far: FarEnd, recording: Recording, ptime: int
) -> None:
    clip, reports = recording(4800), list[StreamReport]()
    play(streamer, streamer.open_port(), far.address, 8, [clip], reports.append, ptime=ptime)
    await until(lambda: reports)
    assert [len(payload) for _, payload in far.packets] == [8 * ptime] * (600 // ptime)
    assert b"".join(payload for _, payload in far.packets) == clip.read_bytes()


async def test_addresses_and_packet_times_that_are_refused(
    streamer: Streamer, far: FarEnd, recording: Recording
) -> None:
    reports = list[StreamReport]()
    port, clip = streamer.open_port(), recording(1600)
    stream = play(streamer, port, far.address, 8, [clip], reports.append)
    for address in (("0.0.0.0", 4000), ("callee.example", 4000), ("127.0.0.1", 0), ("::1", 4000)):
        with pytest.raises(RemoteAddressError, match="RTP"):
            change(streamer, stream, address, 8)
    with pytest.raises(ValueError, match="25 ms"):
        play(streamer, port, far.address, 8, [clip], reports.append, ptime=25)
    for payload_type, ptime in ((8, 25), (128, 20), (-1, 20)):
        with pytest.raises(ValueError, match=f"payload type {payload_type} in packets of {ptime}"):
            change(streamer, stream, far.address, payload_type, ptime=ptime)
    await until(lambda: reports)
    assert reports == [StreamReport(stream, 10, finished=True)]


async def test_what_is_said_while_the_sender_is_being_replaced_is_kept(
    streamer: Streamer, far: FarEnd, other: FarEnd, recording: Recording
) -> None:
    failures: list[Exception] = []
    streamer.on_failure = failures.append
    [pid] = streamer.sender_pids()
    os.kill(pid, signal.SIGKILL)
    await until(lambda: failures)
    clip, reports = recording(1600), list[StreamReport]()
    stream = play(streamer, streamer.open_port(), far.address, 8, [clip], reports.append)
    change(streamer, stream, other.address, 8, held=True)
    await until(streamer.sender_pids)
    await asyncio.sleep(0.2)  # ten packets' time, in which one may leave
    assert len(far.packets) + len(other.packets) <= 1
    change(streamer, stream, other.address, 8)
    await until(lambda: reports)
    heard = far.packets + other.packets
    assert b"".join(payload for _, payload in heard) == clip.read_bytes()
    assert other.packets


async def test_nothing_is_left_of_a_stream_that_ends_while_it_is_held(
    streamer: Streamer, far: FarEnd, recording: Recording
) -> None:
    reports = list[StreamReport]()
    stream = play(
        streamer, streamer.open_port(), far.address, 8, [recording(80000)], reports.append
    )
    await until(lambda: len(far.packets) >= 3)
    change(streamer, stream, far.address, 8, held=True)
    await asyncio.sleep(0.1)
    streamer.stop_stream(stream)
    await until(lambda: reports)
    assert not reports[0].finished
    assert reports[0].packets == len(far.packets)
    assert streamer.stats().running == 0
