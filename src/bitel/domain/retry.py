"""Decides what follows an attempt: the call is final, or another attempt is due later."""

from __future__ import annotations

from typing import Final, NamedTuple

from bitel.domain.attempts import AttemptResult, Outcome
from bitel.domain.calls import CallStatus

MOST_WAITS: Final = 10
"""Waits of a call, of both kinds together."""

TROUBLE_BACKOFF_FIRST = 5.0
"""Seconds of wait after the first trunk trouble; doubled after each further one."""

TROUBLE_BACKOFF_LONGEST = 120.0
"""Maximum seconds of wait after trunk trouble."""


class Finish(NamedTuple):
    """The call is over."""

    status: CallStatus
    reason: str = ""


class RetryWaits(NamedTuple):
    """The waits that a call has left, in seconds, by the kind of outcome that they follow."""

    busy: tuple[int, ...] = ()
    no_answer: tuple[int, ...] = ()

    def __str__(self) -> str:
        """As it is stored, such as `60,300;600`."""
        return ";".join(",".join(map(str, waits)) for waits in self)

    @classmethod
    def parse(cls, text: str) -> RetryWaits:
        """Parse the result of `str`."""
        busy, no_answer = (
            tuple(map(int, filter(None, waits.split(",")))) for waits in text.split(";")
        )
        return cls(busy, no_answer)


class RetryAt(NamedTuple):
    """Another attempt is due at `due_at` (Unix seconds)."""

    due_at: float
    spends_retry: bool
    trouble: int
    """Consecutive attempts with trunk trouble, or that could not be placed."""
    uncertain: int = 0
    """Redials after uncertain failures, this one included."""
    waits: RetryWaits | None = None
    """Those that are left; None: as before."""


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
    waits: RetryWaits | None = None
    """Waits for each outcome, in place of the retries and their interval; None: there are none."""

    def spend(self, outcome: Outcome) -> tuple[float, RetryWaits | None] | None:
        """Seconds until the redial after an outcome, and the waits left then; None: no redial."""
        if self.waits is None:
            return (self.retry_interval, None) if self.retries_left > 0 else None
        busy, no_answer = self.waits
        if outcome is Outcome.BUSY:
            return (busy[0], RetryWaits(busy[1:], no_answer)) if busy else None
        return (no_answer[0], RetryWaits(busy, no_answer[1:])) if no_answer else None


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
        again = _redial(rule, result)
        if again is not None and again.due_at < rule.expires_at:
            return again
    if outcome in _BACKED_OFF:
        due = result.ended_at + trouble_backoff(rule.trouble)
        if due < rule.expires_at:
            return RetryAt(due, False, rule.trouble + 1, rule.uncertain)
    status = _ENDS_AS[outcome]
    reason = (result.detail or outcome.value) if status is CallStatus.ERROR else ""
    return Finish(status, reason)


def _redial(rule: RetryRule, result: AttemptResult) -> RetryAt | None:
    """Another attempt; None if neither a retry nor an uncertain redial is left."""
    again = rule.spend(result.outcome)
    if result.outcome is Outcome.UNCERTAIN and rule.uncertain < rule.uncertain_redials:
        wait = rule.retry_interval if again is None else again[0]
        return RetryAt(_due(rule, result, wait), False, 0, rule.uncertain + 1)
    if again is None:
        return None
    wait, left = again
    spends_retry = left is None
    return RetryAt(_due(rule, result, wait), spends_retry, 0, rule.uncertain, left)


def _due(rule: RetryRule, result: AttemptResult, wait: float) -> float:
    due = result.ended_at + wait
    # The old INVITE may still ring; two must not ring at once.
    return max(due, result.started_at + rule.longest_ring) if result.is_pending else due


def trouble_backoff(trouble: int) -> float:
    """Seconds to wait after trunk trouble that followed `trouble` others in a row: 5 to 120."""
    return min(TROUBLE_BACKOFF_FIRST * 2.0 ** min(trouble, 10), TROUBLE_BACKOFF_LONGEST)
