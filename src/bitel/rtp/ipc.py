"""Messages between the streamer and a sender process, and their framing.

A frame is four bytes of length and one message in the format of `marshal`: both ends are processes
of one interpreter, and JSON costs eight times as much. The sockets or the clip that a message
passes come with its frame as descriptors (SCM_RIGHTS), in the order of the frames.
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
    """Bytes that are no message."""


class Open(NamedTuple):
    """To the sender: the socket of this local RTP port comes with the frame, and that for its RTCP
    behind it, if there is one."""

    port: int
    has_rtcp: bool


class OpenClip(NamedTuple):
    """To the sender: the memory of this clip comes with the frame; `ClipOpened` answers."""

    clip: int


class CloseClips(NamedTuple):
    """To the sender: streams that begin from now on do not play these clips."""

    clips: Sequence[int]


class Play(NamedTuple):
    """To the sender: send these clips, one after the other.

    `sequence`, `timestamp` and `ssrc` are those of the first packet. `receive`: whether to read
    what the remote sends.
    """

    stream: int
    spec: StreamSpec
    clips: Sequence[int]
    sequence: int
    timestamp: int
    ssrc: int
    receive: bool = False


class Change(NamedTuple):
    """To the sender: go on with this specification; `moved`: send to its `remote` from now on."""

    stream: int
    spec: StreamSpec
    moved: bool


class Stop(NamedTuple):
    """To the sender: end this stream; with `if_awaited` only if it still awaits its remote."""

    stream: int
    if_awaited: bool = False


class ClipOpened(NamedTuple):
    """From the sender: the clip can be played, or why not, as a sentence."""

    clip: int
    error: str = ""


class Silent(NamedTuple):
    """From the sender, repeatedly: the `silence_timeout` of the stream is over."""

    stream: int


class StreamerStats(NamedTuple):
    """From the sender, four times a second from its start on: its load. The sum over all senders is
    `Streamer.stats`, at most about a second old.

    A tick is one batch of streams sent, 2 ms apart. It is late by the time from when it was due to
    when its last packet was handed to the kernel. Counts are totals since the start.
    """

    packets: int = 0
    refused: int = 0
    """Packets that the kernel did not take."""
    ticks: int = 0
    late_ticks: int = 0
    """Ticks that were more than 5 ms late."""
    cpu_seconds: float = 0.0
    """CPU time of the sender processes."""
    running: int = 0
    """Streams."""
    failures: int = 0
    """How often a sender process died or hung, or could not be started again."""
    worst_ms: float = 0.0
    """Largest lateness of the last 10 seconds."""
    p99_ms: float = 0.0
    """99th percentile of the same."""
    p90_ms: float = 0.0
    """90th percentile of the lateness of the last half second."""
    reported_ago: float = 0.0
    """Seconds since the last report of the sender that has been silent for longest; one that hangs
    or is dead does not report. `running`, `failures` and this are set by the parent."""

    def plus(self, other: StreamerStats) -> StreamerStats:
        """Counts added, and the larger lateness."""
        sums = map(operator.add, self[:7], other[:7])
        return StreamerStats._make((*sums, *map(max, self[7:], other[7:])))


Message = (
    Open
    | OpenClip
    | CloseClips
    | Play
    | Change
    | Stop
    | ClipOpened
    | StreamReport
    | Silent
    | StreamerStats
)

_TYPES: dict[str, type[Message]] = {kind.__name__: kind for kind in get_args(Message)}


def encode(message: Message) -> bytes:
    """The message as a frame."""
    values: list[Any] = [type(message).__name__, *message]
    if isinstance(message, (Play, Change)):
        values[2] = tuple(message.spec)  # marshal knows no subclass of it
    frame = marshal.dumps(values)
    return len(frame).to_bytes(_LENGTH) + frame


def decode(frame: bytes) -> Message:
    """The message of a frame without its length; raises WireError."""
    try:
        # Written by the other end, which is ours; no stranger's bytes are ever read like this.
        name, *values = marshal.loads(frame)  # noqa: S302
        if name in ("Play", "Change"):
            values[1] = StreamSpec(*values[1])
        return _TYPES[name](*values)
    except (ValueError, TypeError, LookupError, EOFError) as error:
        raise WireError(f"not a message: {frame[:80]!r} ({error})") from error


class Frames:
    """Splits a byte stream into messages."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Message]:
        """The messages of the frames that `data` completes."""
        data = self._rest + data
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
        self._rest = data[begin:]
        return messages
