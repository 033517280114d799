"""Message bodies: session descriptions, also within multipart (RFC 5621), and DTMF digits.

Bodies are handled as bytes, because a part may be binary (ISUP, RFC 3204).

INFO carries DTMF digits in three formats, none of them standardised:

- application/dtmf-relay (Cisco, most phones): lines `Signal=5` and `Duration=160`;
- application/dtmf: the digit alone, or a `Signal=` line as above;
- application/vnd.nortelnetworks.digits: lines `p=Digit-Collection`, `y=Digits`, `d=5`.

A signal is the digit itself or its event code (RFC 4733 §3.2): 10 for `*`, 11 for `#`, 12 to 15 for
A to D. Lines end with CRLF or LF; case and space around `=` do not matter; other lines are ignored.
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
"""Nesting levels of multipart that are read."""
MAX_PARTS = 32
"""Parts of a body that are read, over all levels."""
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
    """A body or a part of a multipart body: its headers and content."""

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
        """The handling parameter: "optional", "required", or "" if missing."""
        written = parameter(self.disposition, "handling") or ""
        return written.strip('"').lower()

    @property
    def is_session(self) -> bool:
        """Whether this is the description of the session (RFC 3261 §20.11)."""
        purpose = self.disposition.partition(";")[0].strip().lower()
        return self.media_type == SDP and not self.is_encoded and purpose in ("", "session")


class _Found(NamedTuple):
    """The session description of a body, b"" without one, and whether all required parts are
    supported."""

    description: bytes
    is_supported: bool


_UNREADABLE = _Found(b"", is_supported=False)


def media_type_of(content_type: str) -> str:
    """The media type of a Content-Type header in lower case, without parameters."""
    return content_type.partition(";")[0].strip().lower()


def session_description_of(message: Message) -> bytes:
    """The session description in a message's body, b"" without one.

    That is a body of type application/sdp, the first such part of a multipart body, or the last one
    of multipart/alternative, which the sender prefers (RFC 2046 §5.1.4). Parts with a
    Content-Encoding or a Content-Disposition other than `session` do not count.
    """
    return _read_body(message).description


def unsupported_body(message: Message) -> bool:
    """Whether a request must be refused with 415 (Unsupported Media Type) because of its body.

    That is a body other than a session description without `handling=optional` (RFC 3261 §20.11).
    In a multipart body with a session description, only parts with `handling=required` count:
    gateways add ISUP and XML without the parameter, although required is its default.
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
    """Parse a part; `data` begins with the line break of the delimiter line."""
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
    """The decoded content, b"" if it can't be decoded."""
    decoder = _DECODERS.get(part.transfer_encoding.lower())
    if decoder is None:
        return b""
    try:
        return decoder(part.content)
    except binascii.Error:
        return b""


MAX_BODY = 1024
"""Bytes of a DTMF body; a longer one is not read."""
MAX_DIGITS = 32
"""Digits of one INFO in the Nortel format; the others carry one."""
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
    """Whether a message has a body of a DTMF type."""
    return bool(message.body) and media_type_of(message.header("content-type")) in DTMF_TYPES


def digits_of(message: Message) -> str:
    """The digits (0-9*#ABCD) in a DTMF body; "" if unreadable, or beyond `MAX_BODY` or
    `MAX_DIGITS`."""
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
        # "10" is the event code of `*`; "16", a hook flash, is not a digit.
        keyed, most = _EVENTS.get(written, written.upper()), 1
    return keyed if len(keyed) <= most and _KEYED.match(keyed) else ""
