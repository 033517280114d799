"""Requests that we send, before they are bytes."""

from __future__ import annotations

from typing import NamedTuple

ALLOW = "INVITE, ACK, CANCEL, BYE, OPTIONS, UPDATE, PRACK, INFO"
"""PRACK always gets 481, because no response of ours is reliable."""
OPTION_TAGS = ("100rel", "timer")
"""The extensions that may be required of us (RFC 3261 §8.2.2.3): RFC 3262 and RFC 4028."""
SUPPORTED = ", ".join(OPTION_TAGS)
CAPABILITIES = (
    ("Allow", ALLOW),
    ("Accept", "application/sdp"),
    ("Supported", SUPPORTED),
)
"""What a 2xx to OPTIONS says about us (RFC 3261 §11.2)."""
SDP_TYPE = ("Content-Type", "application/sdp")
SDP_TYPE_LINE = "Content-Type: application/sdp\r\n"
MAX_FORWARDS = 70


def one_line(text: str) -> str:
    """Refuse text of ours that would break out of its header line."""
    if "\r" in text or "\n" in text or "\0" in text:
        raise ValueError("a header value holds a line break or a zero byte")
    return text


class RequestTemplate(NamedTuple):
    """`from_value` and `to_value` are whole header values, tags included.

    `usual` are header lines that many requests have in common, written out once for all.
    """

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
    usual: str = ""

    def to_bytes(self) -> bytes:
        method, uri, via, from_value, to_value, call_id, cseq, routes, headers, body, usual = self
        route_lines = "".join([f"Route: {route}\r\n" for route in routes]) if routes else ""
        if headers:
            usual += "".join([f"{name}: {value}\r\n" for name, value in headers])
        text = (
            f"{method} {uri} SIP/2.0\r\n"
            f"Via: {via}\r\n"
            f"Max-Forwards: {MAX_FORWARDS}\r\n"
            f"{route_lines}"
            f"From: {from_value}\r\n"
            f"To: {to_value}\r\n"
            f"Call-ID: {call_id}\r\n"
            f"CSeq: {cseq} {method}\r\n"
            f"{usual}"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return text.encode("utf-8", "surrogateescape") + body

    @property
    def credentials(self) -> tuple[tuple[str, str], ...]:
        """The headers that answer challenges, which the ACK of a 2xx repeats (§22.1)."""
        headers = self.headers
        return tuple([each for each in headers if "Authorization" in each[0]]) if headers else ()

    def bare(self) -> RequestTemplate:
        """What is needed of a request that was answered: its start line, and who and which."""
        method, uri, via, from_value, to_value, call_id, cseq, routes, *_ = self
        return RequestTemplate(method, uri, via, from_value, to_value, call_id, cseq, routes)

    def cancel(self) -> RequestTemplate:
        """The CANCEL of this INVITE: same branch, same Route, no digest (§9.1)."""
        return self.bare()._replace(method="CANCEL")

    def ack_failure(self, to_value: str) -> RequestTemplate:
        """The ACK of this INVITE's failure: same branch, the To of the response (§17.1.1.3)."""
        return self.bare()._replace(method="ACK", to_value=to_value)
