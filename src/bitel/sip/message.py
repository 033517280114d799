"""SIP messages (RFC 3261 §7): a lazy parser, and writers of requests and responses.

Only the headers that route a message are parsed at once; bytes that are not UTF-8 survive a round
trip (`surrogateescape`). Peers send the same headers in the same order again and again, so
`HeaderLayout`s are cached by the names of all header lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import NamedTuple

from bitel.sip.grammar import Address, GrammarError, split_list, tag_of

MAX_DATAGRAM = 65535
MAX_HEAD = 16384
MAX_HEADERS = 128
MAX_VIAS = 70
"""Via values of a request: each proxy adds one, and Max-Forwards starts at 70."""
MAX_CSEQ = 2**31 - 1

_COMPACT = {
    "a": "accept-contact",
    "b": "referred-by",
    "c": "content-type",
    "e": "content-encoding",
    "f": "from",
    "i": "call-id",
    "k": "supported",
    "l": "content-length",
    "m": "contact",
    "o": "event",
    "r": "refer-to",
    "s": "subject",
    "t": "to",
    "u": "allow-events",
    "v": "via",
    "x": "session-expires",
}
_ESSENTIAL = ("via", "from", "to", "call-id", "cseq")
_FIELD = re.compile(r"\r\n([^\r\n:]*):")
_FOLD = re.compile(r"\n[ \t]+")
_HEADER_NAME = re.compile(r"[A-Za-z0-9\-.!%*_+`'~]{1,1024}\Z")
_METHOD = re.compile(r"[A-Za-z0-9\-.!%*_+`'~]{1,128}\Z")
_VIA = re.compile(
    r"SIP\s*/\s*2\.0\s*/\s*[A-Za-z0-9]{1,16}\s+(\[[0-9A-Fa-f:.]{2,64}\]|[^\s:;,\[]{1,255})"
    r"\s*(?::\s*(\d{1,5}))?\s*(?:[;,]|\Z)",
    re.IGNORECASE | re.ASCII,
)
_BRANCH = re.compile(r";\s*branch\s*=\s*([^;,\s]+)", re.IGNORECASE)
_QUOTED_BRANCH = re.compile(rb";branch=([A-Za-z0-9]{1,256})(?=[;,\r\n])")
_REQUEST_URI = re.compile(r'[^\s<>"]+\Z')
_EMPTY_PARAMETER = re.compile(r"[;,]\s*[;,]")

_NOWHERE = Address("", 0)

Essentials = Callable[[list[str]], tuple[str, str, str, str, str]]
Headers = tuple[tuple[str, str], ...]
"""Names and values of header lines."""


class MessageError(ValueError):
    """Not a SIP message, or a mandatory header is missing or invalid.

    `request` is a request as far as it was parsed, so that it can be answered with 400; else None.
    """

    def __init__(self, sentence: str, request: Request | None = None) -> None:
        super().__init__(sentence)
        self.request = request


class BodyLengthError(MessageError):
    """Content-Length is invalid or more than was received; all else is valid.

    `message` is the message with all data after its head as body.
    """

    def __init__(self, sentence: str, message: Request | Response) -> None:
        super().__init__(sentence, message if isinstance(message, Request) else None)
        self.message = message


class HeaderLayout:
    """Line numbers of the headers of a message, by name in lower case and full length.

    `essentials` extracts the first Via, From, To, Call-ID and CSeq from the lines; None if one is
    missing or repeated (except Via). `is_folded`: continuation lines must be joined first.
    """

    def __init__(self, places: dict[str, tuple[int, ...]], *, is_folded: bool = False) -> None:
        self.places = places
        self.is_folded = is_folded
        single = all(len(places.get(name, ())) == 1 for name in _ESSENTIAL[1:])
        self.essentials: Essentials | None = None
        if single and "via" in places:
            self.essentials = itemgetter(*(places[name][0] for name in _ESSENTIAL))


def split_head(text: str) -> tuple[str, HeaderLayout, list[str]]:
    """First line, layout and unstripped values of a head without its last CRLF.

    Raises `MessageError` for too many lines, or one that is not a header.
    """
    fields = _FIELD.split(text)
    between = "".join(fields[::2])
    if "\n" not in between and "\r" not in between and "\0" not in text:
        layout = _layout(tuple(fields[1::2]))
        if not layout.is_folded:
            return fields[0], layout, fields[2::2]
    fields = _FIELD.split(_normalised(text))
    return fields[0], _layout(tuple(fields[1::2])), fields[2::2]


def _normalised(text: str) -> str:
    """A head with unfolded lines that end with CRLF, without empty lines."""
    # A quoted string may hold one, escaped (RFC 3261 §25.1).
    if "\0" in text.replace("\\\0", ""):
        raise MessageError("a message's headers hold a zero byte")
    unfolded = _FOLD.sub(" ", text.replace("\r\n", "\n").replace("\r", " "))
    first, *lines = unfolded.split("\n")
    if len(lines) > MAX_HEADERS:
        raise MessageError(f"a message has more than {MAX_HEADERS} header lines")
    if not all(":" in line for line in lines if line):
        raise MessageError("a header line has no colon")
    # A line after an empty one is not a continuation, even if it begins with a space.
    return "\r\n".join([first, *(line.lstrip() for line in lines if line)])


@lru_cache(maxsize=128)
def _layout(written: tuple[str, ...]) -> HeaderLayout:
    """The layout of header lines with these names."""
    if any(name[:1] in (" ", "\t") for name in written):
        return HeaderLayout({}, is_folded=True)
    if len(written) > MAX_HEADERS:
        raise MessageError(f"a message has more than {MAX_HEADERS} header lines")
    places: dict[str, tuple[int, ...]] = {}
    for place, name in enumerate(map(_canonical, written)):
        places[name] = (*places.get(name, ()), place)
    return HeaderLayout(places)


def _canonical(written: str) -> str:
    """A header's name in lower case and full length (§7.3.1)."""
    name = written.strip().lower()
    if not _HEADER_NAME.match(name):
        raise MessageError("a header's name is not a token")
    return _COMPACT.get(name, name)


class Message:
    """A received request or response. Header names are in lower case and full length.

    `branch`, `call_id`, `cseq`, `cseq_method`, `from_tag` and `to_tag` identify transaction and
    dialog; `size` is the length of the message in bytes.
    """

    def __init__(self, layout: HeaderLayout, lines: list[str]) -> None:
        self._layout = layout
        self._lines = lines
        self.body = b""
        self.call_id = self.from_tag = self.to_tag = self.branch = self.cseq_method = ""
        self.cseq = self.size = 0
        self.source = _NOWHERE

    def __contains__(self, name: str) -> bool:
        return name in self._layout.places

    def header(self, name: str) -> str:
        """The first value line of a header, "" if it is missing."""
        places = self._layout.places.get(name)
        return self._lines[places[0]].strip() if places else ""

    def lines(self, name: str) -> list[str]:
        """The value lines of a header, in order."""
        return [self._lines[place].strip() for place in self._layout.places.get(name, ())]

    def values(self, name: str) -> list[str]:
        """The values of a header that may be a comma-separated list, in order."""
        return [item for line in self.lines(name) for item in split_list(line)]

    @property
    def headers(self) -> dict[str, list[str]]:
        """All headers, in order of first appearance."""
        return {name: self.lines(name) for name in self._layout.places}

    @property
    def printable_headers(self) -> Headers:
        """All headers, one pair a line, as `printable` text."""
        return tuple(
            (name, printable(value)) for name, lines in self.headers.items() for value in lines
        )

    def read_essentials(self) -> None:
        """Parse what identifies transaction and dialog; raises `MessageError`."""
        essentials = self._layout.essentials
        if essentials is None:
            raise MessageError(
                "a message needs Via, and exactly one each of Call-ID, CSeq, From and To"
            )
        via, from_value, to_value, call_id, cseq = essentials(self._lines)
        self.call_id = call_id.strip()
        if not self.call_id or "\0" in self.call_id:
            raise MessageError("the Call-ID is not a word")
        self.cseq, self.cseq_method = _cseq(cseq)
        self.branch = _branch_of(via)
        try:
            self.from_tag = tag_of(from_value)
            self.to_tag = tag_of(to_value)
        except GrammarError as error:
            raise MessageError(str(error)) from error

    def sent_by(self) -> tuple[str, int | None]:
        """Host and port of the top Via; raises `MessageError`."""
        return sent_by_of(self.header("via"))

    @property
    def has_one_via(self) -> bool:
        """Whether there is a single Via value, as in a response at its destination (§8.1.3.3)."""
        places = self._layout.places.get("via", ())
        if len(places) != 1:
            return False
        return "," not in self._lines[places[0]] or len(self.values("via")) == 1


class Request(Message):
    """A request: `method` and `uri` are those of its request line."""

    def __init__(self, method: str, uri: str, layout: HeaderLayout, lines: list[str]) -> None:
        super().__init__(layout, lines)
        self.method = method
        self.uri = uri


class Response(Message):
    """A response: `code` and `reason` are those of its status line."""

    def __init__(self, code: int, reason: str, layout: HeaderLayout, lines: list[str]) -> None:
        super().__init__(layout, lines)
        self.code = code
        self.reason = reason


def parse(data: bytes, source: Address = _NOWHERE) -> Request | Response:
    """Parse a message that came from `source`.

    Raises `MessageError`; `BodyLengthError` if only the length is wrong.
    """
    if len(data) > MAX_DATAGRAM:
        raise MessageError("a datagram is longer than 65535 bytes")
    head, separator, body = data.lstrip(b"\r\n").partition(b"\r\n\r\n")
    if not separator and b"\n\n" in head:
        head, separator, body = head.partition(b"\n\n")
    if len(head) > MAX_HEAD:
        raise MessageError(f"a message's headers are longer than {MAX_HEAD} bytes")
    first, layout, lines = split_head(head.decode("utf-8", "surrogateescape"))
    vias = ",".join([lines[place] for place in layout.places.get("via", ())])
    if vias.count(",") >= MAX_VIAS:
        raise MessageError(f"a message has more than {MAX_VIAS} Via values")
    message: Request | Response
    if first[:8].upper() == "SIP/2.0 ":
        message = Response(*_status_of(first), layout, lines)
    else:
        message = Request(*_method_and_uri(first), layout, lines)
    message.body = body
    message.size = len(data)
    message.source = source
    try:
        message.read_essentials()
        if isinstance(message, Request):
            _check_request(message)
    except MessageError as error:
        if isinstance(message, Request):
            raise MessageError(str(error), message) from error
        raise
    try:
        message.body = _body(layout, lines, body)
    except MessageError as error:
        raise BodyLengthError(str(error), message) from error
    return message


# The next five are cached, because their arguments repeat from message to message.


@lru_cache(maxsize=64)
def _status_of(line: str) -> tuple[int, str]:
    """Code and reason phrase of a status line; the phrase may be missing."""
    code, _, reason = line[8:].strip().partition(" ")
    plain = len(code) == 3 and code.isdigit() and code.isascii()
    if not plain or not "100" <= code < "700":
        raise MessageError("a status code is not a number from 100 to 699")
    return int(code), reason


@lru_cache(maxsize=64)
def _cseq(value: str) -> tuple[int, str]:
    """Number and method of a CSeq header."""
    number, _, method = value.strip().partition(" ")
    if len(number) > 10 or not number.isdigit() or not number.isascii():
        raise MessageError("the CSeq header needs a number and a method")
    if int(number) > MAX_CSEQ:
        raise MessageError("the CSeq number is 2^31 or more")
    return int(number), method.strip()


@lru_cache(maxsize=64)
def _length(value: str) -> int | None:
    """The number of a Content-Length header, None if it is empty."""
    text = value.strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 6):
        raise MessageError("the Content-Length is not a number")
    return int(text)


@lru_cache(maxsize=64)
def _sent_by(start: str) -> tuple[str, int | None]:
    """Host and port of a Via header without its parameters."""
    match = _VIA.match(start.strip())
    if match is None:
        raise MessageError("the Via header is not SIP/2.0, a transport and a host")
    host, port = match.groups()
    return host, int(port) if port else None


def sent_by_of(via: str) -> tuple[str, int | None]:
    """Host and port of a Via header's first value; raises `MessageError`."""
    return _sent_by(via.partition(";")[0])


@lru_cache(maxsize=64)
def _is_plain(before: str) -> bool:
    """Whether the text before the first `;branch=` of a Via header has no other branch or value.

    Raises `MessageError` if the host is missing.
    """
    _sent_by(before.partition(";")[0])
    return "," not in before and "branch" not in before.lower()


def _method_and_uri(line: str) -> tuple[str, str]:
    method, _, rest = line.partition(" ")
    uri, _, version = rest.strip().rpartition(" ")
    if version.upper() != "SIP/2.0" or not _METHOD.match(method):
        raise MessageError("the first line is neither a request nor a status line")
    return method, uri


def _branch_of(via: str) -> str:
    """The branch of a Via header's first value, "" without one. Raises `MessageError`."""
    before, _, after = via.partition(";branch=")
    branch = after.partition(";")[0]
    # Fast path for the usual form.
    if _is_plain(before) and branch.isalnum():
        return branch
    found = _BRANCH.search(via if "," not in via else split_list(via)[0])
    return found[1] if found else ""


def quoted_branch(quoted: bytes) -> str:
    """The branch in the part of a message that an ICMP error quotes; "" if missing or cut off."""
    found = _QUOTED_BRANCH.search(quoted)
    return found[1].decode("latin-1") if found else ""


def _check_request(request: Request) -> None:
    """Raises `MessageError` for an invalid Request-URI, CSeq method or Via."""
    # ACK, BYE and CANCEL are matched by dialog or branch; their Request-URI is not needed.
    if request.method not in ("ACK", "BYE", "CANCEL") and not _REQUEST_URI.match(request.uri):
        raise MessageError("the Request-URI is missing, or holds a space, quote or bracket")
    if request.cseq_method != request.method:
        raise MessageError("the CSeq header names another method than the request")
    via = request.header("via")
    if '"' not in via and _EMPTY_PARAMETER.search(via):
        raise MessageError("the Via header has separators with nothing between them")


def _body(layout: HeaderLayout, lines: Sequence[str], received: bytes) -> bytes:
    """The body of Content-Length bytes; all of it if the header is missing (§18.3)."""
    places = layout.places.get("content-length")
    if places is None:
        return received
    length = _length(lines[places[0]])
    if any(_length(lines[place]) != length for place in places[1:]):
        raise MessageError("the Content-Length is given more than once, with different values")
    if length is None:
        return received
    if length > len(received):
        raise MessageError("the Content-Length is more than was received")
    return received[:length]


def printable(text: str) -> str:
    """Received text with unprintable characters replaced by \ufffd."""
    if text.isprintable():
        return text
    shown = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(char if char.isprintable() else "\ufffd" for char in shown)


# Writing

ALLOW = "INVITE, ACK, CANCEL, BYE, OPTIONS, UPDATE, PRACK, INFO"
"""PRACK gets 481 from a callee, because our responses are never reliable."""
OPTION_TAGS = ("100rel", "timer")
"""Supported extensions (RFC 3261 §8.2.2.3): RFC 3262 and RFC 4028."""
SUPPORTED = ", ".join(OPTION_TAGS)
CAPABILITIES = (("Allow", ALLOW), ("Accept", "application/sdp"), ("Supported", SUPPORTED))
"""The headers of a 2xx to OPTIONS (RFC 3261 §11.2)."""
SDP_TYPE = ("Content-Type", "application/sdp")
MAX_FORWARDS = 70

PHRASES = {
    100: "Trying",
    180: "Ringing",
    181: "Call Is Being Forwarded",
    182: "Queued",
    183: "Session Progress",
    200: "OK",
    302: "Moved Temporarily",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    406: "Not Acceptable",
    407: "Proxy Authentication Required",
    408: "Request Timeout",
    410: "Gone",
    415: "Unsupported Media Type",
    416: "Unsupported URI Scheme",
    420: "Bad Extension",
    422: "Session Interval Too Small",
    469: "Bad Info Package",
    480: "Temporarily Unavailable",
    481: "Call/Transaction Does Not Exist",
    482: "Loop Detected",
    484: "Address Incomplete",
    486: "Busy Here",
    487: "Request Terminated",
    488: "Not Acceptable Here",
    491: "Request Pending",
    500: "Server Internal Error",
    501: "Not Implemented",
    503: "Service Unavailable",
    504: "Server Time-out",
    600: "Busy Everywhere",
    603: "Decline",
    604: "Does Not Exist Anywhere",
    606: "Not Acceptable",
}


def one_line(text: str) -> str:
    """Return `text`; raises ValueError if it would end its header line."""
    if "\r" in text or "\n" in text or "\0" in text:
        raise ValueError("a header value holds a line break or a zero byte")
    return text


def split_routes(headers: Headers) -> tuple[tuple[str, ...], Headers]:
    """The Route values among `headers`, and the other headers."""
    routes = tuple([value for name, value in headers if name.lower() == "route"])
    return routes, tuple([each for each in headers if each[0].lower() != "route"])


def lines_of(headers: Headers) -> str:
    """Header lines, serialised."""
    return "".join([f"{name}: {value}\r\n" for name, value in headers])


class RequestTemplate(NamedTuple):
    """A request to be serialised.

    `from_value` and `to_value` are header values with tags. `common` are header lines that many
    requests share, already serialised.
    """

    method: str
    uri: str
    via: str
    from_value: str
    to_value: str
    call_id: str
    cseq: int
    routes: tuple[str, ...] = ()
    headers: Headers = ()
    body: bytes = b""
    common: str = ""

    def to_bytes(self) -> bytes:
        """Return the request as a datagram."""
        method, uri, via, from_value, to_value, call_id, cseq, routes, headers, body, common = self
        route_lines = "".join([f"Route: {route}\r\n" for route in routes]) if routes else ""
        header_lines = common + lines_of(headers)
        text = (
            f"{method} {uri} SIP/2.0\r\n"
            f"Via: {via}\r\n"
            f"Max-Forwards: {MAX_FORWARDS}\r\n"
            f"{route_lines}"
            f"From: {from_value}\r\n"
            f"To: {to_value}\r\n"
            f"Call-ID: {call_id}\r\n"
            f"CSeq: {cseq} {method}\r\n"
            f"{header_lines}"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return text.encode("utf-8", "surrogateescape") + body

    @property
    def credentials(self) -> Headers:
        """The credential headers, which the ACK of a 2xx repeats (§22.1)."""
        headers = self.headers
        return tuple([each for each in headers if "Authorization" in each[0]]) if headers else ()

    def bare(self) -> RequestTemplate:
        """The request without headers and body, as needed for its ACK, CANCEL and dialogs."""
        return RequestTemplate(*self[:8])

    def cancel(self) -> RequestTemplate:
        """The CANCEL of this INVITE: same branch and Route, no credentials (§9.1)."""
        return self.bare()._replace(method="CANCEL")

    def ack_failure(self, to_value: str) -> RequestTemplate:
        """The ACK of this INVITE's failure: same branch, the To of the response (§17.1.1.3)."""
        return self.bare()._replace(method="ACK", to_value=to_value)


def write_response(
    request: Request,
    code: int,
    to_tag: str = "",
    headers: Iterable[tuple[str, str]] = (),
    body: bytes = b"",
    *,
    top_via: str,
    reason: str = "",
) -> bytes:
    """Serialise a response (§8.2.6.2). `to_tag` is added if the request's To has none."""
    to = request.header("to")
    if to_tag and not request.to_tag:
        to = f"{to};tag={to_tag}"
    vias = "".join(f"Via: {via}\r\n" for via in request.values("via")[1:])
    routes = ""
    if 101 <= code <= 299:
        routes = "".join(f"Record-Route: {r}\r\n" for r in request.lines("record-route"))
    more = "".join(f"{name}: {value}\r\n" for name, value in headers)
    text = (
        f"SIP/2.0 {code} {reason or PHRASES.get(code, 'Unknown')}\r\n"
        f"Via: {top_via}\r\n{vias}{routes}"
        f"From: {request.header('from')}\r\nTo: {to}\r\n"
        f"Call-ID: {request.header('call-id')}\r\nCSeq: {request.header('cseq')}\r\n"
        f"{more}Content-Length: {len(body)}\r\n\r\n"
    )
    return text.encode("utf-8", "surrogateescape") + body
