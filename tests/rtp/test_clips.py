from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.rtp.packet import PTIMES
from bitel.rtp.sender.playlist import Clip, Playlist
from bitel.rtp.sender.stream_table import StreamTable
from bitel.rtp.stream_spec import Law, StreamReport
from tests.rtp.streams import play_command

Recording = Callable[[int], Path]


def loaded(*paths: Path) -> list[Clip]:
    clips = []
    for path in paths:
        with path.open() as file:
            clips.append(Clip(file.fileno()))
    return clips


def heard(clips: Sequence[Clip], law: Law = "alaw") -> bytes:
    playlist = Playlist(clips, law, 160)
    data = b""
    while segment := playlist.next_segment():
        address, packets = segment
        data += ctypes.string_at(address, 160 * packets)
    return data


@pytest.mark.parametrize("size", [1, 159, 160, 161, 320, 1000])
@pytest.mark.parametrize(("law", "silence"), [("alaw", b"\xd5"), ("ulaw", b"\xff")])
def test_the_last_packet_is_filled_up_with_silence(
    recording: Recording, size: int, law: Law, silence: bytes
) -> None:
    path = recording(size)
    data = heard(loaded(path), law)
    assert data == path.read_bytes() + silence * (-size % 160)


def test_each_clip_of_a_playlist_begins_a_packet(recording: Recording) -> None:
    first, second = recording(200), recording(320)
    clips = loaded(first, second)
    data = heard([*clips, clips[0]])
    padded = first.read_bytes() + b"\xd5" * 120
    assert data == padded + second.read_bytes() + padded


def test_one_clip_is_padded_with_the_silence_of_each_law(recording: Recording) -> None:
    clips = loaded(recording(400))
    assert [heard(clips, law)[400:] for law in ("alaw", "ulaw", "alaw")] == [
        b"\xd5" * 80,
        b"\xff" * 80,
        b"\xd5" * 80,
    ]


def test_what_can_not_be_played(tmp_path: Path) -> None:
    table = StreamTable(lambda packets, groups: [])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as bound:
        table.open(4000, bound)
        empty = tmp_path / "empty"
        empty.touch()
        before = len(os.listdir("/proc/self/fd"))
        assert "recording 7" in table.open_clip(7, os.open(empty, os.O_RDONLY)).error
        assert len(os.listdir("/proc/self/fd")) == before
        report = table.play(play_command(1, 4000, ("192.0.2.1", 5000), clips=[7]))
        assert report == StreamReport(1, 0, finished=False, error="recording 7 is not loaded")
        report = table.play(play_command(2, 4002, ("192.0.2.1", 5000), clips=[7]))
        assert report == StreamReport(2, 0, finished=False, error="RTP port 4002 is not open")


@given(
    st.lists(st.integers(1, 700), min_size=1, max_size=4),
    st.lists(st.tuples(st.sampled_from(PTIMES), st.integers(1, 9)), min_size=1, max_size=6),
)
def test_a_playlist_that_is_cut_anew_loses_and_repeats_nothing(
    sizes: list[int], steps: list[tuple[int, int]]
) -> None:
    contents = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    clips = []
    for content in contents:
        memory = os.memfd_create("clip")
        os.write(memory, content)
        clips.append(Clip(memory))
        os.close(memory)
    samples = 160
    playlist, data, left = Playlist(clips, "alaw", samples), b"", 0
    segment = playlist.next_segment()
    for ptime, packets in [*steps, (20, 10**6)]:
        for _ in range(packets):
            if segment is None:
                break
            address, left = segment
            data += ctypes.string_at(address, samples)
            segment = (address + samples, left - 1) if left > 1 else playlist.next_segment()
        left = segment[1] if segment is not None else 0
        samples = 8 * ptime
        playlist.recut(samples, left)
        segment = playlist.next_segment()
    assert data.replace(b"\xd5", b"") == b"".join(contents)
