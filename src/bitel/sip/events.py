"""Events that the user agent reports.

An outgoing call gets exactly one of `Answered` and `Failed`. `Ended` follows exactly once after
`Answered`, or after `accept` of an incoming call. A request outside of calls gets one
`RequestDone`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bitel.sip.grammar import Address
from bitel.sip.sdp import NegotiatedMedia, SessionDescription

Why = Literal["response", "timeout", "transport", "canceled", "media", "auth"]
By = Literal["far", "us"]


@dataclass(frozen=True, slots=True)
class Provisional:
    """A 1xx above 100: the first of each code, and each that carries an answer to our offer.

    `answer` is set for the first usable answer of an early dialog. Its address may be a host name,
    which should be resolved early: the 2xx need not carry a description.
    """

    call_id: str
    code: int
    answer: SessionDescription | None


@dataclass(frozen=True, slots=True)
class Answered:
    """A 2xx with usable SDP. Its ACK is already queued, unless the invitation withholds it."""

    call_id: str
    answer: SessionDescription
    agreed: NegotiatedMedia


@dataclass(frozen=True, slots=True)
class Failed:
    """The INVITE failed.

    `code` is the status of the final response; without one 408 for a timeout, 503 for a transport
    error, 487 for a cancellation, 488 for an unusable SDP answer. `q850` is the cause in the Reason
    header. `rang`: an 18x was received. `retry_after` is in seconds (§20.33). `contacts` are the
    URIs of a 3xx by descending q (§8.1.3.4).
    """

    call_id: str
    code: int
    q850: int | None
    reason: str
    why: Why
    rang: bool
    retry_after: float | None = None
    contacts: tuple[str, ...] = ()
    progress_for: float | None = None
    """Seconds from the first provisional response other than 18x to this failure; None without one.
    An INVITE that was sent again counts from its own first such response, if any."""
    delivered: bool = False
    """Whether the connection broke after the INVITE was delivered: the remote kernel had
    acknowledged all of it, or a provisional response had come. Always False over UDP."""
    analytics: bool = False
    """Whether the Reason header says that call analytics blocked the call (ATIS-1000099)."""
    udp_untried: bool = False
    """Whether the INVITE to a UDP destination was sent by TCP for its length, without a response:
    UDP may still work there."""


@dataclass(frozen=True, slots=True)
class Ending:
    """We sent BYE because the session was not refreshed (RFC 4028 §10); `Ended` follows.

    Not reported after `hang_up`.
    """

    call_id: str


@dataclass(frozen=True, slots=True)
class Ended:
    """An answered call is over; with `by` "us" our BYE's transaction has ended."""

    call_id: str
    by: By
    q850: int | None
    bye_unanswered: bool = False
    """Whether our BYE got no response."""
    ack_lost: bool = False
    """Whether the remote retransmitted its 2xx long after our ACK."""
    unfollowed: bool = False
    """Whether Contact or Record-Route named an address nearer to us than the remote's own, so that
    our requests went to the source of its messages."""


@dataclass(frozen=True, slots=True)
class MediaChanged:
    """The remote changed the media of an answered call by re-INVITE or UPDATE: destination, payload
    types, packet length or direction (hold)."""

    call_id: str
    agreed: NegotiatedMedia


@dataclass(frozen=True, slots=True)
class KeyedDigits:
    """DTMF `digits` (0-9*#ABCD) were received by INFO in an answered call."""

    call_id: str
    digits: str


@dataclass(frozen=True, slots=True)
class Incoming:
    """A new INVITE; 100 has been sent. `offer` is None if it carried no SDP.

    `number` and `from_user` are the unescaped user parts of Request-URI and From. Header names are
    in lower case.
    """

    call_id: str
    number: str
    from_user: str
    offer: SessionDescription | None
    source: Address
    headers: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Confirmed:
    """The ACK for our 200 arrived."""

    call_id: str


@dataclass(frozen=True, slots=True)
class Canceled:
    """An incoming call ended before our final response: CANCEL, BYE, or `early_limit` is over."""

    call_id: str


@dataclass(frozen=True, slots=True)
class MessageDropped:
    """A message for a running call was dropped: `source` does not belong to that call."""

    call_id: str
    source: Address
    is_response: bool


@dataclass(frozen=True, slots=True)
class DeliveryDoubted:
    """An ICMP error quotes a request to `destination` that has no response yet.

    It may be forged, so it is a reason to probe the destination, not to fail the request.
    """

    call_id: str
    destination: Address


@dataclass(frozen=True, slots=True)
class RequestDone:
    """A request outside of calls is over: a final response, 408 for none, 503 if it was not sent.

    `headers` are those of the response, names in lower case. A refresh continues with `cseq`, that
    of the last try, and `from_tag`.
    """

    call_id: str
    code: int
    reason: str
    headers: tuple[tuple[str, str], ...]
    why: Literal["response", "timeout", "transport"]
    cseq: int = 1
    from_tag: str = ""

    def header(self, name: str) -> str:
        """The first value line of a header, given in lower case; "" if it is missing."""
        return next((value for key, value in self.headers if key == name), "")


Event = (
    Provisional
    | Answered
    | Failed
    | Ending
    | Ended
    | MediaChanged
    | KeyedDigits
    | Incoming
    | Confirmed
    | Canceled
    | DeliveryDoubted
    | MessageDropped
    | RequestDone
)
