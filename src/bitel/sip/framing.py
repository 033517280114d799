"""Framing of SIP messages in a byte stream (RFC 3261 §18.3, RFC 5626 §4.4.1), without I/O."""

from __future__ import annotations

import re
from enum import Enum

from bitel.sip.message import MAX_DATAGRAM, MAX_HEAD

MAX_FIRST_LINE = 2048
_END = b"\r\n\r\n"
_FOLD = re.compile(rb"\r?\n[ \t]+")
_LENGTH = re.compile(rb"^(?:content-length|l)[ \t]*:(.*?)\r?$", re.IGNORECASE | re.MULTILINE)
_FIRST_LINE = re.compile(rb"SIP/2\.0 |[^\s]+ [^\r\n]+ SIP/2\.0[ \t]*\Z", re.IGNORECASE)
_START_LINE = re.compile(rb"^(?:SIP/2\.0 [1-6]\d\d |[A-Z]{1,32} [^\s]+ SIP/2\.0\r?$)", re.MULTILINE)
_CR, _LF = b"\r\n"
MAX_UNFRAMED = 16
"""Messages that are recovered from a stream after a framing error."""


class KeepAlive(Enum):
    """The keep-alives between messages (RFC 5626 §4.4.1): CRLF CRLF is a ping, CRLF a pong.

    The first CRLF of a ping counts as a pong, because the second may not have arrived yet.
    """

    PING = b"\r\n\r\n"
    PONG = b"\r\n"


class FramingError(ValueError):
    """The stream can't be framed any further and must be closed.

    `messages` is the data from the message with unknown length on, split before each line that
    looks like a start line; () if no head is complete.
    """

    def __init__(self, sentence: str, messages: tuple[bytes, ...] = ()) -> None:
        super().__init__(sentence)
        self.messages = messages


class Framer:
    """Splits a stream: call `feed` with received data, then `next_frame` until it returns None."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0
        self._size: int | None = None
        # Whether a single CRLF came last: a second one makes it a ping.
        self._single = False

    @property
    def is_between(self) -> bool:
        """Whether no message is partially received."""
        return not self._buffer

    def feed(self, data: bytes) -> None:
        """Add received bytes."""
        self._buffer += data

    def next_frame(self) -> bytes | KeepAlive | None:
        """The next complete message or keep-alive; None if more data is needed.

        Raises `FramingError`.
        """
        buffer = self._buffer
        if self._size is None:
            if buffer.startswith(_CR.to_bytes()):
                return self._keep_alive()
            self._size = self._find_size()
        if self._size is None or len(buffer) < self._size:
            return None
        frame = bytes(memoryview(buffer)[: self._size])
        del buffer[: self._size]
        self._size, self._searched, self._single = None, 0, False
        return frame

    def _keep_alive(self) -> KeepAlive | None:
        if len(self._buffer) < 2:
            return None
        if self._buffer[1] != _LF:
            raise FramingError("a stream has a CR without its LF between messages")
        del self._buffer[:2]
        self._single = not self._single
        return KeepAlive.PONG if self._single else KeepAlive.PING

    def _find_size(self) -> int | None:
        """Length of the first message, head and body; None until its head is complete."""
        buffer = self._buffer
        if self._searched == 0 and not self._check_first_line():
            return None
        end = buffer.find(_END, max(0, self._searched - len(_END)), MAX_HEAD + len(_END))
        if end < 0:
            self._searched = len(buffer)
            if len(buffer) > MAX_HEAD + len(_END):
                raise FramingError(f"a message's headers are longer than {MAX_HEAD} bytes")
            return None
        head = bytes(memoryview(buffer)[: end + len(_END)])
        lengths = {text.strip() for text in _LENGTH.findall(_FOLD.sub(b" ", head))}
        if not lengths:
            raise FramingError("a message on a stream needs a Content-Length", self._unframed())
        if not all(text.isdigit() and len(text) <= 6 for text in lengths):
            raise FramingError("the Content-Length is not a number", self._unframed())
        sizes = {int(text) for text in lengths}
        if len(sizes) > 1:
            raise FramingError("the Content-Length is given twice, and differs", self._unframed())
        size = len(head) + sizes.pop()
        if size > MAX_DATAGRAM:
            raise FramingError(f"a message is longer than {MAX_DATAGRAM} bytes", self._unframed())
        return size

    def _unframed(self) -> tuple[bytes, ...]:
        rest = bytes(memoryview(self._buffer)[:MAX_DATAGRAM])
        starts = [match.start() for match in _START_LINE.finditer(rest, 1)][: MAX_UNFRAMED - 1]
        return tuple(
            rest[begin:end] for begin, end in zip([0, *starts], [*starts, len(rest)], strict=True)
        )

    def _check_first_line(self) -> bool:
        """Whether the first line is complete. Raises `FramingError` if it is not SIP."""
        buffer = self._buffer
        if not buffer:
            return False
        if not 0x21 <= buffer[0] <= 0x7E:
            raise FramingError("what came is not SIP")
        end = buffer.find(b"\n", 0, MAX_FIRST_LINE)
        if end < 0:
            if len(buffer) >= MAX_FIRST_LINE:
                raise FramingError(f"a first line is longer than {MAX_FIRST_LINE} bytes")
            return False
        if not _FIRST_LINE.match(bytes(memoryview(buffer)[:end]).rstrip(b"\r")):
            raise FramingError("what came is not SIP")
        return True
