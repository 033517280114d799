"""What a finished attempt means: SIP responses and Q.850 causes, sorted into outcomes.

A carrier says the same thing in many ways. `classify` is the one place that decides which outcome
a failure is; `retry.py` decides what follows from it. What matters most is whether the phone rang:

- Refused for good: this call must not be made again, whatever came before.
- The person's own answer (486, 600, 603): busy, whatever Q.850 cause comes with it.
- Rang (an 18x came): a person was disturbed, so any other failure counts as an attempt that was
  not answered, and no Q.850 cause changes that. Only "there is no such number" stays what it is,
  since carriers announce that in 183 early media.
- Not rung: a Q.850 cause (ITU-T Q.850 §2.2.7) in a `Reason` header (RFC 3326) decides before a 4xx
  or 5xx, which are the network's. Trunk trouble is uncertain where the phone may have rung all the
  same: another provisional response came, and the failure only seconds later; or the connection
  broke when the carrier had the INVITE.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, NamedTuple


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
    """The call was not delivered: no phone can have rung."""
    RANG_THEN_FAILED = "rang, then failed"
    UNCERTAIN = "uncertain"
    """The call failed in the network, and a phone may have rung."""
    REFUSED_FOR_GOOD = "refused for good"
    """By the person called or for them: calling again is not wanted."""
    NOT_PLACED = "not placed"
    """No INVITE was sent: what the call plays can't be had now, or the dialer itself failed."""
    CANCELED = "called off"
    """We ended the attempt ourselves, for the client or for a shutdown, before an answer."""
    INTERRUPTED = "cut off"
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

# 501, 505 and 513 (RFC 3261 §21.5) say that no such request will be accepted; 607 (RFC 8197) that
# the call is unwanted, and 608 (RFC 8688) that a service rejected it for the person called.
_FOR_GOOD = frozenset({501, 505, 513, 607, 608})

_OWN_ANSWERS = frozenset({486, 600, 603})
"""Codes by which the person called, or their phone, declines."""

_UNANSWERED = frozenset({408, 480, 487})
"""Codes that mean, after an 18x, that the phone rang and was not picked up."""

# RFC 3261 §8.1.3.2: an unknown code counts as the x00 of its class. A bare 400 means that the
# carrier would not have this request from us, a 3xx that it won't place the call itself: trying
# the same again helps neither. A 6xx decides for every place where the person might be reached.
_BY_CLASS = {
    3: Outcome.REFUSED,
    4: Outcome.REFUSED,
    5: Outcome.TRUNK_TROUBLE,
    6: Outcome.REFUSED_FOR_GOOD,
}

PROGRESS_LIMIT: Final = 4.0
"""Seconds. A carrier that fails a call later than this after a provisional response other than 18x
may have rung the phone; one that fails it sooner is taken to have refused it."""


def classify(
    code: int,
    q850: int | None,
    *,
    rang: bool = False,
    progress_for: float | None = None,
    delivered: bool = False,
    analytics: bool = False,
) -> Outcome:
    """The outcome of an INVITE that ended with final response `code` (300 to 699).

    `q850` is the cause in its `Reason` header, if there was one, and `rang` whether an 18x came
    before it. `progress_for` is for how many seconds another provisional response had been there,
    None where none came; `delivered` says that the connection broke after the carrier had the
    INVITE; `analytics` that a 603 names call analytics as its reason (ATIS-1000099), and not the
    person called.
    """
    if code in _FOR_GOOD or (code == 603 and analytics):
        return Outcome.REFUSED_FOR_GOOD
    if code in _OWN_ANSWERS:
        return Outcome.BUSY
    by_code = _BY_SIP.get(code) or _BY_CLASS.get(code // 100, Outcome.TRUNK_TROUBLE)
    if by_code is Outcome.REFUSED_FOR_GOOD:
        return by_code
    if rang:
        if code in _UNANSWERED:
            return Outcome.NO_ANSWER
        return by_code if by_code is Outcome.BAD_NUMBER else Outcome.RANG_THEN_FAILED
    outcome: Outcome = by_code
    if q850 is not None and code // 100 in (4, 5):
        outcome = _BY_Q850.get(q850, by_code)
    if outcome is Outcome.TRUNK_TROUBLE and (
        delivered or (progress_for is not None and progress_for > PROGRESS_LIMIT)
    ):
        return Outcome.UNCERTAIN
    return outcome


@dataclass(frozen=True, slots=True)
class DialRequest:
    """One attempt to make: who to call, and what to play. The claim behind it is durable.

    What is played is the recording, if there is one, then `digits`, if there are any, read one by
    one in `language`, `repeat_count` times.
    """

    attempt_id: str
    call_id: str
    e164: str
    recording_id: str | None
    digits: str = ""
    repeat_count: int = 1
    language: str = ""
    longest_seconds: int = 0
    """Seconds after the answer at which the call is ended, unless what is played takes longer; 0:
    what is played, the usual hold and `HANG_UP_SECONDS`."""


class Media(NamedTuple):
    """The audio of an answered attempt, both ways.

    `sent` and `received` are RTP packets, the latter an estimate. `sent` None: they could not be
    counted, since the process that sent them was lost. `digits` were keyed by the callee
    (RFC 4733, or INFO), of 0-9*#ABCD. `loss` is the share, 0 to 1, of our packets that the callee
    missed, and `jitter_ms` how unevenly they came to it, by its last RTCP report; None where it
    sent none.
    """

    sent: int | None = 0
    received: int = 0
    digits: str = ""
    loss: float | None = None
    jitter_ms: float | None = None


class Irregularity(enum.StrEnum):
    """What went wrong in an answered attempt without changing its outcome."""

    BYE_UNANSWERED = "bye_unanswered"
    ACK_LOST = "ack_lost"
    MEDIA_FROM_ELSEWHERE = "media_from_elsewhere"
    MEDIA_STOPPED = "media_stopped"
    ADDRESS_NOT_FOLLOWED = "address_not_followed"


IRREGULARITIES: Mapping[Irregularity, str] = MappingProxyType(
    {
        Irregularity.BYE_UNANSWERED: "our BYE was not answered",
        Irregularity.ACK_LOST: "the 2xx was repeated after our ACK",
        Irregularity.MEDIA_FROM_ELSEWHERE: "media came from an address that was not agreed on",
        Irregularity.ADDRESS_NOT_FOLLOWED: "an address that the carrier named was not followed, "
        "as it leads into a private network or to this machine",
        Irregularity.MEDIA_STOPPED: "media had stopped coming before the call ended",
    }
)
"""Texts for the `detail` of an attempt."""


class AttemptResult(NamedTuple):
    """A finished attempt. Times are Unix seconds; `answered_at` is None without an answer."""

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
    is_pending: bool = False
    """The far end may still be at the INVITE: it sent no final response, and was sent no CANCEL."""
    irregularities: tuple[Irregularity, ...] = ()

    @property
    def is_billed(self) -> bool:
        """Whether it costs what an answered call costs: the carrier charges every 2xx.

        So it is where the 2xx leaves us nothing to play to, and not where a fault of ours cut the
        call off.
        """
        is_answer = self.outcome in (Outcome.ANSWERED, Outcome.MEDIA_MISMATCH)
        return is_answer and self.answered_at is not None
