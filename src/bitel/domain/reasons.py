"""Reasons in words: why an attempt or a call ended as it did, for clients and their customers."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from bitel.domain.attempts import Outcome
from bitel.domain.calls import CallStatus

_BY_OUTCOME: Final[Mapping[Outcome, str]] = MappingProxyType(
    {
        Outcome.ANSWERED: "answered",
        Outcome.BUSY: "busy",
        Outcome.NO_ANSWER: "not answered",
        Outcome.BAD_NUMBER: "the number does not exist",
        Outcome.REFUSED: "refused by the carrier",
        Outcome.MEDIA_MISMATCH: "no audio format in common",
        Outcome.TRUNK_TROUBLE: "the carrier could not deliver the call",
        Outcome.RANG_THEN_FAILED: "rang, then failed in the network",
        Outcome.UNCERTAIN: "failed in the network; the phone may have rung",
        Outcome.REFUSED_FOR_GOOD: "refused for good",
        Outcome.NOT_PLACED: "not dialled, since the service could not prepare the call",
        Outcome.CANCELED: "called off",
        Outcome.INTERRUPTED: "interrupted, since the service stopped during the call",
    }
)
_BY_CODE: Final[Mapping[tuple[Outcome, int], str]] = MappingProxyType(
    {
        (Outcome.BUSY, 603): "rejected by the callee",
        (Outcome.BAD_NUMBER, 484): "the number is incomplete",
        (Outcome.BAD_NUMBER, 410): "the number is not in use any more",
        (Outcome.REFUSED, 401): "the carrier did not accept the credentials",
        (Outcome.REFUSED, 402): "the carrier asks for payment",
        (Outcome.REFUSED, 407): "the carrier did not accept the credentials",
        (Outcome.REFUSED_FOR_GOOD, 603): "rejected by a service of the callee's carrier",
        (Outcome.REFUSED_FOR_GOOD, 607): "the callee rejects such calls",
        (Outcome.REFUSED_FOR_GOOD, 608): "rejected by a service of the callee's carrier",
    }
)
_BY_CAUSE: Final[Mapping[tuple[Outcome, int], str]] = MappingProxyType(
    {
        (Outcome.BUSY, 21): "rejected by the callee",
        (Outcome.NO_ANSWER, 18): "not reachable",
        (Outcome.NO_ANSWER, 20): "switched off or out of reach",
        (Outcome.BAD_NUMBER, 22): "the number has changed",
        (Outcome.BAD_NUMBER, 28): "the number is incomplete",
    }
)
_BY_STATUS: Final[Mapping[CallStatus, str]] = MappingProxyType(
    {
        CallStatus.CANCELED: "called off by the client",
        CallStatus.EXPIRED: "its time was over before it could be placed",
        CallStatus.UNKNOWN: "interrupted, so that it is not known what was heard",
    }
)


def attempt_reason(outcome: Outcome, sip_code: int | None, q850: int | None) -> str:
    """Why an attempt ended, such as `busy (SIP 486, cause 17)`.

    `q850` is the cause of ITU-T Q.850 that the carrier gave. SIP 200 and cause 16, the normal
    ones, are left out.
    """
    # The carrier's cause decided only where it fits the outcome.
    words = None
    if q850 is not None:
        words = _BY_CAUSE.get((outcome, q850))
    if words is None and sip_code is not None:
        words = _BY_CODE.get((outcome, sip_code))
    numbers = []
    if sip_code is not None and sip_code // 100 != 2:
        numbers.append(f"SIP {sip_code}")
    if q850 is not None and q850 != 16:
        numbers.append(f"cause {q850}")
    shown = f" ({', '.join(numbers)})" if numbers else ""
    return (words or _BY_OUTCOME[outcome]) + shown


def call_reason(status: CallStatus, reason: str, of_last_attempt: str | None) -> str | None:
    """Why a call has its status; None while nothing has happened.

    Args:
        reason: what was stored with the call, mostly empty.
        of_last_attempt: the reason of its last finished attempt.
    """
    if reason:
        return reason
    return _BY_STATUS.get(status) or of_last_attempt
