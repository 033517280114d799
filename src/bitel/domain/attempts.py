"""Attempts: requests, results, and the classification of SIP responses and Q.850 causes.

`classify` decides which outcome a failure is; `retry.py` decides what follows from it. It depends
mostly on whether the phone rang:

- Refused for good: the call must not be repeated.
- The callee's own response (486, 600, 603): busy, whatever the Q.850 cause.
- Rang (an 18x came): any other failure counts as not answered, whatever the Q.850 cause. Only an
  unknown number stays that, since carriers announce it in 183 early media.
- Not rung: a Q.850 cause (ITU-T Q.850 §2.2.7) in a `Reason` header (RFC 3326) takes precedence over
  a 4xx or 5xx. Trunk trouble is uncertain if the phone may have rung: the failure came seconds
  after another provisional response, or the connection broke after the carrier had the INVITE.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

from bitel.domain.machines import MachineDetection
from bitel.domain.menus import Menu


class Outcome(enum.Enum):
    """The outcome of one attempt."""

    __hash__ = object.__hash__  # members are singletons; Enum's own __hash__ is Python code

    ANSWERED = "answered"
    BUSY = "busy"
    NO_ANSWER = "no answer"
    BAD_NUMBER = "bad number"
    REFUSED = "refused by policy"
    MEDIA_MISMATCH = "media mismatch"
    TRUNK_TROUBLE = "trunk trouble"
    """The call was not delivered; no phone can have rung."""
    RANG_THEN_FAILED = "rang, then failed"
    UNCERTAIN = "uncertain"
    """The call failed in the network, and a phone may have rung."""
    REFUSED_FOR_GOOD = "refused for good"
    """By the callee or on their behalf: the call must not be repeated."""
    NOT_PLACED = "not placed"
    """No INVITE was sent: the audio can't be read now, or the dialer failed."""
    CANCELED = "called off"
    """Ended by this service before an answer, for the client or for a shutdown."""
    INTERRUPTED = "cut off"
    """The process that made the attempt is gone, and its result is unknown."""


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

# 501, 505 and 513 (RFC 3261 §21.5): no such request will be accepted; 607 (RFC 8197): the call is
# unwanted; 608 (RFC 8688): a service rejected it on behalf of the callee.
_FOR_GOOD = frozenset({501, 505, 513, 607, 608})

_OWN_ANSWERS = frozenset({486, 600, 603})
"""Codes by which the callee, or their phone, declines."""

_UNANSWERED = frozenset({408, 480, 487})
"""Codes that mean, after an 18x, that the phone rang and was not answered."""

# RFC 3261 §8.1.3.2: an unknown code counts as the x00 of its class. After a 400 or a 3xx the same
# request would fail again. A 6xx applies to all places where the callee might be reached.
_BY_CLASS = {
    3: Outcome.REFUSED,
    4: Outcome.REFUSED,
    5: Outcome.TRUNK_TROUBLE,
    6: Outcome.REFUSED_FOR_GOOD,
}

PROGRESS_LIMIT: Final = 4.0
"""Seconds between a provisional response other than 18x and a failure, beyond which the phone may
have rung; a failure that comes sooner counts as a refusal."""


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

    Args:
        q850: the cause in its `Reason` header, if any.
        rang: whether an 18x came before.
        progress_for: seconds since another provisional response; None if there was none.
        delivered: whether the connection broke after the carrier had the INVITE.
        analytics: whether a 603 names call analytics (ATIS-1000099) as the one who rejected.
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
    """An attempt to make: the number to call and the audio to play. Its claim is durable.

    The audio is the recording, if any, then `digits`, if any, read one by one in `language`,
    `repeat_count` times, then the `parts`.
    """

    attempt_id: str
    call_id: str
    e164: str
    recording_id: str | None
    digits: str = ""
    repeat_count: int = 1
    language: str = ""
    longest_seconds: int = 0
    """Seconds after the answer at which the call is ended, unless the audio is longer; 0: the
    audio, the default hold and `HANG_UP_SECONDS`."""
    caller_id: str = ""
    """The caller id to show, in all attempts of the call; "": the dialer chooses."""
    parts: tuple[str, ...] = ()
    """Clips of a text of its own, played one after the other."""
    menu: Menu | None = None
    """What keys do; None: nothing."""
    machine_detection: MachineDetection | None = None
    """What is done about answering machines; None: nothing."""
    machine_recording_id: str | None = None
    """Played to a machine; None: what the call plays."""


class Media(NamedTuple):
    """The audio of an answered attempt, both ways.

    `sent` and `received` are RTP packets, the latter an estimate; `sent` is None if the sender
    process was lost. `digits` are DTMF from the callee (RFC 4733 or INFO), of 0-9*#ABCD. `loss` is
    the share (0 to 1) of our packets that the callee lost, `jitter_ms` their interarrival jitter,
    by its last RTCP report; None without one.
    """

    sent: int | None = 0
    received: int = 0
    digits: str = ""
    loss: float | None = None
    jitter_ms: float | None = None
    reports: tuple[str, ...] = ()
    """The words that the keys of the call's menu reported."""
    opted_out: bool = False
    """A key has put the number on the do-not-call list."""
    machine: Literal["human", "machine"] | None = None
    """Who has answered; None: it is not known."""


class Irregularity(enum.StrEnum):
    """An error in an answered attempt that did not change its outcome."""

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
    """The remote side's reason, or what failed, in a few words for the operator."""
    media: Media | None = None
    """None if nothing was played."""
    rang_at: float | None = None
    """When the first 18x came; None if none did."""
    is_pending: bool = False
    """The INVITE may still be pending: no final response came, and no CANCEL was sent."""
    irregularities: tuple[Irregularity, ...] = ()
    caller_id: str | None = None
    """The caller id of its INVITE; with the setting `privacy` only the carrier sees it. None: no
    INVITE was sent, or it was anonymous."""

    @property
    def is_billed(self) -> bool:
        """Whether it is billed as an answered call: carriers charge every 2xx.

        Includes a 2xx without usable media, but not a call that an internal error cut off.
        """
        is_answer = self.outcome in (Outcome.ANSWERED, Outcome.MEDIA_MISMATCH)
        return is_answer and self.answered_at is not None
