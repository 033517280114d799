"""What the streamer and its sender process say to each other.

A turn's messages go together, as one frame over a stream socket: four bytes of length, and a list
of messages as Python's `marshal` writes it. Both ends are processes of one interpreter on one
machine, and a short call is little more than its messages: as JSON they cost eight times as much.
A frame that opens a port or a clip is alone, and has the descriptor beside it (SCM_RIGHTS), in the
order of the frames. A stream rather than packets, because then a burst of commands coalesces into
one read, and because not every system has SOCK_SEQPACKET.
"""

from __future__ import annotations

import marshal
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple, get_args

Law = Literal["alaw", "ulaw"]

Latch = Literal["off", "port", "host"]
"""Which source of RTP a stream follows (symmetric RTP, RFC 4961).

`off`: none, only the address that SDP names counts. `port`: the first port of the host that SDP
names. `host`: the first source of any host, and from then on whatever address its SSRC comes from.
"""

UNHEARD = "no RTP came from the far end, which names an address that must not be sent to"
"""The error of a stream that was stopped while it waited for its callee's first packet."""

MAX_FRAME = 1 << 24  # bytes; a longer one is a fault of ours
_LENGTH = 4  # bytes


class WireError(Exception):
    """Bytes that are no messages."""


class Open(NamedTuple):
    """To the sender: the socket of this local port comes with the frame."""

    port: int


class OpenRtcp(NamedTuple):
    """To the sender: the socket for the RTCP of this RTP port comes with the frame."""

    port: int


class OpenClip(NamedTuple):
    """To the sender: the memory of this clip comes with the frame; `ClipOpened` answers."""

    clip: int


class CloseClips(NamedTuple):
    """To the sender: no stream that begins from now on plays these clips."""

    clips: Sequence[int]


class Play(NamedTuple):
    """To the sender: send these clips, one after the other.

    A clip is the number of one that was opened, or the path of a raw G.711 file to open now.
    `listen`: whether to read what the callee sends; `event_types` are its payload types of
    telephone events. `Silent` is sent when it has sent nothing for `patience` seconds; 0: never.
    `held`: nothing is sent until a `Change` that is not held. `awaited`: nothing is sent before a
    packet of the callee was accepted, by `latch` or from `far` itself.
    """

    stream: int
    port: int
    far_host: str
    far_port: int
    payload_type: int
    law: Law
    clips: Sequence[str | int]
    sequence: int
    timestamp: int
    ssrc: int
    ptime: int = 20
    listen: bool = False
    event_types: tuple[int, ...] = ()
    patience: float = 0.0
    held: bool = False
    latch: Latch = "port"
    awaited: bool = False


class Stop(NamedTuple):
    """To the sender: not one packet more of this stream; with `if_awaited` only if it still waits
    for a first packet of its callee."""

    stream: int
    if_awaited: bool = False


class Change(NamedTuple):
    """To the sender: the media of a stream after a later offer and answer.

    `far` is a new destination, None if it stays. `held`: nothing is sent until a `Change` that is
    not held. `awaited` is that of `Play`, for a new destination.
    """

    stream: int
    far: tuple[str, int] | None
    payload_type: int
    ptime: int
    event_types: tuple[int, ...]
    held: bool
    awaited: bool = False


class Ready(NamedTuple):
    """From the sender: it runs, and reads."""


class End(NamedTuple):
    """From the sender: the stream is over. `error` is empty where nothing went wrong.

    The rest is what was heard of the callee; its meaning is that in `streamer.StreamReport`.
    """

    stream: int
    packets: int | None
    finished: bool
    error: str
    received: int = 0
    silent_for: float | None = None
    digits: str = ""
    far_loss: float | None = None
    far_jitter_ms: float | None = None
    digits_at: float | None = None
    unexpected: int = 0
    stopped: bool = False


class ClipOpened(NamedTuple):
    """From the sender: the clip can be played; or why not, in a sentence."""

    clip: int
    error: str = ""


class Silent(NamedTuple):
    """From the sender, again and again: the stream's callee was heard before, and is not now."""

    stream: int


class Load(NamedTuple):
    """From the sender, every `schedule.TURN`: totals since its start, lateness of 10 s in ms.

    A tenth of the ticks of the last half second were later than `tenth_ms`.
    """

    packets: int
    refused: int
    ticks: int
    late_ticks: int
    worst_ms: float
    p99_ms: float
    tenth_ms: float
    cpu_seconds: float


Message = (
    Open
    | OpenRtcp
    | OpenClip
    | CloseClips
    | Play
    | Stop
    | Change
    | Ready
    | ClipOpened
    | End
    | Silent
    | Load
)

_KINDS: dict[str, type[Message]] = {kind.__name__: kind for kind in get_args(Message)}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def encode(messages: Iterable[Message]) -> bytes:
    """The messages as one frame."""
    frame = marshal.dumps([(_NAMES[type(message)], *message) for message in messages])
    return len(frame).to_bytes(_LENGTH) + frame


def decode(frame: bytes) -> list[Message]:
    """The messages of a frame, without its length; `WireError` where there are none."""
    try:
        # Written by the other end, which is ours; no stranger's bytes are ever read like this.
        messages = marshal.loads(frame)  # noqa: S302
        return [_KINDS[kind](*values) for kind, *values in messages]
    except (ValueError, TypeError, KeyError, EOFError) as error:
        raise WireError(f"not a list of messages: {frame[:80]!r} ({error})") from error


class Frames:
    """Cuts what arrives into messages."""

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
            messages += decode(data[begin + _LENGTH : end])
            begin = end
        self._rest = data[begin:]
        return messages
