"""Decides what follows an attempt: the call is final, or another attempt is due later."""

from __future__ import annotations

from typing import NamedTuple

from bitel.domain.attempts import AttemptResult, Outcome
from bitel.domain.calls import CallStatus

TROUBLE_BACKOFF_FIRST = 5.0
"""Seconds of wait after the first trunk trouble; doubled after each further one."""

TROUBLE_BACKOFF_LONGEST = 120.0
"""Maximum seconds of wait after trunk trouble."""


class Finish(NamedTuple):
    """The call is over."""

    status: CallStatus
    reason: str = ""


class RetryAt(NamedTuple):
    """Another attempt is due at `due_at` (Unix seconds)."""

    due_at: float
    spends_retry: bool
    trouble: int
    """Consecutive attempts with trunk trouble, or that could not be placed."""
    uncertain: int = 0
    """Redials after uncertain failures, this one included."""


class Requeue(NamedTuple):
    """The service gave the attempt up: its call is due again at `due_at`, with the same retries."""

    due_at: float


RetryDecision = Finish | RetryAt | Requeue


class RetryRule(NamedTuple):
    """The retries that a call has left. `retries_left` is 0 to 10, `retry_interval` in seconds."""

    retries_left: int
    retry_interval: float
    expires_at: float
    trouble: int = 0
    uncertain: int = 0
    """Redials after uncertain failures that it has had without spending a retry."""
    uncertain_redials: int = 1
    """How many of those it may have; further ones spend retries."""
    longest_ring: float = 0.0
    """Seconds from the start of an attempt for which its INVITE may ring a phone, if pending."""


_ENDS_AS = {
    Outcome.ANSWERED: CallStatus.NORMAL,
    Outcome.BUSY: CallStatus.USER_BUSY,
    Outcome.NO_ANSWER: CallStatus.NO_ANSWER,
    Outcome.BAD_NUMBER: CallStatus.ERROR,
    Outcome.REFUSED: CallStatus.ERROR,
    Outcome.MEDIA_MISMATCH: CallStatus.ERROR,
    Outcome.TRUNK_TROUBLE: CallStatus.EXPIRED,
    Outcome.RANG_THEN_FAILED: CallStatus.NO_ANSWER,
    Outcome.UNCERTAIN: CallStatus.NO_ANSWER,
    Outcome.REFUSED_FOR_GOOD: CallStatus.ERROR,
    Outcome.NOT_PLACED: CallStatus.EXPIRED,
    Outcome.CANCELED: CallStatus.CANCELED,
    Outcome.INTERRUPTED: CallStatus.UNKNOWN,
}

_RETRIED = frozenset({Outcome.BUSY, Outcome.NO_ANSWER, Outcome.RANG_THEN_FAILED, Outcome.UNCERTAIN})
"""Outcomes in which a phone rang, or may have rung."""
_BACKED_OFF = frozenset({Outcome.TRUNK_TROUBLE, Outcome.NOT_PLACED})
"""Outcomes in which no phone can have rung, and a later attempt may succeed."""


def decide(rule: RetryRule, result: AttemptResult) -> Finish | RetryAt:
    """The decision after `result`.

    The call ends at once with the result of its last attempt if a redial could only start at or
    after `expires_at`, or if no retry and no uncertain redial is left. Trunk trouble and unreadable
    recordings end it as EXPIRED.
    """
    outcome = result.outcome
    if outcome in _RETRIED:
        due = result.ended_at + rule.retry_interval
        if result.is_pending:
            # The old INVITE may still ring; two must not ring at once.
            due = max(due, result.started_at + rule.longest_ring)
        again = _redial(rule, outcome, due) if due < rule.expires_at else None
        if again is not None:
            return again
    if outcome in _BACKED_OFF:
        due = result.ended_at + trouble_backoff(rule.trouble)
        if due < rule.expires_at:
            return RetryAt(due, False, rule.trouble + 1, rule.uncertain)
    status = _ENDS_AS[outcome]
    reason = (result.detail or outcome.value) if status is CallStatus.ERROR else ""
    return Finish(status, reason)


def _redial(rule: RetryRule, outcome: Outcome, due: float) -> RetryAt | None:
    """Another attempt at `due`; None if neither a retry nor an uncertain redial is left."""
    if outcome is Outcome.UNCERTAIN and rule.uncertain < rule.uncertain_redials:
        return RetryAt(due, spends_retry=False, trouble=0, uncertain=rule.uncertain + 1)
    if rule.retries_left > 0:
        return RetryAt(due, spends_retry=True, trouble=0, uncertain=rule.uncertain)
    return None


def trouble_backoff(trouble: int) -> float:
    """Seconds to wait after trunk trouble that followed `trouble` others in a row: 5 to 120."""
    return min(TROUBLE_BACKOFF_FIRST * 2.0 ** min(trouble, 10), TROUBLE_BACKOFF_LONGEST)
