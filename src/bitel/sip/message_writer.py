"""Writes SIP messages: requests from a template, responses from their request."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from bitel.sip.message import Request

ALLOW = "INVITE, ACK, CANCEL, BYE, OPTIONS, UPDATE, PRACK, INFO"
"""PRACK always gets 481, because no response of ours is reliable."""
OPTION_TAGS = ("100rel", "timer")
"""The extensions that may be required of us (RFC 3261 §8.2.2.3): RFC 3262 and RFC 4028."""
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
    """Refuse text of ours that would break out of its header line, with ValueError."""
    if "\r" in text or "\n" in text or "\0" in text:
        raise ValueError("a header value holds a line break or a zero byte")
    return text


class RequestTemplate(NamedTuple):
    """A request before it is written. `from_value` and `to_value` are header values with tags."""

    method: str
    uri: str
    via: str
    from_value: str
    to_value: str
    call_id: str
    cseq: int
    routes: tuple[str, ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    def to_bytes(self) -> bytes:
        """Return the request as a datagram."""
        method, uri, via, from_value, to_value, call_id, cseq, routes, headers, body = self
        route_lines = "".join([f"Route: {route}\r\n" for route in routes]) if routes else ""
        header_lines = "".join([f"{name}: {value}\r\n" for name, value in headers])
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
    def credentials(self) -> tuple[tuple[str, str], ...]:
        """The headers that answer challenges, which the ACK of a 2xx repeats (§22.1)."""
        headers = self.headers
        return tuple([each for each in headers if "Authorization" in each[0]]) if headers else ()

    def bare(self) -> RequestTemplate:
        """The request without its headers and body, as its ACK, CANCEL and dialogs need it."""
        return RequestTemplate(*self[:8])

    def cancel(self) -> RequestTemplate:
        """The CANCEL of this INVITE: same branch, same Route, no digest (§9.1)."""
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
    """Compose a response (§8.2.6.2). `to_tag` is added where the request's To has no tag."""
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
