"""Message bodies: finds the session description in one, also within multipart (RFC 5621).

Bodies are handled as bytes, because a part may be binary (ISUP, RFC 3204).
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from bitel.sip.grammar import parameter
from bitel.sip.message import Message

SDP = "application/sdp"
MAX_DEPTH = 3
"""Levels of multipart within each other that are read."""
MAX_PARTS = 32
"""Parts of a body that are read, those of all levels together."""
MAX_BOUNDARY = 256
"""Characters of a boundary; RFC 2046 §5.1.1 allows 70."""
MAX_PART_HEAD = 4096
"""Bytes of the headers of one part that are read."""

_EMPTY_LINE = re.compile(rb"\r?\n\r?\n")
_FOLD = re.compile(r"\r?\n[ \t]+")
_DECODERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "7bit": bytes,
    "8bit": bytes,
    "binary": bytes,
    "base64": binascii.a2b_base64,
    "quoted-printable": binascii.a2b_qp,
}


class _Part(NamedTuple):
    """A body, or one part of a multipart: the headers that describe it, and its content."""

    content_type: str
    disposition: str
    encoding: str
    transfer_encoding: str
    content: bytes

    @property
    def media_type(self) -> str:
        written = media_type_of(self.content_type)
        # Without a type, a session description is recognised by its first line.
        return SDP if not written and self.content.startswith(b"v=0") else written

    @property
    def is_encoded(self) -> bool:
        return self.encoding.strip().lower() not in ("", "identity")

    @property
    def handling(self) -> str:
        """The handling parameter: "optional", "required", or "" where it is missing."""
        written = parameter(self.disposition, "handling") or ""
        return written.strip('"').lower()

    @property
    def is_session(self) -> bool:
        """Whether this is a session description of the session itself (RFC 3261 §20.11)."""
        purpose = self.disposition.partition(";")[0].strip().lower()
        return self.media_type == SDP and not self.is_encoded and purpose in ("", "session")


class _Found(NamedTuple):
    """The result of reading a body: its session description, b"" for none, and whether all of it
    that is required is supported."""

    description: bytes
    is_supported: bool


_UNREADABLE = _Found(b"", is_supported=False)


def media_type_of(content_type: str) -> str:
    """The media type of a Content-Type header in lower case, without parameters."""
    return content_type.partition(";")[0].strip().lower()


def session_description_of(message: Message) -> bytes:
    """The session description in a message's body, b"" where it has none.

    That is a body of type application/sdp, or the first such part of a multipart body, or the last
    one of multipart/alternative, which its sender prefers (RFC 2046 §5.1.4). A part whose
    Content-Disposition is not `session`, or that has a Content-Encoding, is none.
    """
    return _read_body(message).description


def unsupported_body(message: Message) -> bool:
    """Whether a request must be refused with 415 (Unsupported Media Type) because of its body.

    That is a body other than a session description whose Content-Disposition does not say
    `handling=optional` (RFC 3261 §20.11). In a multipart body it is any such part that says
    `handling=required`. A part without the parameter is required by default, but is ignored beside
    a session description: gateways add ISUP and XML to their SDP without it, and interoperate with
    user agents that support neither.
    """
    return not _read_body(message).is_supported


def _read_body(message: Message) -> _Found:
    if not message.body:
        return _Found(b"", is_supported=True)
    content_type = message.header("content-type")
    disposition = message.header("content-disposition")
    encoding = message.header("content-encoding")
    if content_type == SDP and not disposition and not encoding:
        return _Found(message.body, is_supported=True)
    whole = _Part(content_type, disposition, encoding, "", message.body)
    return _read(whole, iter(range(MAX_PARTS)))


def _read(part: _Part, budget: Iterator[int], depth: int = 0) -> _Found:
    found = _UNREADABLE
    if part.is_session:
        content = _decoded(part)
        if content:
            found = _Found(content, is_supported=True)
    elif part.media_type.startswith("multipart/") and not part.is_encoded and depth < MAX_DEPTH:
        found = _read_multipart(part, budget, depth)
    if not found.is_supported and part.handling == "optional":
        return found._replace(is_supported=True)
    return found


def _read_multipart(whole: _Part, budget: Iterator[int], depth: int) -> _Found:
    parts: list[tuple[_Part, _Found]] = []
    for part in _parts_of(whole):
        if next(budget, None) is None:
            parts.append((part._replace(disposition=";handling=required"), _UNREADABLE))
            break
        parts.append((part, _read(part, budget, depth + 1)))
    descriptions = [found.description for _, found in parts if found.description]
    if whole.media_type == "multipart/alternative":
        supported = any(found.is_supported for _, found in parts)
        return _Found(descriptions[-1] if descriptions else b"", supported)
    missing = [part for part, found in parts if not found.is_supported]
    if descriptions:
        supported = all(part.handling != "required" for part in missing)
        return _Found(descriptions[0], supported)
    return _Found(b"", is_supported=bool(parts) and not missing)


def _parts_of(whole: _Part) -> Iterator[_Part]:
    """The parts between the boundary's delimiter lines (RFC 2046 §5.1.1), CRLF or LF."""
    boundary = (parameter(whole.content_type, "boundary") or "").strip('"')
    if not 0 < len(boundary) <= MAX_BOUNDARY:
        return
    delimiter = re.compile(
        rb"(?:\A|\r?\n)--"
        + re.escape(boundary.encode("utf-8", "surrogateescape"))
        + rb"(--)?[ \t]*(?=\r?\n|\Z)"
    )
    begin: int | None = None
    for match in delimiter.finditer(whole.content):
        if begin is not None:
            yield _part(whole.content[begin : match.start()])
        if match[1]:
            return
        begin = match.end()
    if begin is not None:
        # The closing delimiter is missing.
        yield _part(whole.content[begin:])


def _part(data: bytes) -> _Part:
    """A part, which begins with the line break of its delimiter line."""
    blank = _EMPTY_LINE.search(data)
    if blank is None:
        return _Part("", "", "", "", b"")
    head = data[: min(blank.start(), MAX_PART_HEAD)].decode("utf-8", "surrogateescape")
    headers: dict[str, str] = {}
    for line in _FOLD.sub(" ", head).splitlines():
        name, _, value = line.partition(":")
        headers.setdefault(name.strip().lower(), value.strip())
    return _Part(
        headers.get("content-type", headers.get("c", "")),
        headers.get("content-disposition", ""),
        headers.get("content-encoding", headers.get("e", "")),
        headers.get("content-transfer-encoding", ""),
        data[blank.end() :],
    )


def _decoded(part: _Part) -> bytes:
    """The content without its transfer encoding, b"" where that can't be undone."""
    decoder = _DECODERS.get(part.transfer_encoding.lower())
    if decoder is None:
        return b""
    try:
        return decoder(part.content)
    except binascii.Error:
        return b""


MAX_BODY = 1024
"""Bytes of a body; a longer one is not read."""
MAX_DIGITS = 32
"""Digits of one INFO in the Nortel format; the other formats carry one digit."""
RELAY = "application/dtmf-relay"
PLAIN = "application/dtmf"
NORTEL = "application/vnd.nortelnetworks.digits"
DTMF_TYPES = (RELAY, PLAIN, NORTEL)

_EVENTS = {"10": "*", "11": "#", "12": "A", "13": "B", "14": "C", "15": "D"}
_SIGNAL = re.compile(r"^[ \t]*signal[ \t]*=[ \t]*([^\s;,]+)", re.IGNORECASE | re.MULTILINE)
_DIGITS = re.compile(
    r"^[ \t]*d[ \t]*=[ \t]*(?:digits?[ \t]*=[ \t]*)?([^\s;,]+)", re.IGNORECASE | re.MULTILINE
)
_KEYED = re.compile(r"[0-9*#A-D]+\Z")


def carries_digits(message: Message) -> bool:
    """Whether a message's body is of one of the DTMF types."""
    return bool(message.body) and media_type_of(message.header("content-type")) in DTMF_TYPES


def digits_of(message: Message) -> str:
    """The digits of a message's DTMF body, of 0-9*#ABCD; "" where they can't be read.

    Longer bodies than `MAX_BODY` bytes, and more digits than `MAX_DIGITS`, are not read.
    """
    if len(message.body) > MAX_BODY:
        return ""
    text = message.body.decode("ascii", "replace").strip().strip("\0")
    media_type = media_type_of(message.header("content-type"))
    found = (_DIGITS if media_type == NORTEL else _SIGNAL).search(text)
    if found is not None:
        written = found[1]
    elif media_type == PLAIN:
        written = text
    else:
        return ""
    if media_type == NORTEL:
        keyed, most = written.upper(), MAX_DIGITS
    else:
        # One signal is one event: "10" is `*`, and "16", a hook flash, is no digit.
        keyed, most = _EVENTS.get(written, written.upper()), 1
    return keyed if len(keyed) <= most and _KEYED.match(keyed) else ""
