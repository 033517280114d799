"""Clips in memory that are passed to real sender processes: once each, and freed afterwards."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from bitel.errors import UnavailableError
from bitel.rtp.ipc import Message, OpenClip
from bitel.rtp.sender.playlist import Clip, Playlist
from bitel.rtp.sender_process import SenderProcess
from bitel.rtp.shared_clip import MAX_BYTES, ClipError, SharedClip, read_clip
from bitel.rtp.streamer import Streamer, StreamReport
from tests.rtp.streams import play
from tests.support.free_ports import free_range
from tests.support.waiting import until

Recording = Callable[[int], Path]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The clips that were passed to senders."""
    passed: list[int] = []
    send = SenderProcess.send

    def note(
        process: SenderProcess, message: Message, *passed_on: socket.socket | SharedClip
    ) -> None:
        if isinstance(message, OpenClip):
            passed.append(message.clip)
        send(process, message, *passed_on)

    monkeypatch.setattr(SenderProcess, "send", note)
    return passed


def mapped(pid: int) -> int:
    """How many clips a process has mapped."""
    return Path(f"/proc/{pid}/maps").read_text().count("memfd:bitel-clip")


async def played(streamer: Streamer, port: int, clip: SharedClip, ptime: int = 20) -> bytes:
    """What a stream of the clip sends."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as far:
        far.bind(("127.0.0.1", free_range(1).start))
        far.setblocking(False)
        over: asyncio.Future[StreamReport] = asyncio.get_running_loop().create_future()
        play(streamer, port, far.getsockname(), 8, [clip], over.set_result, ptime=ptime)
        report = await over
        assert (report.finished, report.error) == (True, "")
        return b"".join(far.recv(2048)[12:] for _ in range(report.packets or 0))


async def test_each_clip_goes_to_each_sender_once(recording: Recording, opened: list[int]) -> None:
    clips = [read_clip(recording(1600)) for _ in range(3)]
    streamer = Streamer("127.0.0.1", range(41000, 41200), processes=2)
    await streamer.start()
    try:
        for port in (41000, 41002):  # one of each sender
            for _ in range(100):
                await streamer.prepare(port, clips)
            await asyncio.gather(*(streamer.prepare(port, clips) for _ in range(100)))
        assert sorted(opened) == sorted(clip.number for clip in clips * 2)
        assert [mapped(pid) for pid in streamer.sender_pids()] == [3, 3]
    finally:
        await streamer.stop()


@pytest.mark.parametrize("ptime", [10, 20, 30, 60])
async def test_prepared_clip_needs_no_file(recording: Recording, ptime: int) -> None:
    path = recording(1000)
    content = path.read_bytes()
    clip = read_clip(path)
    path.unlink()
    streamer = Streamer("127.0.0.1", range(41200, 41400))
    await streamer.start()
    try:
        port = streamer.open_port()
        await streamer.prepare(port, [clip])
        sent = await played(streamer, port, clip, ptime)
        assert sent == content + b"\xd5" * (-len(content) % (8 * ptime))
        [pid] = streamer.sender_pids()
        os.kill(pid, signal.SIGKILL)
        await until(lambda: streamer.sender_pids() == [])
        # While there is no sender, and when the next one has started.
        await streamer.prepare(port, [clip])
        assert (await played(streamer, port, clip, ptime))[: len(content)] == content
    finally:
        await streamer.stop()


async def test_dropped_clips_are_freed_here_and_in_the_sender(recording: Recording) -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    streamer = Streamer("127.0.0.1", range(41400, 41600))
    await streamer.start()
    try:
        port = streamer.open_port()
        for _ in range(20):
            await streamer.prepare(port, [read_clip(recording(1600))])
        gc.collect()
        last = read_clip(recording(1600))
        await streamer.prepare(port, [last])
        [pid] = streamer.sender_pids()
        await until(lambda: mapped(pid) == 1)
    finally:
        await streamer.stop()
    del last
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


async def test_stopped_sender_is_not_waited_for_long(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitel.rtp.sender_process.OPEN_CLIP_TIMEOUT", 0.1)
    streamer = Streamer("127.0.0.1", range(41600, 41800))
    await streamer.start()
    try:
        port = streamer.open_port()
        [pid] = streamer.sender_pids()
        os.kill(pid, signal.SIGSTOP)
        clip = read_clip(recording(1600))
        with pytest.raises(UnavailableError, match="does not answer"):
            await streamer.prepare(port, [clip])
        os.kill(pid, signal.SIGCONT)
        await until(lambda: mapped(pid))
        await streamer.prepare(port, [clip])
    finally:
        await streamer.stop()


def test_what_can_not_be_read(recording: Recording, tmp_path: Path) -> None:
    good = recording(160)
    (tmp_path / "empty").touch()
    (tmp_path / "huge").touch()
    os.truncate(tmp_path / "huge", MAX_BYTES + 1)
    os.mkfifo(tmp_path / "pipe")
    names = ("empty", "huge", "pipe", "", "no", "nul\0byte")
    for path in (*(tmp_path / name for name in names), good / "x"):
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(ClipError, match="recording"):
            read_clip(path)
        assert len(os.listdir("/proc/self/fd")) == before
    for size in (159, 161):
        with pytest.raises(ClipError, match=f"should have {size}"):
            read_clip(good, size)
    assert read_clip(good, 160).size == 160


def test_clip_that_is_not_copied_survives_its_name(recording: Recording) -> None:
    path = recording(500)
    content = path.read_bytes()
    clip = read_clip(path, copy=False)
    path.unlink()
    playing = Clip(clip.fileno())
    playlist = Playlist([playing], "alaw", 160)
    assert playlist.next_segment() is not None
    assert os.pread(clip.fileno(), 500, 0) == content
