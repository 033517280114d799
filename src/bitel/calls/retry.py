"""What happens after an attempt: the call is final, or another attempt is due at a later time."""

from __future__ import annotations

from typing import NamedTuple

from bitel.calls.call import CallStatus
from bitel.calls.outcome import Attempted, Outcome

TROUBLE_BACKOFF_FIRST = 5.0
"""Seconds of wait after the first attempt that met trunk trouble; doubled after each further."""

TROUBLE_BACKOFF_LONGEST = 120.0
"""No wait after trunk trouble is longer than these seconds."""


class Final(NamedTuple):
    """The call is over."""

    status: CallStatus
    reason: str = ""


class Again(NamedTuple):
    """Another attempt is due at `due_at` (Unix seconds)."""

    due_at: float
    spends_retry: bool
    trouble: int
    """How many attempts in a row have met trunk trouble, or could not be placed."""


Verdict = Final | Again


class RetryRule(NamedTuple):
    """What a call still allows. `retries_left` 0 to 10, `retry_interval` in seconds."""

    retries_left: int
    retry_interval: float
    expires_at: float
    trouble: int = 0


_ENDS_AS = {
    Outcome.ANSWERED: CallStatus.NORMAL,
    Outcome.BUSY: CallStatus.USER_BUSY,
    Outcome.NO_ANSWER: CallStatus.NO_ANSWER,
    Outcome.BAD_NUMBER: CallStatus.ERROR,
    Outcome.REFUSED: CallStatus.ERROR,
    Outcome.MEDIA_MISMATCH: CallStatus.ERROR,
    Outcome.TRUNK_TROUBLE: CallStatus.EXPIRED,
    Outcome.NOT_PLACED: CallStatus.EXPIRED,
    Outcome.CALLED_OFF: CallStatus.CANCELED,
    Outcome.CUT_OFF: CallStatus.UNKNOWN,
}

_RETRIED = frozenset({Outcome.BUSY, Outcome.NO_ANSWER})
_BACKED_OFF = frozenset({Outcome.TRUNK_TROUBLE, Outcome.NOT_PLACED})


def decide(rule: RetryRule, attempted: Attempted) -> Verdict:
    """What follows from `attempted`, under `rule`.

    A retry that could only start after `expires_at` is not waited for: the call ends at once with
    what its last attempt met. Trunk trouble, or a recording that can't be had, is no answer from
    anybody, so it ends as EXPIRED.
    """
    outcome = attempted.outcome
    if outcome in _RETRIED and rule.retries_left > 0:
        due = attempted.ended_at + rule.retry_interval
        if due < rule.expires_at:
            return Again(due_at=due, spends_retry=True, trouble=0)
    if outcome in _BACKED_OFF:
        due = attempted.ended_at + trouble_backoff(rule.trouble)
        if due < rule.expires_at:
            return Again(due_at=due, spends_retry=False, trouble=rule.trouble + 1)
    status = _ENDS_AS[outcome]
    reason = (attempted.detail or outcome.value) if status is CallStatus.ERROR else ""
    return Final(status, reason)


def trouble_backoff(trouble: int) -> float:
    """Seconds to wait after trunk trouble that came after `trouble` others in a row: 5 to 120."""
    return min(TROUBLE_BACKOFF_FIRST * 2.0 ** min(trouble, 10), TROUBLE_BACKOFF_LONGEST)
