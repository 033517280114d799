"""SIP messages, read with no more work than routing them takes (RFC 3261 §7).

The start line and headers are split once. Header values stay text until someone asks for more,
and bytes that are not UTF-8 survive a round trip (`surrogateescape`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from bitel.sip.grammar import GrammarError, split_list, tag_of

MAX_DATAGRAM = 65535
MAX_HEAD = 16384
MAX_HEADERS = 128

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
# Header names as they are usually written, so that they need not be looked at closely.
_USUAL_NAMES = {
    name: name.lower()
    for name in (
        *("Via", "From", "To", "Call-ID", "CSeq", "Contact", "Content-Length", "Content-Type"),
        *("Max-Forwards", "Record-Route", "Route", "Allow", "Supported", "User-Agent", "Server"),
        *("Reason", "Require", "Authorization", "WWW-Authenticate", "Accept"),
        *("Proxy-Authenticate", "Proxy-Authorization", "Session-Expires", "Min-SE", "RSeq"),
    )
}
_METHOD = re.compile(r"[A-Za-z0-9\-.!%*_+`'~]{1,128}\Z")
_HEADER_NAME = re.compile(r"[A-Za-z0-9\-.!%*_+`'~]{1,1024}\Z")
_VIA = re.compile(
    r"SIP\s*/\s*2\.0\s*/\s*[A-Za-z0-9]{1,16}\s+(\[[0-9A-Fa-f:.]{2,64}\]|[^\s:;,\[]{1,255})"
    r"\s*(?::\s*(\d{1,5}))?\s*(?:[;,]|\Z)",
    re.IGNORECASE | re.ASCII,
)
_BRANCH = re.compile(r";\s*branch\s*=\s*([^;,\s]+)", re.IGNORECASE)
_URI_OF_START_LINE = re.compile(r'[^\s<>"]+\Z')
_NOTHING_BETWEEN = re.compile(r"[;,]\s*[;,]")
_FOLD = re.compile(r"\n[ \t]+")
MAX_CSEQ = 2**31

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


class MessageError(ValueError):
    """A datagram that is not a SIP message, or lacks what every message must have.

    `request` is what could be read of a request, enough to answer it with 400; else None.
    """

    def __init__(self, sentence: str, request: Request | None = None) -> None:
        super().__init__(sentence)
        self.request = request


class Message:
    """What requests and responses have in common. `headers` maps lower-case names to values."""

    __slots__ = (
        "body",
        "branch",
        "call_id",
        "cseq",
        "cseq_method",
        "from_tag",
        "headers",
        "to_tag",
    )

    def __init__(self, headers: dict[str, list[str]], body: bytes) -> None:
        self.headers = headers
        self.body = body
        self.call_id = self.from_tag = self.to_tag = self.branch = self.cseq_method = ""
        self.cseq = 0

    def header(self, name: str) -> str:
        """A header's first value as it stands, "" where it is missing."""
        lines = self.headers.get(name)
        return lines[0] if lines else ""

    def values(self, name: str) -> list[str]:
        """All values of a header that may be given as a list, in order."""
        return [item for line in self.headers.get(name, ()) for item in split_list(line)]

    def read_essentials(self) -> None:
        """Read what names the transaction and the dialog; raises `MessageError` if it is amiss."""
        headers = self.headers
        try:
            (self.call_id,) = headers["call-id"]
            (cseq,) = headers["cseq"]
            (from_value,) = headers["from"]
            (to_value,) = headers["to"]
            via = headers["via"][0]
        except (KeyError, ValueError):
            raise MessageError(
                "a message needs Via, and exactly one each of Call-ID, CSeq, From and To"
            ) from None
        number, _, method = cseq.partition(" ")
        self.cseq_method = method.strip()
        if len(number) > 10 or not number.isdigit() or not number.isascii():
            raise MessageError("the CSeq header needs a number and a method")
        self.cseq = int(number)
        if self.cseq >= MAX_CSEQ or not self.call_id or "\0" in self.call_id:
            raise MessageError("the CSeq number is 2^31 or more, or the Call-ID is not a word")
        if not _VIA.match(via):
            raise MessageError("the Via header is not SIP/2.0, a transport and a host")
        try:
            self.from_tag = tag_of(from_value)
            self.to_tag = tag_of(to_value)
        except GrammarError as error:
            raise MessageError(str(error)) from error
        branch = _BRANCH.search(via if "," not in via else split_list(via)[0])
        self.branch = branch[1] if branch else ""

    def sent_by(self) -> tuple[str, int | None]:
        """Host and port of the top Via, as its sender wrote them."""
        match = _VIA.match(self.header("via"))
        if match is None:
            raise MessageError("a message needs a Via header")
        host, port = match.groups()
        return host, int(port) if port else None


class Request(Message):
    __slots__ = ("method", "uri")

    def __init__(
        self, method: str, uri: str, headers: dict[str, list[str]], body: bytes = b""
    ) -> None:
        super().__init__(headers, body)
        self.method = method
        self.uri = uri


class Response(Message):
    __slots__ = ("code", "reason")

    def __init__(
        self, code: int, reason: str, headers: dict[str, list[str]], body: bytes = b""
    ) -> None:
        super().__init__(headers, body)
        self.code = code
        self.reason = reason


def parse(data: bytes) -> Request | Response:
    """Read one datagram; raises `MessageError`."""
    if len(data) > MAX_DATAGRAM:
        raise MessageError("a datagram is longer than 65535 bytes")
    head, separator, body = data.lstrip(b"\r\n").partition(b"\r\n\r\n")
    if not separator and b"\n\n" in head:
        head, separator, body = head.partition(b"\n\n")
    if len(head) > MAX_HEAD:
        raise MessageError(f"a message's headers are longer than {MAX_HEAD} bytes")
    text = head.decode("utf-8", "surrogateescape").replace("\r\n", "\n")
    # A quoted string may hold one, escaped (§25.1).
    if "\0" in text and "\0" in text.replace("\\\0", ""):
        raise MessageError("a message's headers hold a zero byte")
    if "\r" in text:
        text = text.replace("\r", " ")
    if "\n " in text or "\n\t" in text:
        text = _FOLD.sub(" ", text)
    first, *lines = text.split("\n")
    message = _start(first, _headers(lines))
    try:
        message.body = _body(message.headers.get("content-length", ()), body)
        message.read_essentials()
        if isinstance(message, Request):
            _check_request(message)
    except MessageError as error:
        if isinstance(message, Request):
            raise MessageError(str(error), message) from error
        raise
    return message


def _start(line: str, headers: dict[str, list[str]]) -> Request | Response:
    if line[:8].upper() == "SIP/2.0 ":
        # The phrase may be missing, and with it the space before it.
        code, _, reason = line[8:].strip().partition(" ")
        plain = len(code) == 3 and code.isdigit() and code.isascii()
        if not plain or not "100" <= code < "700":
            raise MessageError("a status code is not a number from 100 to 699")
        return Response(int(code), reason, headers)
    method, _, rest = line.partition(" ")
    uri, _, version = rest.strip().rpartition(" ")
    if version.upper() != "SIP/2.0" or not _METHOD.match(method):
        raise MessageError("the first line is neither a request nor a status line")
    return Request(method, uri, headers)


def _check_request(request: Request) -> None:
    """What a request must be besides, so that it can be told from a damaged one."""
    if not _URI_OF_START_LINE.match(request.uri):
        raise MessageError("the Request-URI is missing, or holds a space, quote or bracket")
    if request.cseq_method != request.method:
        raise MessageError("the CSeq header names another method than the request")
    via = request.header("via")
    if '"' not in via and _NOTHING_BETWEEN.search(via):
        raise MessageError("the Via header has separators with nothing between them")


def _headers(lines: list[str]) -> dict[str, list[str]]:
    if len(lines) > MAX_HEADERS:
        raise MessageError(f"a message has more than {MAX_HEADERS} header lines")
    headers: dict[str, list[str]] = {}
    for line in lines:
        if not line:
            continue
        written, colon, value = line.partition(":")
        name = _USUAL_NAMES.get(written) or _canonical(written)
        if not colon:
            raise MessageError("a header line has no colon")
        if name in headers:
            headers[name].append(value.strip())
        else:
            headers[name] = [value.strip()]
    return headers


def _canonical(written: str) -> str:
    """A header's name in lower case and full length (§7.3.1)."""
    name = written.strip().lower()
    if not _HEADER_NAME.match(name):
        raise MessageError("a header's name is not a token")
    return _COMPACT.get(name, name)


def _body(content_length: Sequence[str], received: bytes) -> bytes:
    """The body that Content-Length names; the whole rest where it is missing (§18.3)."""
    if len(content_length) > 1:
        raise MessageError("the Content-Length is given more than once")
    text = content_length[0] if content_length else ""
    if not text:
        return received
    if not (text.isascii() and text.isdigit() and len(text) <= 6) or int(text) > len(received):
        raise MessageError("the Content-Length is not a number, or more than was received")
    return received[: int(text)]


def printable(text: str) -> str:
    """Text from the wire, fit to be stored and shown: what can't be printed becomes \ufffd."""
    if text.isprintable():
        return text
    shown = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(char if char.isprintable() else "\ufffd" for char in shown)


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
    """Compose a response (§8.2.6.2). `to_tag` is added where the request's To has no tag."""
    to = request.header("to")
    if to_tag and not request.to_tag:
        to = f"{to};tag={to_tag}"
    vias = "".join(f"Via: {via}\r\n" for via in request.values("via")[1:])
    routes = ""
    if 101 <= code <= 299:
        routes = "".join(f"Record-Route: {r}\r\n" for r in request.headers.get("record-route", ()))
    more = "".join(f"{name}: {value}\r\n" for name, value in headers)
    text = (
        f"SIP/2.0 {code} {reason or PHRASES.get(code, 'Unknown')}\r\n"
        f"Via: {top_via}\r\n{vias}{routes}"
        f"From: {request.header('from')}\r\nTo: {to}\r\n"
        f"Call-ID: {request.header('call-id')}\r\nCSeq: {request.header('cseq')}\r\n"
        f"{more}Content-Length: {len(body)}\r\n\r\n"
    )
    return text.encode("utf-8", "surrogateescape") + body
