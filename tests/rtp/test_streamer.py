"""Real sender processes, real UDP on the loopback. Counts, order and bytes; no tight timing."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from bitel.g711 import alaw_encode
from bitel.rtp import sender_process
from bitel.rtp import streamer as streamer_module
from bitel.rtp.packet import RtpHeader
from bitel.rtp.port_pool import share_of
from bitel.rtp.sender.priority import core_for
from bitel.rtp.shared_clip import read_clip
from bitel.rtp.stream_spec import StreamSpec
from bitel.rtp.streamer import SenderFailedError, Streamer, StreamReport
from tests.rtp.streams import play, start_with
from tests.support.free_ports import free_range
from tests.support.prerequisites import need_ipv6
from tests.support.rtp_packets import pack
from tests.support.waiting import until

HOST = "127.0.0.1"
Recording = Callable[[int], Path]


class FarEnd:
    """A callee's RTP port; packets wait in its (large) receive buffer until asked for."""

    def __init__(self, host: str = HOST) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        self.socket.bind((host, free_range(1, host).start))
        self.socket.setblocking(False)
        self.address: tuple[str, int] = self.socket.getsockname()[:2]
        self.sources: list[int] = []  # the sending port of each packet
        self.arrived: list[tuple[RtpHeader, bytes]] = []

    def hear_only(self, port: int) -> None:
        """From now on the kernel drops what other ports send: calls of tests that run beside this
        one have had this port, or still send reports to it.
        """
        self.socket.connect((self.socket.getsockname()[0], port))

    def packets(self) -> list[tuple[RtpHeader, bytes]]:
        """All that has arrived."""
        while True:
            try:
                data, source = self.socket.recvfrom(2048)
            except BlockingIOError:
                return self.arrived
            self.sources.append(source[1])
            self.arrived.append(RtpHeader.parse(data))

    def voice(self) -> bytes:
        return b"".join(payload for _, payload in self.packets())


class Ends:
    """Collects stream reports, and waits for them."""

    def __init__(self) -> None:
        self.reports: dict[int, StreamReport] = {}
        self.times_told = 0

    def __call__(self, report: StreamReport) -> None:
        self.reports[report.stream] = report
        self.times_told += 1

    async def wait(self, count: int = 1) -> None:
        await until(lambda: len(self.reports) >= count)


@pytest.fixture
def far() -> Iterator[FarEnd]:
    end = FarEnd()
    yield end
    end.socket.close()


@pytest.fixture
async def streamer() -> AsyncIterator[Streamer]:
    started = Streamer(HOST, free_range(20))
    await started.start()
    yield started
    await started.stop()


def assert_contiguous(
    packets: list[tuple[RtpHeader, bytes]], start: tuple[int, int, int] | None
) -> None:
    first = packets[0][0]
    if start is not None:
        assert (first.sequence, first.timestamp, first.ssrc) == start
    for i, (header, payload) in enumerate(packets):
        assert header.marker == (i == 0)
        assert header.sequence == (first.sequence + i) % 2**16
        assert header.timestamp == (first.timestamp + 160 * i) % 2**32
        assert (header.ssrc, header.payload_type) == (first.ssrc, first.payload_type)
        assert len(payload) == 160


async def test_one_second_arrives_whole(
    far: FarEnd, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    streamer = Streamer(HOST, free_range(20))
    await streamer.start()
    clip, ends = recording(8000), Ends()
    port = streamer.open_port()
    start = 65530, 2**32 - 800, 0xCAFEBABE  # both counters wrap on the way
    start_with(monkeypatch, *start)
    stream = play(streamer, port, far.address, 8, [clip], ends)
    await ends.wait()
    assert ends.reports[stream] == StreamReport(stream, 50, finished=True)
    assert_contiguous(far.packets(), start)
    assert far.voice() == clip.read_bytes()
    assert set(far.sources) == {port}
    await streamer.stop()
    assert streamer.sender_pids() == []
    assert ends.times_told == 1


async def test_playlist_and_partial_last_packets(
    streamer: Streamer, far: FarEnd, recording: Recording
) -> None:
    clips, ends = [recording(1000), recording(70), recording(320)], Ends()
    stream = play(streamer, streamer.open_port(), far.address, 0, clips, ends)
    await ends.wait()
    assert ends.reports[stream] == StreamReport(stream, 7 + 1 + 2, finished=True)
    data = [clip.read_bytes() for clip in clips]
    padded = data[0] + b"\xff" * 120 + data[1] + b"\xff" * 90 + data[2]
    assert far.voice() == padded
    assert_contiguous(far.packets(), None)


async def test_dynamic_payload_type_names_its_law(
    streamer: Streamer, far: FarEnd, recording: Recording
) -> None:
    port, ends = streamer.open_port(), Ends()
    play(streamer, port, far.address, 96, [recording(10)], ends, law="alaw")
    await ends.wait()
    [(header, payload)] = far.packets()
    assert header.payload_type == 96
    assert payload[10:] == b"\xd5" * 150


async def test_stopped_stream_sends_nothing_more(
    streamer: Streamer, far: FarEnd, recording: Recording
) -> None:
    ends = Ends()
    stream = play(streamer, streamer.open_port(), far.address, 8, [recording(80000)], ends)
    await until(lambda: len(far.packets()) >= 3)
    streamer.stop_stream(stream)
    streamer.stop_stream(stream)
    await ends.wait()
    report = ends.reports[stream]
    assert not report.finished
    assert not report.error
    assert report.packets is not None
    assert 3 <= report.packets < 500
    await asyncio.sleep(0.1)  # five packets' time, in which none may leave
    assert len(far.packets()) == report.packets
    streamer.stop_stream(stream)
    assert streamer.stats().running == 0
    assert ends.times_told == 1


async def test_stopped_before_it_began(
    streamer: Streamer, far: FarEnd, recording: Recording
) -> None:
    ends = Ends()
    stream = play(streamer, streamer.open_port(), far.address, 8, [recording(80000)], ends)
    streamer.stop_stream(stream)
    await ends.wait()
    assert ends.reports[stream] == StreamReport(stream, 0, finished=False)
    assert far.packets() == []


async def test_many_streams_at_once(streamer: Streamer, recording: Recording) -> None:
    count, packets = 200, 25
    clips = [recording(160 * packets) for _ in range(4)]
    fars = [FarEnd() for _ in range(count)]
    ends = Ends()
    began = asyncio.get_running_loop().time()
    lent = [streamer.open_port() for _ in range(count)]
    assert len(set(lent)) <= 20
    for i, far in enumerate(fars):
        far.hear_only(lent[i])
        play(streamer, lent[i], far.address, 8, [clips[i % 4]], ends)
    await ends.wait(count)
    # 25 packets begin 24 intervals apart, and the last one is heard out.
    assert asyncio.get_running_loop().time() - began >= 0.02 * packets
    assert set(ends.reports.values()) == {
        StreamReport(stream, packets, finished=True) for stream in ends.reports
    }
    # Where the cores are full, what was sent last may still be on its way through the kernel.
    await until(lambda: all(len(far.packets()) >= packets for far in fars))
    for i, far in enumerate(fars):
        assert far.voice() == clips[i % 4].read_bytes()
        assert_contiguous(far.packets(), None)
        assert set(far.sources) == {lent[i]}
        far.socket.close()
    headers = [far.arrived[0][0] for far in fars]
    assert len({header.ssrc for header in headers}) == count
    assert len({header.sequence for header in headers}) > count / 2
    assert len({header.timestamp for header in headers}) == count
    await until(lambda: streamer.stats().packets == count * packets)
    stats = streamer.stats()
    assert stats.refused == 0
    assert stats.ticks >= packets
    assert stats.worst_ms >= stats.p99_ms > 0
    assert stats.cpu_seconds > 0


async def test_packets_are_spread_over_their_time(
    streamer: Streamer, far: FarEnd, recording: Recording
) -> None:
    """Never a burst: no packet leaves before its time."""
    ends, loop = Ends(), asyncio.get_running_loop()
    began = loop.time()
    play(streamer, streamer.open_port(), far.address, 8, [recording(8000)], ends)
    while not ends.reports:
        seen = len(far.packets())
        assert seen <= 1 + (loop.time() - began) / 0.02
        await asyncio.sleep(0.01)
    assert len(far.packets()) == 50


async def test_a_playlist_without_clips_ends_at_once(
    streamer: Streamer, far: FarEnd, recording: Recording
) -> None:
    port, ends = streamer.open_port(), Ends()
    stream = play(streamer, port, far.address, 8, [], ends)
    await ends.wait()
    assert ends.reports[stream].packets == 0
    assert not ends.reports[stream].finished
    assert "1 to" in ends.reports[stream].error
    assert far.packets() == []
    good = play(streamer, port, far.address, 8, [recording(160)], ends)
    await ends.wait(2)
    assert ends.reports[good].finished


@pytest.mark.parametrize(
    "address",
    [
        ("callee.example", 4000),
        ("0.0.0.0", 4000),
        ("239.1.2.3", 4000),
        ("::1", 4000),
        ("fe80::1%lo", 4000),
        ("127.0.0.1", 0),
        ("127.0.0.1", 65536),
        ("", 4000),
    ],
)
async def test_addresses_that_are_not_sent_to(
    streamer: Streamer, recording: Recording, address: tuple[str, int]
) -> None:
    ends = Ends()
    play(streamer, streamer.open_port(), address, 8, [recording(160)], ends)
    assert not ends.reports  # told later, when the caller has the number
    await ends.wait()
    [report] = ends.reports.values()
    assert report.error
    assert (report.packets, report.finished) == (0, False)


async def test_a_callee_that_can_not_be_reached_hurts_no_other(
    streamer: Streamer, far: FarEnd, recording: Recording
) -> None:
    ends = Ends()
    port = streamer.open_port()
    lost = play(streamer, port, ("8.8.8.8", 9), 8, [recording(1600)], ends)  # from 127.0.0.1
    good = play(streamer, port, far.address, 8, [recording(1600)], ends)
    await ends.wait(2)
    assert ends.reports[good] == StreamReport(good, 10, finished=True)
    assert len(far.packets()) == 10
    assert ends.reports[lost].packets == 0
    assert not ends.reports[lost].finished
    assert "10 packets could not be sent" in ends.reports[lost].error


async def test_a_port_must_be_open(streamer: Streamer, far: FarEnd, recording: Recording) -> None:
    port = streamer.open_port()
    streamer.release_port(port)
    with pytest.raises(ValueError, match=str(port)):
        play(streamer, port, far.address, 8, [recording(160)], Ends())


async def test_ipv6(recording: Recording) -> None:
    need_ipv6()
    far = FarEnd("::1")
    streamer, ends = Streamer("::1", free_range(20, "::1")), Ends()
    await streamer.start()
    clip = recording(800)
    play(streamer, streamer.open_port(), far.address, 8, [clip], ends)
    await ends.wait()
    assert far.voice() == clip.read_bytes()
    await streamer.stop()
    far.socket.close()


async def test_killed_sender_ends_its_streams_and_is_started_again(
    streamer: Streamer, far: FarEnd, recording: Recording
) -> None:
    failures: list[SenderFailedError] = []
    streamer.on_failure = failures.append
    port, ends = streamer.open_port(), Ends()
    for _ in range(5):
        play(streamer, port, far.address, 8, [recording(80000)], ends)
    await until(lambda: len(far.packets()) > 10)
    [pid] = streamer.sender_pids()
    os.kill(pid, signal.SIGKILL)
    await ends.wait(5)
    assert [report.finished for report in ends.reports.values()] == [False] * 5
    assert all("ended unexpectedly" in report.error for report in ends.reports.values())
    assert len(failures) == 1
    assert (failures[0].pid, failures[0].status, failures[0].streams) == (pid, -signal.SIGKILL, 5)
    assert streamer.stats().failures == 1
    # A call that is answered meanwhile is played as soon as there is a sender again.
    clip, late = recording(1600), FarEnd()
    stream = play(streamer, port, late.address, 8, [clip], ends)
    stopped = play(streamer, port, late.address, 8, [clip], ends)
    streamer.stop_stream(stopped)
    await ends.wait(7)
    assert ends.reports[stream] == StreamReport(stream, 10, finished=True)
    assert ends.reports[stopped] == StreamReport(stopped, 0, finished=False)
    assert late.voice() == clip.read_bytes()
    assert streamer.sender_pids() not in ([], [pid])
    assert (len(failures), ends.times_told) == (1, 7)
    late.socket.close()


async def test_a_sender_that_can_not_be_started_again_is_tried_again_and_counted(
    streamer: Streamer, far: FarEnd, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[SenderFailedError] = []
    streamer.on_failure = failures.append
    [pid] = streamer.sender_pids()
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    os.kill(pid, signal.SIGKILL)
    await until(lambda: failures)
    ends = Ends()
    clip, port = recording(160), streamer.open_port()
    play(streamer, port, far.address, 8, [clip], ends)
    await until(lambda: len(failures) >= 2)
    assert (failures[1].pid, failures[1].status, failures[1].streams) == (None, None, 1)
    await ends.wait()
    [report] = ends.reports.values()
    assert "can't be started" in report.error
    assert streamer.stats().failures == len(failures)
    monkeypatch.undo()
    await until(streamer.sender_pids)
    play(streamer, port, far.address, 8, [clip], ends)
    await ends.wait(2)
    assert len(far.packets()) == 1


async def test_keys_are_reported_at_once_and_other_clips_follow(
    far: FarEnd, recording: Recording
) -> None:
    streamer, ends = Streamer(HOST, free_range(20), receive=True), Ends()
    await streamer.start()
    port = streamer.open_port()
    first, second = read_clip(recording(80_000)), read_clip(recording(1600))
    await streamer.prepare(port, [first, second])
    keys: list[str] = []
    spec = StreamSpec(port, far.address, 8, "alaw", event_types=(96,))

    def pressed(said: str, at: float) -> None:
        assert 0 <= time.monotonic() - at < 5
        keys.append(said)
        if said == "7":
            streamer.replace(stream, [second])

    stream = streamer.play(spec, [first], ends, on_keys=pressed)
    await until(far.packets)
    for sequence, event in enumerate([b"\x05", b"\x07"]):
        for _ in range(3):  # the end of an event is sent three times
            far.socket.sendto(
                pack(RtpHeader(96, sequence, 800 * sequence, 1)) + event + b"\x80\x03\x20",
                (HOST, port),
            )
        await until(lambda: len(keys) > sequence)  # noqa: B023
    await ends.wait()
    assert keys == ["5", "7"]
    assert (ends.reports[stream].digits, ends.reports[stream].finished) == ("57", True)
    assert len({header.ssrc for header, _ in far.packets()}) == 1
    assert len(far.packets()) < 400
    await streamer.stop()


async def test_tones_in_the_audio_are_keys_where_there_are_no_events(
    far: FarEnd, recording: Recording
) -> None:
    """Every packet is read then, though others of the port are sampled."""
    streamer, ends = Streamer(HOST, free_range(2), receive=True), Ends()
    await streamer.start()
    port = streamer.open_port()
    keys: list[str] = []
    clip = read_clip(recording(80_000))
    await streamer.prepare(port, [clip])
    spec = StreamSpec(port, far.address, 8, "alaw", event_types=(101,), tones=True)
    stream = streamer.play(spec, [clip], ends, on_keys=lambda said, at: keys.append(said))
    await until(far.packets)
    times = np.arange(1600) / 8000
    sound = np.sin(2 * np.pi * 770 * times) + np.sin(2 * np.pi * 1336 * times)
    codes = alaw_encode((sound * 6000).astype(np.int16)).tobytes()
    for sequence in range(10):
        packet = pack(RtpHeader(8, sequence, 160 * sequence, 1))
        far.socket.sendto(packet + codes[160 * sequence :][:160], (HOST, port))
        await asyncio.sleep(0.005)
    await until(lambda: keys)
    # A new offer agrees to telephone events after all, and a later one to none again.
    streamer.change(stream, spec._replace(tones=False))
    event = pack(RtpHeader(101, 10, 1600, 1, marker=True)) + b"\x07\x80\x03\x20"
    async with asyncio.timeout(10.0):
        while len(keys) < 2:
            far.socket.sendto(event, (HOST, port))
            await asyncio.sleep(0.005)
    streamer.change(stream, spec)
    await asyncio.sleep(0)
    for sequence in range(20):
        packet = pack(RtpHeader(8, 20 + sequence, 3200 + 160 * sequence, 1))
        far.socket.sendto(packet + codes[160 * sequence :][:160].ljust(160, b"\xd5"), (HOST, port))
        await asyncio.sleep(0.005)
    await until(lambda: len(keys) == 3)
    streamer.stop_stream(stream)
    await ends.wait()
    assert keys == ["5", "7", "5"]
    assert ends.reports[stream].digits == "575"
    await streamer.stop()


@pytest.mark.parametrize("event_type", [96, 97])
async def test_the_kernels_filter_is_set_anew_for_another_sender(
    far: FarEnd, recording: Recording, event_type: int
) -> None:
    """The socket keeps the filter of the process before, which was for other event types."""
    streamer, ends = Streamer(HOST, free_range(20), receive=True), Ends()
    await streamer.start()
    port = streamer.open_port()
    play(streamer, port, far.address, 8, [recording(80000)], ends, event_types=(96,))
    await until(far.packets)
    [pid] = streamer.sender_pids()
    os.kill(pid, signal.SIGKILL)
    await ends.wait()
    before = len(far.packets())
    stream = play(
        streamer, port, far.address, 8, [recording(1600)], ends, event_types=(event_type,)
    )
    await until(lambda: len(far.packets()) > before)
    header = RtpHeader(event_type, 3, 0, 1)  # neither marked nor a multiple of 16
    far.socket.sendto(pack(header) + b"\x07\x80\x03\x20", (HOST, port))
    await ends.wait(2)
    assert ends.reports[stream].digits == "7"
    await streamer.stop()


async def test_stop_ends_what_runs(streamer: Streamer, far: FarEnd, recording: Recording) -> None:
    ends = Ends()
    failures: list[Exception] = []
    streamer.on_failure = failures.append
    stream = play(streamer, streamer.open_port(), far.address, 8, [recording(80000)], ends)
    await until(far.packets)
    [pid] = streamer.sender_pids()
    await streamer.stop()
    await ends.wait()
    assert not ends.reports[stream].finished
    assert not alive(pid)
    assert failures == []


async def test_several_processes_share_the_ports(
    far: FarEnd, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streamer_module, "COMFORTABLE", 3)
    streamer, ends = Streamer(HOST, free_range(20), processes=2), Ends()
    await streamer.start()
    pids = streamer.sender_pids()
    assert len(set(pids)) == 2
    for pid, core in zip(pids, [core_for(0, 2), core_for(1, 2)], strict=True):
        assert core is None or os.sched_getaffinity(pid) == {core}
    ports = [streamer.open_port() for _ in range(10)]
    assert [share_of(port, 2) for port in ports] == [0, 0, 0, 1, 1, 1, 0, 1, 0, 1]
    for port in ports:
        play(streamer, port, far.address, 8, [recording(1600)], ends)
    await ends.wait(10)
    assert [report.packets for report in ends.reports.values()] == [10] * 10
    await until(lambda: streamer.stats().packets == 100)
    for port in ports[:3]:
        streamer.release_port(port)
    assert share_of(streamer.open_port(), 2) == 0
    await streamer.stop()


async def test_one_port_is_enough_for_several_processes() -> None:
    ports = free_range(1)
    streamer = Streamer(HOST, ports, processes=3)
    assert {streamer.open_port() for _ in range(5)} == {ports.start}
    await streamer.stop()


async def test_signals_of_a_drain_are_left_to_the_parent(
    streamer: Streamer, far: FarEnd, recording: Recording
) -> None:
    ends = Ends()
    stream = play(streamer, streamer.open_port(), far.address, 8, [recording(4000)], ends)
    await until(far.packets)
    [pid] = streamer.sender_pids()
    os.kill(pid, signal.SIGTERM)
    os.kill(pid, signal.SIGINT)
    await ends.wait()
    assert ends.reports[stream].finished


async def test_a_queue_that_is_full_refuses_new_streams(far: FarEnd, recording: Recording) -> None:
    streamer, ends = Streamer(HOST, free_range(20), queue_limit=10), Ends()
    await streamer.start()
    [pid] = streamer.sender_pids()
    clip = read_clip(recording(160))
    port = streamer.open_port()
    os.kill(pid, signal.SIGSTOP)  # it reads nothing; what was written stays with the kernel
    streams = [play(streamer, port, far.address, 8, [clip], ends) for _ in range(30)]
    await until(lambda: len(ends.reports) >= 20)
    os.kill(pid, signal.SIGCONT)
    await ends.wait(30)
    refused = [s for s in streams if "does not keep up" in ends.reports[s].error]
    assert refused == streams[-len(refused) :]
    assert 20 <= len(refused) <= 22
    assert len(far.packets()) == 30 - len(refused)
    await streamer.stop()


async def test_a_sender_that_hangs_is_replaced(
    streamer: Streamer, far: FarEnd, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[SenderFailedError] = []
    streamer.on_failure = failures.append
    [pid] = streamer.sender_pids()
    os.kill(pid, signal.SIGSTOP)
    monkeypatch.setattr(sender_process, "SILENCE_LIMIT", 2.0)
    await until(lambda: failures)
    assert "has said nothing" in str(failures[0])
    assert (failures[0].pid, failures[0].status) == (pid, None)
    assert streamer.stats().failures == 1
    monkeypatch.undo()
    ends = Ends()
    play(streamer, streamer.open_port(), far.address, 8, [recording(160)], ends)
    await ends.wait()
    assert len(far.packets()) == 1
    assert not alive(pid)


async def test_a_sender_that_can_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    streamer = Streamer(HOST, free_range(20))
    with pytest.raises(SenderFailedError, match="ended unexpectedly"):
        await streamer.start()
    assert streamer.sender_pids() == []


async def test_a_streamer_that_does_not_run_says_so(far: FarEnd, recording: Recording) -> None:
    streamer, ends = Streamer(HOST, free_range(20)), Ends()
    play(streamer, streamer.open_port(), far.address, 8, [recording(160)], ends)
    await ends.wait()
    assert "not running" in next(iter(ends.reports.values())).error
    await streamer.stop()


PARENT = """
import asyncio, sys
from pathlib import Path
from bitel.rtp.streamer import Streamer
from tests.support.free_ports import free_range
from tests.rtp.streams import play
from tests.support.free_ports import free_range

async def main():
    streamer = Streamer("127.0.0.1", range(int(sys.argv[1]), int(sys.argv[1]) + 40))
    await streamer.start()
    far = ("127.0.0.1", int(sys.argv[2]))
    play(streamer, streamer.open_port(), far, 8, [Path(sys.argv[3])], print)
    print(*streamer.sender_pids(), flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_the_sender_does_not_outlive_its_parent(far: FarEnd, recording: Recording) -> None:
    arguments = [str(free_range(20).start), str(far.address[1]), str(recording(800000))]
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, *arguments], stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        sender = int(await asyncio.to_thread(parent.stdout.readline))
        await until(lambda: len(far.packets()) > 5)
        assert alive(sender)
        parent.kill()
    await until(lambda: not alive(sender))
    heard = len(far.packets())
    await asyncio.sleep(0.1)  # five packets' time, in which none may leave
    assert len(far.packets()) == heard


def alive(pid: int) -> bool:
    """Runs, and is not merely waiting to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
