from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.rtp.packet import PTIMES
from bitel.rtp.sender.clip_cache import ClipCache, Playlist
from bitel.rtp.shared_clip import ClipError
from bitel.rtp.stream_spec import Law

Recording = Callable[[int], Path]


def loaded(*paths: Path) -> tuple[ClipCache, list[int]]:
    cache = ClipCache()
    for number, path in enumerate(paths):
        cache.load(number, os.open(path, os.O_RDONLY))
    return cache, list(range(len(paths)))


def heard(cache: ClipCache, numbers: Sequence[int], law: Law = "alaw") -> bytes:
    playlist = Playlist(cache, numbers, law)
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
    data = heard(*loaded(path), law)
    assert data == path.read_bytes() + silence * (-size % 160)


def test_each_clip_of_a_playlist_begins_a_packet(recording: Recording) -> None:
    first, second = recording(200), recording(320)
    cache, _ = loaded(first, second)
    data = heard(cache, [0, 1, 0])
    padded = first.read_bytes() + b"\xd5" * 120
    assert data == padded + second.read_bytes() + padded


def test_one_clip_is_padded_with_the_silence_of_each_law(recording: Recording) -> None:
    cache, numbers = loaded(recording(400))
    assert [heard(cache, numbers, law)[400:] for law in ("alaw", "ulaw", "alaw")] == [
        b"\xd5" * 80,
        b"\xff" * 80,
        b"\xd5" * 80,
    ]


def test_descriptors_are_closed(recording: Recording) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        cache, numbers = loaded(recording(1600))
        heard(cache, numbers)
        cache.unload(numbers)
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_can_not_be_played(recording: Recording, tmp_path: Path) -> None:
    cache, _ = loaded(recording(160))
    empty = tmp_path / "empty"
    empty.touch()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ClipError, match="recording 7"):
        cache.load(7, os.open(empty, os.O_RDONLY))
    with pytest.raises(ClipError, match="recording 7"):
        Playlist(cache, [0, 7], "alaw")
    assert len(os.listdir("/proc/self/fd")) == before


@given(
    st.lists(st.integers(1, 700), min_size=1, max_size=4),
    st.lists(st.tuples(st.sampled_from(PTIMES), st.integers(1, 9)), min_size=1, max_size=6),
)
def test_a_playlist_that_is_cut_anew_loses_and_repeats_nothing(
    sizes: list[int], steps: list[tuple[int, int]]
) -> None:
    cache = ClipCache()
    contents = [bytes([number + 1]) * size for number, size in enumerate(sizes)]
    for number, content in enumerate(contents):
        memory = os.memfd_create("clip")
        os.write(memory, content)
        cache.load(number, memory)
    samples = 160
    playlist, data, left = Playlist(cache, range(len(sizes)), "alaw"), b"", 0
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
