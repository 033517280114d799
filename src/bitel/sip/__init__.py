"""A SIP user agent (RFC 3261) without I/O: the caller moves its datagrams and its clock.

A datagram that is passed to `UserAgent.receive_datagram` is filtered by its source, parsed
(`message`) and given to the transaction layer (`transaction`), which takes repeated requests and
matches responses to our requests. It runs the state tables of RFC 3261 §17 (`transaction_tables`)
and owns all timers and the outgoing queue. A response goes on to the user of its transaction, a new
request by Call-ID and tags (`call_table`) to a call. A call is an `InviteClient` or `InviteServer`
until the INVITE is answered, then an `InviteDialog` until its BYE is. `Dialog` knows where requests
go and in what order; `session_timer` refreshes it. Calls report events, which
`UserAgent.next_event` hands out. Modules import only those below them: user agent, calls, dialog,
transaction layer, messages and headers, grammar.
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
