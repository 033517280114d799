"""When a call is tried again, and what it ends as."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bitel.domain.attempts import AttemptResult, Outcome
from bitel.domain.calls import CallStatus
from bitel.domain.retry import Finish, RetryAt, RetryRule, RetryWaits, decide, trouble_backoff

NOW = 1_700_000_000.0
waits = st.lists(st.integers(5, 86_400), max_size=5).map(tuple)
rules = st.builds(
    RetryRule,
    waits=st.none() | st.builds(RetryWaits, waits, waits),
    retries_left=st.integers(0, 10),
    retry_interval=st.integers(5, 86_400).map(float),
    expires_at=st.floats(NOW - 1000, NOW + 100_000),
    trouble=st.integers(0, 5000),
    uncertain=st.integers(0, 3),
    uncertain_redials=st.integers(0, 3),
)
outcomes = st.sampled_from(Outcome)


def result(outcome: Outcome, detail: str = "") -> AttemptResult:
    return AttemptResult(outcome, started_at=NOW - 30, ended_at=NOW, detail=detail)


def rule(retries_left: int = 1, expires_in: float = 14_400, trouble: int = 0) -> RetryRule:
    return RetryRule(retries_left, 60.0, NOW + expires_in, trouble)


@pytest.mark.parametrize("outcome", [Outcome.BUSY, Outcome.NO_ANSWER, Outcome.RANG_THEN_FAILED])
def test_busy_and_no_answer_are_retried_while_retries_are_left(outcome: Outcome) -> None:
    assert decide(rule(1), result(outcome)) == RetryAt(NOW + 60, spends_retry=True, trouble=0)
    final = decide(rule(0), result(outcome))
    assert final == Finish({Outcome.BUSY: CallStatus.USER_BUSY}.get(outcome, CallStatus.NO_ANSWER))


def test_an_uncertain_failure_is_redialled_once_beyond_the_retries() -> None:
    uncertain = result(Outcome.UNCERTAIN)
    met = rule(1)
    first = decide(met, uncertain)
    assert first == RetryAt(NOW + 60, spends_retry=False, trouble=0, uncertain=1)
    second = decide(met._replace(uncertain=1), uncertain)
    assert second == RetryAt(NOW + 60, spends_retry=True, trouble=0, uncertain=1)
    assert decide(met._replace(uncertain=1, retries_left=0), uncertain) == Finish(
        CallStatus.NO_ANSWER
    )


def test_uncertain_redials_can_be_turned_off() -> None:
    met = rule(0)._replace(uncertain_redials=0)
    assert decide(met, result(Outcome.UNCERTAIN)) == Finish(CallStatus.NO_ANSWER)


def test_an_uncertain_failure_does_not_end_as_expired() -> None:
    met = rule(3, expires_in=60)
    assert decide(met, result(Outcome.UNCERTAIN)) == Finish(CallStatus.NO_ANSWER)


def test_busy_between_uncertain_failures_gives_no_further_redial() -> None:
    decision = decide(rule(2)._replace(uncertain=1), result(Outcome.BUSY))
    assert isinstance(decision, RetryAt)
    assert decision.uncertain == 1


@pytest.mark.parametrize(
    "outcome",
    [
        Outcome.BAD_NUMBER,
        Outcome.REFUSED,
        Outcome.MEDIA_MISMATCH,
        Outcome.REFUSED_FOR_GOOD,
    ],
)
def test_what_no_retry_helps_is_an_error_at_once(outcome: Outcome) -> None:
    assert decide(rule(10), result(outcome)) == Finish(CallStatus.ERROR, outcome.value)
    assert decide(rule(10), result(outcome, "404 Nobody")) == Finish(CallStatus.ERROR, "404 Nobody")


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (Outcome.ANSWERED, CallStatus.NORMAL),
        (Outcome.CANCELED, CallStatus.CANCELED),
        (Outcome.INTERRUPTED, CallStatus.UNKNOWN),
    ],
)
def test_what_ends_a_call_whatever_its_rule(outcome: Outcome, status: CallStatus) -> None:
    assert decide(rule(10), result(outcome, "anything")) == Finish(status)


@pytest.mark.parametrize("outcome", [Outcome.TRUNK_TROUBLE, Outcome.NOT_PLACED])
def test_trunk_trouble_waits_longer_each_time_and_ends_as_expired(outcome: Outcome) -> None:
    waits = []
    for trouble in range(7):
        decision = decide(rule(trouble=trouble), result(outcome))
        assert isinstance(decision, RetryAt)
        assert not decision.spends_retry
        assert decision.trouble == trouble + 1
        waits.append(decision.due_at - NOW)
    assert waits == [5, 10, 20, 40, 80, 120, 120]
    decision = decide(rule(expires_in=5), result(outcome))
    assert decision == Finish(CallStatus.EXPIRED)


def test_each_outcome_has_waits_of_its_own_until_none_is_left() -> None:
    now = rule(retries_left=5)._replace(waits=RetryWaits((60, 300), (600,)))
    seen = []
    for outcome in (Outcome.BUSY, Outcome.NO_ANSWER, Outcome.BUSY, Outcome.BUSY):
        decision = decide(now, result(outcome))
        if isinstance(decision, Finish):
            assert decision.status is CallStatus.USER_BUSY
            break
        assert not decision.spends_retry
        seen.append(decision.due_at - NOW)
        now = now._replace(waits=decision.waits)

    assert seen == [60, 600, 300]
    assert decide(now, result(Outcome.RANG_THEN_FAILED)) == Finish(CallStatus.NO_ANSWER)


@given(st.builds(RetryWaits, waits, waits))
def test_waits_are_read_as_they_were_written(of: RetryWaits) -> None:
    assert RetryWaits.parse(str(of)) == of


def test_a_person_who_was_reached_ends_the_row_of_troubles() -> None:
    decision = decide(rule(trouble=4), result(Outcome.BUSY))
    assert isinstance(decision, RetryAt)
    assert decision.trouble == 0


@given(rule=rules, outcome=outcomes)
def test_no_retry_comes_too_early_or_too_late(rule: RetryRule, outcome: Outcome) -> None:
    decision = decide(rule, result(outcome))
    if isinstance(decision, RetryAt):
        assert decision.due_at < rule.expires_at
        not_rung = (Outcome.TRUNK_TROUBLE, Outcome.NOT_PLACED)
        waits = [rule.retry_interval, *(wait for kind in rule.waits or () for wait in kind)]
        wait = 5.0 if outcome in not_rung else min(waits)
        assert decision.due_at >= NOW + wait
        assert not decision.spends_retry or rule.retries_left > 0
    else:
        assert decision.status.final


@given(rule=rules, outcome=outcomes)
def test_whoever_answered_is_never_tried_again(rule: RetryRule, outcome: Outcome) -> None:
    assume(outcome in (Outcome.ANSWERED, Outcome.INTERRUPTED, Outcome.CANCELED))
    assert isinstance(decide(rule, result(outcome)), Finish)


RINGING = [Outcome.BUSY, Outcome.NO_ANSWER, Outcome.RANG_THEN_FAILED, Outcome.UNCERTAIN]


@given(rule=rules, met=st.lists(st.sampled_from(RINGING), max_size=20))
def test_a_phone_rings_at_most_once_more_than_retries_and_uncertain_redials(
    rule: RetryRule, met: list[Outcome]
) -> None:
    rule = rule._replace(uncertain=0, expires_at=NOW + 1e9)
    retries = rule.retries_left if rule.waits is None else sum(map(len, rule.waits))
    attempts, certain, now = 0, 0, rule
    for outcome in met:
        attempts += 1
        certain += outcome is not Outcome.UNCERTAIN
        decision = decide(now, result(outcome))
        if isinstance(decision, Finish):
            break
        now = now._replace(
            retries_left=now.retries_left - decision.spends_retry,
            uncertain=decision.uncertain,
            waits=now.waits if decision.waits is None else decision.waits,
        )
    assert attempts <= retries + 1 + rule.uncertain_redials
    assert certain <= retries + 1


@given(st.integers(0, 10**9))
def test_the_wait_after_trouble_is_5_to_120_seconds(trouble: int) -> None:
    assert 5 <= trouble_backoff(trouble) <= 120
    assert trouble_backoff(trouble) <= trouble_backoff(trouble + 1)


def test_no_redial_comes_while_an_invite_that_is_pending_may_ring() -> None:
    met = rule(1)._replace(retry_interval=5.0, longest_ring=50.0)
    over = result(Outcome.UNCERTAIN)  # it began 30 s ago
    pending = over._replace(is_pending=True)
    decision, after_it_ended = decide(met, pending), decide(met, over)
    assert isinstance(decision, RetryAt)
    assert isinstance(after_it_ended, RetryAt)
    assert (decision.due_at, after_it_ended.due_at) == (NOW + 20, NOW + 5)
    late = met._replace(expires_at=NOW + 20)
    assert decide(late, pending) == Finish(CallStatus.NO_ANSWER)
