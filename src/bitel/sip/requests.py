"""Requests that we send, before they are bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

ALLOW = "INVITE, ACK, CANCEL, BYE, OPTIONS, UPDATE, PRACK"
"""PRACK is understood: since no response of ours is reliable, it always meets 481."""
SDP_TYPE = ("Content-Type", "application/sdp")
MAX_FORWARDS = 70
_LINE_BREAK = re.compile(r"[\r\n\0]")


def one_line(text: str) -> str:
    """Refuse text of ours that would break out of its header line."""
    if _LINE_BREAK.search(text):
        raise ValueError("a header value holds a line break or a zero byte")
    return text


@dataclass(frozen=True, slots=True)
class ClientRequest:
    """`from_value` and `to_value` are whole header values, tags included."""

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
        routes = "".join([f"Route: {route}\r\n" for route in self.routes])
        more = "".join([f"{name}: {value}\r\n" for name, value in self.headers])
        text = (
            f"{self.method} {self.uri} SIP/2.0\r\n"
            f"Via: {self.via}\r\n"
            f"Max-Forwards: {MAX_FORWARDS}\r\n"
            f"{routes}"
            f"From: {self.from_value}\r\n"
            f"To: {self.to_value}\r\n"
            f"Call-ID: {self.call_id}\r\n"
            f"CSeq: {self.cseq} {self.method}\r\n"
            f"{more}"
            f"Content-Length: {len(self.body)}\r\n\r\n"
        )
        return text.encode("utf-8", "surrogateescape") + self.body

    @property
    def credentials(self) -> tuple[tuple[str, str], ...]:
        """The headers that answer challenges, which the ACK of a 2xx repeats (§22.1)."""
        return tuple(header for header in self.headers if "Authorization" in header[0])

    def cancel(self) -> ClientRequest:
        """The CANCEL of this INVITE: same branch, same Route, no digest (§9.1)."""
        return replace(self, method="CANCEL", headers=(), body=b"")

    def ack_failure(self, to_value: str) -> ClientRequest:
        """The ACK of this INVITE's failure: same branch, the To of the response (§17.1.1.3)."""
        return replace(self, method="ACK", to_value=to_value, headers=(), body=b"")
