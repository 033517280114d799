"""What a finished attempt means: SIP answers and Q.850 causes, sorted into outcomes.

A carrier says the same thing in many ways. The tables here are the one place that decides which
of seven outcomes an answer stands for; `retry.py` decides what follows from it. A Q.850 cause
(ITU-T Q.850 §2.2.7), carried in a `Reason` header (RFC 3326), decides before the SIP code.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple


class Outcome(enum.Enum):
    """What became of one attempt."""

    __hash__ = object.__hash__  # there is one of each; Enum's own hashes the name, in Python

    ANSWERED = "answered"
    BUSY = "busy"
    NO_ANSWER = "no answer"
    BAD_NUMBER = "bad number"
    REFUSED = "refused by policy"
    MEDIA_MISMATCH = "media mismatch"
    TRUNK_TROUBLE = "trunk trouble"
    CALLED_OFF = "called off"
    """We ended the attempt ourselves, for the client or for a shutdown, before an answer."""
    CUT_OFF = "cut off"
    """The process that made the attempt is gone, and with it the attempt's fate."""


_SIP: Mapping[Outcome, frozenset[int]] = MappingProxyType(
    {
        Outcome.BUSY: frozenset({486, 600, 603}),
        Outcome.NO_ANSWER: frozenset({480, 487}),
        Outcome.BAD_NUMBER: frozenset({404, 410, 416, 484, 604}),
        Outcome.REFUSED: frozenset({401, 402, 403, 407}),
        Outcome.MEDIA_MISMATCH: frozenset({415, 488, 606}),
        Outcome.TRUNK_TROUBLE: frozenset({408, 500, 502, 503, 504}),
    }
)

_Q850: Mapping[Outcome, frozenset[int]] = MappingProxyType(
    {
        Outcome.BUSY: frozenset({17, 21}),
        Outcome.NO_ANSWER: frozenset({18, 19, 20, 31}),
        Outcome.BAD_NUMBER: frozenset({1, 2, 3, 22, 28}),
        Outcome.REFUSED: frozenset({50, 52, 57, 87}),
        Outcome.MEDIA_MISMATCH: frozenset({65, 79, 88}),
        Outcome.TRUNK_TROUBLE: frozenset({27, 34, 38, 41, 42, 44, 47, 58, 102}),
    }
)

_BY_SIP = {code: outcome for outcome, codes in _SIP.items() for code in codes}
_BY_Q850 = {cause: outcome for outcome, causes in _Q850.items() for cause in causes}

# RFC 3261 §8.1.3.2: an unknown code counts as the x00 of its class. A bare 400 means that the
# carrier would not have this request from us, a 3xx that it won't place the call itself, and a
# 6xx that nobody anywhere will: trying the same again helps none of them.
_BY_CLASS = {
    3: Outcome.REFUSED,
    4: Outcome.REFUSED,
    5: Outcome.TRUNK_TROUBLE,
    6: Outcome.BUSY,
}


def classify(code: int, q850: int | None, rang: bool) -> Outcome:
    """The outcome of an INVITE that ended with final response `code` (300 to 699).

    `q850` is the cause in its `Reason` header, if there was one, and `rang` whether a 18x came
    before it. A 408 after ringing is a person who did not pick up; without, a trunk in trouble.
    A cause that no table names leaves the decision to the code.
    """
    if q850 is not None and q850 in _BY_Q850:
        return _BY_Q850[q850]
    if code == 408 and rang:
        return Outcome.NO_ANSWER
    if code in _BY_SIP:
        return _BY_SIP[code]
    return _BY_CLASS.get(code // 100, Outcome.TRUNK_TROUBLE)


class Media(NamedTuple):
    """The audio of an answered attempt, both ways.

    `sent` and `received` are RTP packets, the latter an estimate. `digits` were keyed by the callee
    (RFC 4733), of 0-9*#ABCD. `loss` is the share, 0 to 1, of our packets that the callee missed,
    and `jitter_ms` how unevenly they came to it, by its last RTCP report; None where it sent none.
    """

    sent: int = 0
    received: int = 0
    digits: str = ""
    loss: float | None = None
    jitter_ms: float | None = None


class Attempted(NamedTuple):
    """A finished attempt. Times are Unix seconds; `answered_at` is None if nobody answered."""

    outcome: Outcome
    started_at: float
    ended_at: float
    answered_at: float | None = None
    sip_code: int | None = None
    q850: int | None = None
    ended_by: Literal["", "far", "us"] = ""
    detail: str = ""
    """What the far end said, or what failed, in a few words for the operator."""
    media: Media | None = None
    """None where nothing was played."""
    rang_at: float | None = None
    """When the first 18x came; None where none came."""
