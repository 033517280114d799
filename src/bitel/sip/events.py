"""What the agent tells its user.

An outgoing call has exactly one of `Answered` and `Failed`; `Ended` follows an `Answered` (or, for
an incoming call, an `accept`) exactly once. A request outside any call has one `RequestDone`.
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

    `answer` is that answer if the response is the first of its early dialog with a usable one, else
    None. The 2xx need not have a description of its own.
    """

    call_id: str
    code: int
    answer: SessionDescription | None


@dataclass(frozen=True, slots=True)
class Answered:
    """A 2xx with SDP that can be used, and what it and our offer `agreed` on.

    Its ACK is already queued, unless the invitation withholds it.
    """

    call_id: str
    answer: SessionDescription
    agreed: NegotiatedMedia


@dataclass(frozen=True, slots=True)
class Failed:
    """The INVITE ended without an answer.

    `code` is the SIP status: the far end's, or 408 where none came, 503 where the transport
    failed, 487 where we cancelled, 488 where the answer's SDP could not be used. `q850` is the
    cause of the answer's Reason header. `rang` says that an 18x had been seen. `retry_after` is
    for how many seconds the far end wants to be left alone (§20.33), where it says so. `contacts`
    are the URIs that a 3xx names, the most wanted first (§8.1.3.4).
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
    """Seconds from the first provisional response outside 180 to 189 to this failure; None where
    there was none. An INVITE that is sent again, with credentials or a longer session, counts from
    its own first one, and from that of the INVITE before while it has none."""
    delivered: bool = False
    """Whether the connection of the INVITE broke after the far end had it: its kernel had
    acknowledged all of it, or it had sent a provisional response. Always False over UDP."""
    analytics: bool = False
    """Whether the answer's Reason header names call analytics as what refused it (ATIS-1000099)."""
    udp_untried: bool = False
    """Whether the INVITE, too long for UDP, was sent to a UDP destination by TCP and got no
    response. UDP may still work there."""


@dataclass(frozen=True, slots=True)
class Ending:
    """We have sent BYE because the session was not refreshed (RFC 4028 §10); `Ended` follows.

    Not reported if the user of the agent has hung up.
    """

    call_id: str


@dataclass(frozen=True, slots=True)
class Ended:
    """An answered call is over. By "us" it comes when our BYE's transaction has ended."""

    call_id: str
    by: By
    q850: int | None
    bye_unanswered: bool = False
    """Whether our BYE got no response."""
    ack_lost: bool = False
    """Whether the far end went on repeating its 2xx after our ACK."""
    unfollowed: bool = False
    """Whether its Contact or Record-Route named an address nearer to us than its own, so that our
    requests went to the source of its messages."""


@dataclass(frozen=True, slots=True)
class MediaChanged:
    """The far end changed the media of an answered call with a re-INVITE or UPDATE: where it goes,
    its payload types, the length of its packets, or its direction (hold)."""

    call_id: str
    agreed: NegotiatedMedia


@dataclass(frozen=True, slots=True)
class KeyedDigits:
    """The far end of an answered call keyed `digits`, of 0-9*#ABCD, and sent them by INFO."""

    call_id: str
    digits: str


@dataclass(frozen=True, slots=True)
class Incoming:
    """A new INVITE; 100 has been sent. `offer` is None where it carried no SDP.

    `number` is the user part of the Request-URI, unescaped, `from_user` that of From. `headers`
    are all of its headers, names in lower case.
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
    """An incoming call went away before our final answer: CANCEL, or it was left too long."""

    call_id: str


@dataclass(frozen=True, slots=True)
class MessageDropped:
    """A message that names a running call came from `source`, which has no part in it."""

    call_id: str
    source: Address
    is_response: bool


@dataclass(frozen=True, slots=True)
class DeliveryDoubted:
    """An ICMP error quotes a request without a response yet, sent to `destination`.

    It may be forged: a reason to ask there whether requests arrive, and none to end anything.
    """

    call_id: str
    destination: Address


@dataclass(frozen=True, slots=True)
class RequestDone:
    """A request outside any call is over: a final response, 408 for none, 503 where none could be.

    `headers` are the response's, names in lower case. `cseq` is that of the last try, challenges
    having added to it, and `from_tag` that of all: what a refresh goes on from.
    """

    call_id: str
    code: int
    reason: str
    headers: tuple[tuple[str, str], ...]
    why: Literal["response", "timeout", "transport"]
    cseq: int = 1
    from_tag: str = ""


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
