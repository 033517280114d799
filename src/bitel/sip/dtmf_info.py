"""DTMF digits in the bodies of INFO requests, in the three formats in use.

None of them is standardised:

- application/dtmf-relay (Cisco, most phones): lines `Signal=5` and `Duration=160`;
- application/dtmf: the digit alone, or a `Signal=` line as above;
- application/vnd.nortelnetworks.digits: lines `p=Digit-Collection`, `y=Digits`, `d=5`.

A signal is the digit itself, or its event code in RFC 4733 §3.2: 10 for `*`, 11 for
`#`, 12 to 15 for A to D. Lines end with CRLF or LF, with or without space around the `=`, in any
case. Durations and all other lines are ignored.
"""

from __future__ import annotations

import re

from bitel.sip.body import media_type_of
from bitel.sip.message import Message

MAX_BODY = 1024
"""Bytes of a body; a longer one is not read."""
MAX_DIGITS = 32
"""Digits of one INFO in the Nortel format; the other formats carry one digit."""
RELAY = "application/dtmf-relay"
PLAIN = "application/dtmf"
NORTEL = "application/vnd.nortelnetworks.digits"
DTMF_TYPES = (RELAY, PLAIN, NORTEL)

_EVENTS = {"10": "*", "11": "#", "12": "A", "13": "B", "14": "C", "15": "D"}
_SIGNAL = re.compile(r"^[ \t]*signal[ \t]*=[ \t]*([^\s;,]+)", re.IGNORECASE | re.MULTILINE)
_DIGITS = re.compile(
    r"^[ \t]*d[ \t]*=[ \t]*(?:digits?[ \t]*=[ \t]*)?([^\s;,]+)", re.IGNORECASE | re.MULTILINE
)
_KEYED = re.compile(r"[0-9*#A-D]+\Z")


def carries_digits(message: Message) -> bool:
    """Whether a message's body is of one of the DTMF types."""
    return bool(message.body) and media_type_of(message.header("content-type")) in DTMF_TYPES


def digits_of(message: Message) -> str:
    """The digits of a message's DTMF body, of 0-9*#ABCD; "" where they can't be read.

    Longer bodies than `MAX_BODY` bytes, and more digits than `MAX_DIGITS`, are not read.
    """
    if len(message.body) > MAX_BODY:
        return ""
    text = message.body.decode("ascii", "replace").strip().strip("\0")
    media_type = media_type_of(message.header("content-type"))
    found = (_DIGITS if media_type == NORTEL else _SIGNAL).search(text)
    if found is not None:
        written = found[1]
    elif media_type == PLAIN:
        written = text
    else:
        return ""
    if media_type == NORTEL:
        keyed, most = written.upper(), MAX_DIGITS
    else:
        # One signal is one event: "10" is `*`, and "16", a hook flash, is no digit.
        keyed, most = _EVENTS.get(written, written.upper()), 1
    return keyed if len(keyed) <= most and _KEYED.match(keyed) else ""
