"""A SIP user agent (RFC 3261) without I/O: the caller moves its datagrams and its clock."""

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
