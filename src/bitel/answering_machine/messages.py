"""Messages between a dialer and its detection process, in frames of a length and `marshal`.

Both processes run the same interpreter. A frame holds a batch of messages, as audio of many calls
is sent in one write.
"""

from __future__ import annotations

import marshal
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

MAX_FRAME: Final = 1 << 24  # bytes
_LENGTH: Final = 4  # bytes


class MessageError(Exception):
    """Bytes that are not a valid message."""


class Start(NamedTuple):
    """To the process: a call was answered. `beeps`: report record tones after the decision."""

    call: int
    law: str
    beeps: bool


class Audio(NamedTuple):
    """To the process: the payload of the call's next packet, None for 20 ms that were lost."""

    call: int
    payload: bytes | None


class End(NamedTuple):
    """To the process: forget the call."""

    call: int


class Decided(NamedTuple):
    """From the process: the decision of the call; the fields of `Decision`."""

    call: int
    verdict: str | None
    reason: str
    at: float


class BeepEnded(NamedTuple):
    """From the process: a record tone has ended. Seconds since the answer, and Hz."""

    call: int
    began: float
    ended: float
    frequency: float


class Alive(NamedTuple):
    """From the process, twice a second while it has calls: its load since its start."""

    calls: int
    cpu_seconds: float


Message = Start | Audio | End | Decided | BeepEnded | Alive

# By number, since most messages are short.
_KINDS: Final[tuple[type[Message], ...]] = (Start, Audio, End, Decided, BeepEnded, Alive)


def encode(messages: Iterable[Message]) -> bytes:
    """The messages as one frame."""
    frame = marshal.dumps([(_KINDS.index(type(each)), *each) for each in messages])
    return len(frame).to_bytes(_LENGTH) + frame


def decode(frame: bytes) -> list[Message]:
    """The messages of a frame without its length; raises MessageError."""
    try:
        # Safe: only our own process is connected to this socket.
        found: list[list[Any]] = marshal.loads(frame)  # noqa: S302
        return [_KINDS[kind](*values) for kind, *values in found]
    except (ValueError, TypeError, LookupError, EOFError) as error:
        raise MessageError(f"not a message: {frame[:80]!r} ({error})") from error


class Frames:
    """Splits a byte stream into messages."""

    def __init__(self) -> None:
        self._partial = bytearray()

    def feed(self, data: bytes) -> list[Message]:
        """Adds received bytes; the messages that are complete now. Raises MessageError."""
        self._partial += data
        messages: list[Message] = []
        begin = 0
        while len(self._partial) - begin >= _LENGTH:
            size = int.from_bytes(self._partial[begin : begin + _LENGTH])
            if size > MAX_FRAME:
                raise MessageError(f"a frame of {size} bytes; the longest has {MAX_FRAME}")
            end = begin + _LENGTH + size
            if end > len(self._partial):
                break
            messages += decode(bytes(self._partial[begin + _LENGTH : end]))
            begin = end
        del self._partial[:begin]
        return messages
