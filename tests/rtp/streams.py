"""Streams as the tests start them: shorter than the service's calls, with files as clips."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bitel.rtp.ipc import Change, Play
from bitel.rtp.sender.stream_table import StreamTable
from bitel.rtp.shared_clip import SharedClip, read_clip
from bitel.rtp.stream_spec import Law, StreamReport, StreamSpec
from bitel.rtp.streamer import Streamer

LAWS: dict[int, Law] = {0: "ulaw", 8: "alaw"}
Address = tuple[str, int]


def play(
    streamer: Streamer,
    port: int,
    remote: Address,
    payload_type: int,
    clips: Sequence[Path | SharedClip],
    on_end: Callable[[StreamReport], None],
    *,
    law: Law | None = None,
    on_silence: Callable[[], None] | None = None,
    **options: Any,
) -> int:
    """Starts a stream; `options` are further fields of the specification."""
    spec = StreamSpec(port, remote, payload_type, law or LAWS.get(payload_type, "alaw"), **options)
    shared = [read_clip(clip) if isinstance(clip, Path) else clip for clip in clips]
    return streamer.play(spec, shared, on_end, on_silence)


def change(
    streamer: Streamer, stream: int, remote: Address, payload_type: int, **options: Any
) -> None:
    """Changes a stream; `options` as in `play`."""
    streamer.change(stream, StreamSpec(0, remote, payload_type, "alaw", **options))


def play_command(
    stream: int,
    port: int,
    remote: Address,
    payload_type: int = 8,
    *,
    clips: Sequence[int] = (),
    start: tuple[int, int, int] = (0, 0, 0),
    receive: bool = False,
    **options: Any,
) -> Play:
    """A command to the sender; `start` are sequence number, timestamp and SSRC."""
    spec = StreamSpec(port, remote, payload_type, "alaw", **options)
    return Play(stream, spec, clips, *start, receive)


def change_command(
    stream: int, remote: Address | None = None, payload_type: int = 8, **options: Any
) -> Change:
    """A command to the sender; without `remote` the address stays."""
    spec = StreamSpec(0, remote or ("0.0.0.0", 0), payload_type, "alaw", **options)
    return Change(stream, spec, moved=remote is not None)


def open_clips(table: StreamTable, *paths: Path) -> list[int]:
    """Opens the files as clips of the table; their numbers."""
    first = len(table._clips)
    numbers = list(range(first, first + len(paths)))
    for number, path in zip(numbers, paths, strict=True):
        assert not table.open_clip(number, os.open(path, os.O_RDONLY)).error
    return numbers


def start_with(monkeypatch: pytest.MonkeyPatch, *start: int) -> None:
    """Streams begin with this sequence number, timestamp and SSRC."""
    monkeypatch.setattr("bitel.rtp.streamer.random_start", lambda: start)


def host_and_port(family: socket.AddressFamily, name: bytes) -> Address:
    """What `sockaddr` was made of."""
    address = name[8:24] if family == socket.AF_INET6 else name[4:8]
    return socket.inet_ntop(family, address), int.from_bytes(name[2:4], "big")
