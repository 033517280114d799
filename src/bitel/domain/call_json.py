"""JSON of calls, as clients see them in answers and webhooks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from bitel.domain.attempts import Outcome
from bitel.domain.calls import Call
from bitel.domain.reasons import attempt_reason, call_reason

DateOf = Callable[[float], float]
"""Gives the date that clients see for a stored time, both in Unix seconds."""

_SIDES = {"far": "callee", "us": "service"}


@dataclass(frozen=True, slots=True)
class AttemptDetails:
    """One attempt of a call. Times are Unix seconds, None when it has not happened."""

    number: int
    """1 is the first."""
    started_at: float
    rang_at: float | None
    answered_at: float | None
    ended_at: float | None
    outcome: Outcome | None
    """None while it is under way."""
    sip_code: int | None
    q850: int | None
    ended_by: str
    """far, us or empty."""
    caller_id: str | None
    keys: str
    """The keys that were pressed, of 0-9*#ABCD."""
    loss: float | None
    """The share, 0 to 1, of our packets that the callee lost; None without a report of theirs."""
    jitter_ms: float | None
    machine: str | None
    """human or machine; None: not detected."""
    reports: Sequence[str] = ()
    """The words that the keys of the call's menu reported."""

    @property
    def reason(self) -> str | None:
        """Why it ended, in words; None while it is under way."""
        if self.outcome is None:
            return None
        return attempt_reason(self.outcome, self.sip_code, self.q850)


@dataclass(frozen=True, slots=True)
class CallDetails:
    """A call and its attempts, the first one first."""

    call: Call
    reference: str | None
    attempts: Sequence[AttemptDetails]

    @property
    def reason(self) -> str | None:
        """Why it has its status, in words; None while nothing has happened."""
        last = next((each.reason for each in reversed(self.attempts) if each.reason), None)
        return call_reason(self.call.status, self.call.reason, last)


def call_answer(call: Call, date: DateOf) -> dict[str, Any]:
    """The eight fields of a call."""
    return {
        "id": call.id,
        "phoneNumber": call.phone_number,
        "status": call.status.name,
        "statusCode": int(call.status),
        "billSec": call.bill_seconds,
        "requestDate": int(date(call.requested_at)),
        "executionDate": int(date(call.executed_at)),
        "price": balance_change(call.price),
    }


def call_details_answer(details: CallDetails, date: DateOf) -> dict[str, Any]:
    """A call with its attempts."""
    attempts = details.attempts
    return {
        **call_answer(details.call, date),
        "campaignId": details.call.campaign_id,
        "reference": details.reference,
        "reason": details.reason,
        "machine": next((each.machine for each in reversed(attempts) if each.machine), None),
        "keys": "".join(each.keys for each in attempts),
        "reports": [word for each in attempts for word in each.reports],
        "attempts": [attempt_answer(each, date) for each in attempts],
    }


def attempt_answer(attempt: AttemptDetails, date: DateOf) -> dict[str, Any]:
    """One attempt of a call."""

    def seconds(at: float | None) -> int:
        return 0 if at is None else int(date(at))

    return {
        "number": attempt.number,
        "startDate": seconds(attempt.started_at),
        "ringDate": seconds(attempt.rang_at),
        "answerDate": seconds(attempt.answered_at),
        "endDate": seconds(attempt.ended_at),
        "outcome": None if attempt.outcome is None else attempt.outcome.name,
        "sipCode": attempt.sip_code,
        "cause": attempt.q850,
        "reason": attempt.reason,
        "endedBy": _SIDES.get(attempt.ended_by),
        "callerId": attempt.caller_id,
        "keys": attempt.keys,
        "reports": list(attempt.reports),
        "lossPercent": None if attempt.loss is None else round(100 * attempt.loss, 2),
        "jitterMs": None if attempt.jitter_ms is None else round(attempt.jitter_ms, 2),
    }


def balance_change(cost: Decimal) -> Decimal:
    """The change of a balance by a cost of zero or more: its negative, and 0 instead of -0."""
    return -cost if cost else Decimal(0)
