"""Cuts a stream of bytes into SIP messages (RFC 3261 §18.3, RFC 5626 §4.4.1), without I/O."""

from __future__ import annotations

import re
from enum import Enum

from bitel.sip.message import MAX_DATAGRAM, MAX_HEAD

MAX_FIRST_LINE = 2048
_END = b"\r\n\r\n"
_FOLD = re.compile(rb"\r?\n[ \t]+")
_LENGTH = re.compile(rb"^(?:content-length|l)[ \t]*:(.*?)\r?$", re.IGNORECASE | re.MULTILINE)
_FIRST_LINE = re.compile(rb"SIP/2\.0 |[^\s]+ [^\r\n]+ SIP/2\.0[ \t]*\Z", re.IGNORECASE)
_CR, _LF = b"\r\n"


class KeepAlive(Enum):
    """What stands between messages: CRLF CRLF asks whether we are there, one CRLF says so.

    Of the two in a ping the first counts as a pong, since nobody can tell yet.
    """

    PING = b"\r\n\r\n"
    PONG = b"\r\n"


class FramingError(ValueError):
    """The stream can't be cut any further and has to be closed.

    `head` is the message whose end can't be found, "" where there is none.
    """

    def __init__(self, sentence: str, head: bytes = b"") -> None:
        super().__init__(sentence)
        self.head = head


class Framer:
    """Feed it what arrives, then take frames until there is none."""

    __slots__ = ("_buffer", "_searched", "_single", "_size")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._searched = 0
        self._size: int | None = None
        # Whether one CRLF has come, so that another makes it a ping.
        self._single = False

    @property
    def is_between(self) -> bool:
        """Whether no message has begun that has not ended."""
        return not self._buffer

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next_frame(self) -> bytes | KeepAlive | None:
        """The next message, whole, or keep-alive; None until more has come.

        Raises `FramingError` where no more can.
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
        """How long the message at the front is, head and body; None until its head is whole."""
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
        lengths = _LENGTH.findall(_FOLD.sub(b" ", head))
        if len(lengths) != 1:
            raise FramingError("a message on a stream needs one Content-Length", head)
        text = lengths[0].strip()
        if not (text.isdigit() and len(text) <= 6):
            raise FramingError("the Content-Length is not a number", head)
        if len(head) + int(text) > MAX_DATAGRAM:
            raise FramingError(f"a message is longer than {MAX_DATAGRAM} bytes", head)
        return len(head) + int(text)

    def _check_first_line(self) -> bool:
        """Whether the first line is there; one that is not SIP's ends the stream at once."""
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
