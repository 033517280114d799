"""A SIP user agent (RFC 3261) without I/O.

`UserAgent` filters received messages by source (`source_filter`), parses them (`message`), and
passes them to the `TransactionLayer` (`transaction`), which runs the state tables of
`transaction_tables`. A new request goes to its call: an `InviteClient` or `InviteServer` up to the
answer, then an `InviteDialog`. A response goes to the user of its transaction: one of these, an
`EarlyDialog`, a `SessionTimer`, or a `RequestClient` for requests outside of dialogs. They use the
`Dialog` for routing, and the `Negotiation` (`sdp`) for offer and answer.

Messages, timers and events are queued: `bitel.sip_transport` sends, runs and dispatches them.
"""

from bitel.sip.auth import Credentials
from bitel.sip.config import AgentConfig
from bitel.sip.events import (
    Answered,
    By,
    Canceled,
    Confirmed,
    DeliveryDoubted,
    Ended,
    Ending,
    Event,
    Failed,
    Incoming,
    KeyedDigits,
    MediaChanged,
    MessageDropped,
    Provisional,
    RequestDone,
    Why,
)
from bitel.sip.grammar import Address, Transport
from bitel.sip.invite_client import Invitation
from bitel.sip.request_client import OutgoingRequest
from bitel.sip.sdp import (
    Codec,
    NegotiatedMedia,
    NoCommonCodec,
    SdpError,
    SessionDescription,
    check_answer,
    make_answer,
    make_offer,
)
from bitel.sip.user_agent import AgentCounts, UserAgent

__all__ = [
    "Address",
    "AgentConfig",
    "AgentCounts",
    "Answered",
    "By",
    "Canceled",
    "Codec",
    "Confirmed",
    "Credentials",
    "DeliveryDoubted",
    "Ended",
    "Ending",
    "Event",
    "Failed",
    "Incoming",
    "Invitation",
    "KeyedDigits",
    "MediaChanged",
    "MessageDropped",
    "NegotiatedMedia",
    "NoCommonCodec",
    "OutgoingRequest",
    "Provisional",
    "RequestDone",
    "SdpError",
    "SessionDescription",
    "Transport",
    "UserAgent",
    "Why",
    "check_answer",
    "make_answer",
    "make_offer",
]
