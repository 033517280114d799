from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bitel.rtp.clips import MAX_BYTES, ClipCache, ClipError, Playlist
from bitel.rtp.ipc import Law

Recording = Callable[[int], Path]


def heard(cache: ClipCache, paths: list[str], law: Law) -> bytes:
    playlist = Playlist(cache, paths, law)
    data = b""
    while segment := playlist.next_segment():
        address, packets = segment
        data += ctypes.string_at(address, 160 * packets)
    playlist.close()
    return data


@pytest.mark.parametrize("size", [1, 159, 160, 161, 320, 1000])
@pytest.mark.parametrize(("law", "silence"), [("alaw", b"\xd5"), ("ulaw", b"\xff")])
def test_the_last_packet_is_filled_up_with_silence(
    recording: Recording, size: int, law: Law, silence: bytes
) -> None:
    path = recording(size)
    data = heard(ClipCache(), [str(path)], law)
    assert data == path.read_bytes() + silence * (-size % 160)


def test_each_clip_of_a_playlist_begins_a_packet(recording: Recording) -> None:
    first, second = recording(200), recording(320)
    data = heard(ClipCache(), [str(first), str(second), str(first)], "alaw")
    padded = first.read_bytes() + b"\xd5" * 120
    assert data == padded + second.read_bytes() + padded


def test_a_clip_is_opened_once_for_all_who_play_it(recording: Recording) -> None:
    cache = ClipCache()
    path = str(recording(400))
    first = cache.acquire(path, "alaw")
    assert cache.acquire(path, "alaw") is first
    assert cache.acquire(path, "ulaw") is not first  # another silence at its end
    assert len(cache) == 2


def test_idle_clips_are_closed_the_oldest_first_and_played_ones_never(
    recording: Recording,
) -> None:
    cache = ClipCache(max_idle=2)
    paths = [str(recording(400)) for _ in range(5)]
    playing = cache.acquire(paths[0], "alaw")
    clips = [cache.acquire(path, "alaw") for path in paths[1:]]
    for path, clip in zip(paths[1:], clips, strict=True):
        cache.release(path, "alaw", clip)
    assert len(cache) == 3
    assert cache.acquire(paths[0], "alaw") is playing
    assert cache.acquire(paths[4], "alaw") is clips[3]
    assert cache.acquire(paths[1], "alaw") is not clips[0]


def test_closed_clips_give_their_descriptors_back(recording: Recording) -> None:
    cache = ClipCache(max_idle=0)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        heard(cache, [str(recording(1600))], "alaw")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_written_anew_is_read_anew(recording: Recording, tmp_path: Path) -> None:
    cache = ClipCache()
    path = recording(320)
    heard(cache, [str(path)], "alaw")
    other = tmp_path / "other"
    other.write_bytes(bytes(480))
    other.replace(path)
    assert heard(cache, [str(path)], "alaw") == bytes(480)


def test_what_can_not_be_played(recording: Recording, tmp_path: Path) -> None:
    cache = ClipCache()
    empty = tmp_path / "empty"
    empty.touch()
    huge = tmp_path / "huge"
    huge.touch()
    os.truncate(huge, MAX_BYTES + 1)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    good = str(recording(160))
    for path in (empty, huge, pipe, tmp_path, tmp_path / "missing", "nul\0byte"):
        with pytest.raises(ClipError, match="recording"):
            Playlist(cache, [good, str(path)], "alaw")
    assert cache.acquire(good, "alaw").users == 1  # those before the bad one were given back
