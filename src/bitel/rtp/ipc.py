"""Messages between the streamer and a sender process, and their framing.

A frame is a length of four bytes and a message in the format of `marshal`: both processes run the
same interpreter, and JSON costs eight times as much. Sockets and clips are passed as descriptors
(SCM_RIGHTS) with the frame of their message, in the order of the frames.
"""

from __future__ import annotations

import marshal
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple, get_args

from bitel.rtp.stream_spec import StreamReport, StreamSpec

MAX_FRAME = 1 << 24  # bytes
_LENGTH = 4  # bytes


class WireError(Exception):
    """Bytes that are not a valid message."""


class Open(NamedTuple):
    """To the sender: passes the socket of a local RTP port, and that of its RTCP if any."""

    port: int
    has_rtcp: bool


class OpenClip(NamedTuple):
    """To the sender: passes the memory file of a clip; answered by `ClipOpened`."""

    clip: int


class CloseClips(NamedTuple):
    """To the sender: no new stream will play these clips."""

    clips: Sequence[int]


class Play(NamedTuple):
    """To the sender: start a stream of these clips.

    `sequence`, `timestamp` and `ssrc` are those of the first packet. `receive`: whether to read
    RTP and RTCP of the remote. `reports_keys`: whether each key is reported at once, by `Pressed`;
    `reports_audio`: whether all audio of the remote is, by `Heard`.
    """

    stream: int
    spec: StreamSpec
    clips: Sequence[int]
    sequence: int
    timestamp: int
    ssrc: int
    receive: bool = False
    reports_keys: bool = False
    reports_audio: bool = False


class StopAudio(NamedTuple):
    """To the sender: report no further audio of the remote."""

    stream: int


class Replace(NamedTuple):
    """To the sender: send these clips from the next packet on, in place of what is left."""

    stream: int
    clips: Sequence[int]


class Change(NamedTuple):
    """To the sender: apply a new specification; its `remote` counts only if `moved`."""

    stream: int
    spec: StreamSpec
    moved: bool


class Stop(NamedTuple):
    """To the sender: end this stream; with `if_awaited` only if its remote has not sent yet."""

    stream: int
    if_awaited: bool = False


class ClipOpened(NamedTuple):
    """From the sender: the clip is mapped, or `error` says in a sentence why not."""

    clip: int
    error: str = ""


class Silent(NamedTuple):
    """From the sender, repeatedly: the remote was silent for the stream's `silence_timeout`."""

    stream: int


class Pressed(NamedTuple):
    """From the sender: keys that the remote has pressed since the last such message."""

    stream: int
    keys: str
    at: float
    """When they were read, by CLOCK_MONOTONIC."""


class Heard(NamedTuple):
    """From the sender: audio of the remote since the last such message."""

    stream: int
    payloads: Sequence[bytes | None]
    """In the order of their arrival; None for a packet that was lost."""


class StreamerStats(NamedTuple):
    """From the sender, four times a second: its load. `Streamer.stats` sums all senders.

    A tick sends one batch of streams every 2 ms. Its lateness is the time from when it was due to
    when its last packet was passed to the kernel. Counts are totals since the start.
    """

    packets: int = 0
    refused: int = 0
    """Packets that the kernel refused."""
    ticks: int = 0
    late_ticks: int = 0
    """Ticks that were more than 5 ms late."""
    cpu_seconds: float = 0.0
    """CPU time of the sender processes."""
    running: int = 0
    """Current streams."""
    failures: int = 0
    """How often a sender process died, hung or failed to restart."""
    worst_ms: float = 0.0
    """Largest lateness of the last 10 seconds."""
    p99_ms: float = 0.0
    """99th percentile of the same."""
    p90_ms: float = 0.0
    """90th percentile of the lateness of the last half second."""
    reported_ago: float = 0.0
    """Seconds since the last report, of the sender for which this is longest. The parent sets this,
    `running` and `failures`."""

    def plus(self, other: StreamerStats) -> StreamerStats:
        """The sum of the counts, and the maximum of the rest."""
        sums = map(operator.add, self[:7], other[:7])
        return StreamerStats._make((*sums, *map(max, self[7:], other[7:])))


Message = (
    Open
    | OpenClip
    | CloseClips
    | Play
    | Replace
    | StopAudio
    | Change
    | Stop
    | ClipOpened
    | StreamReport
    | Silent
    | Pressed
    | Heard
    | StreamerStats
)

_TYPES: dict[str, type[Message]] = {kind.__name__: kind for kind in get_args(Message)}


def encode(message: Message) -> bytes:
    """The message as a frame."""
    values: list[Any] = [type(message).__name__, *message]
    if isinstance(message, (Play, Change)):
        values[2] = tuple(message.spec)  # marshal rejects subclasses of tuple
    frame = marshal.dumps(values)
    return len(frame).to_bytes(_LENGTH) + frame


def decode(frame: bytes) -> Message:
    """The message of a frame without its length; raises WireError."""
    try:
        # Safe: only our own process is connected to this socket.
        name, *values = marshal.loads(frame)  # noqa: S302
        if name in ("Play", "Change"):
            values[1] = StreamSpec(*values[1])
        return _TYPES[name](*values)
    except (ValueError, TypeError, LookupError, EOFError) as error:
        raise WireError(f"not a message: {frame[:80]!r} ({error})") from error


class Frames:
    """Splits a byte stream into messages."""

    def __init__(self) -> None:
        self._partial = b""

    def feed(self, data: bytes) -> list[Message]:
        """Adds received bytes; returns the messages that are complete now. Raises WireError."""
        data = self._partial + data
        messages: list[Message] = []
        begin = 0
        while len(data) - begin >= _LENGTH:
            size = int.from_bytes(data[begin : begin + _LENGTH])
            if size > MAX_FRAME:
                raise WireError(f"a frame of {size} bytes; the longest has {MAX_FRAME}")
            end = begin + _LENGTH + size
            if end > len(data):
                break
            messages.append(decode(data[begin + _LENGTH : end]))
            begin = end
        self._partial = data[begin:]
        return messages
