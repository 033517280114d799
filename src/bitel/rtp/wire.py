"""What the streamer and its sender process say to each other.

One JSON array a line over a stream socket; a line `Open` has its socket's descriptor beside it
(SCM_RIGHTS), in the order of the lines. A stream rather than packets, because then a burst of
commands coalesces into one read, and because not every system has SOCK_SEQPACKET.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

Law = Literal["alaw", "ulaw"]

MAX_LINE = 1 << 20  # bytes; a longer line is a fault of ours


class WireError(Exception):
    """A line that is no message."""


@dataclass(frozen=True, slots=True)
class Open:
    """To the sender: the socket of this local port comes with the line."""

    port: int


@dataclass(frozen=True, slots=True)
class OpenRtcp:
    """To the sender: the socket for the RTCP of this RTP port comes with the line."""

    port: int


@dataclass(frozen=True, slots=True)
class Play:
    """To the sender: send these raw G.711 files, one after the other.

    `listen`: to what the callee sends, of which packets of `event_type` are keyed digits, and say
    `Silent` when it has sent nothing for `patience` seconds, if that is not 0. `held`: it begins
    as after a `Pause`.
    """

    stream: int
    port: int
    far_host: str
    far_port: int
    payload_type: int
    law: Law
    clips: Sequence[str]
    sequence: int
    timestamp: int
    ssrc: int
    ptime: int = 20
    listen: bool = False
    event_type: int | None = None
    patience: float = 0.0
    held: bool = False


@dataclass(frozen=True, slots=True)
class Stop:
    """To the sender: not one packet more of this stream."""

    stream: int


@dataclass(frozen=True, slots=True)
class Pause:
    """To the sender: no packet of this stream until `Resume`."""

    stream: int


@dataclass(frozen=True, slots=True)
class Resume:
    """To the sender: the stream goes on."""

    stream: int


@dataclass(frozen=True, slots=True)
class Redirect:
    """To the sender: the stream goes to another address."""

    stream: int
    far_host: str
    far_port: int


@dataclass(frozen=True, slots=True)
class Ready:
    """From the sender: it runs, and reads."""


@dataclass(frozen=True, slots=True)
class End:
    """From the sender: the stream is over. `error` is empty where nothing went wrong.

    The rest is what was heard of the callee; its meaning is that in `streamer.StreamReport`.
    """

    stream: int
    packets: int
    finished: bool
    error: str
    received: int = 0
    silent_for: float | None = None
    digits: str = ""
    far_loss: float | None = None
    far_jitter_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Silent:
    """From the sender, again and again: the stream's callee was heard before, and is not now."""

    stream: int


@dataclass(frozen=True, slots=True)
class Load:
    """From the sender, each second: totals since it started, lateness of the last 10 s in ms."""

    packets: int
    refused: int
    ticks: int
    late_ticks: int
    worst_ms: float
    p99_ms: float
    cpu_seconds: float


Message = Open | OpenRtcp | Play | Stop | Pause | Resume | Redirect | Ready | End | Silent | Load

_KINDS: dict[str, type[Message]] = {
    kind.__name__: kind
    for kind in (Open, OpenRtcp, Play, Stop, Pause, Resume, Redirect, Ready, End, Silent, Load)
}
_FIELDS = {kind: tuple(field.name for field in fields(kind)) for kind in _KINDS.values()}


def encode(message: Message) -> bytes:
    """The message as one line."""
    kind = type(message)
    values = [getattr(message, name) for name in _FIELDS[kind]]
    return json.dumps([kind.__name__, *values], separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> Message:
    """The message in a line; `WireError` where there is none."""
    try:
        kind, *values = json.loads(line)
        return _KINDS[kind](*values)
    except (ValueError, TypeError, KeyError) as error:
        raise WireError(f"not a message: {line[:80]!r} ({error})") from error


class Lines:
    """Cuts what arrives into messages."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Message]:
        """The messages that `data` completes."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE:
            raise WireError(f"a line of more than {MAX_LINE} bytes")
        return [decode(line) for line in lines]
