"""What a failure means, held against the table as it is written down for operators."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.domain.attempts import Outcome, classify

# Copied out by hand, so that a slip in the code's own tables shows.
WRITTEN_DOWN = {
    Outcome.BUSY: ([486, 600, 603], [17, 21]),
    Outcome.NO_ANSWER: ([487, 480], [18, 19, 20, 31]),
    Outcome.BAD_NUMBER: ([404, 410, 484, 604, 416], [1, 2, 3, 22, 28]),
    Outcome.REFUSED: ([401, 407, 403, 402], [50, 52, 57, 87]),
    Outcome.MEDIA_MISMATCH: ([488, 415, 606], [65, 79, 88]),
    Outcome.TRUNK_TROUBLE: ([408, 500, 502, 503, 504], [27, 34, 38, 41, 42, 44, 47, 58, 102]),
    Outcome.REFUSED_FOR_GOOD: ([501, 505, 513, 607, 608], []),
}
BY_SIP = [(code, outcome) for outcome, (codes, _) in WRITTEN_DOWN.items() for code in codes]
BY_CAUSE = [(cause, outcome) for outcome, (_, causes) in WRITTEN_DOWN.items() for cause in causes]
CAUSES = dict(BY_CAUSE)
OWN_ANSWERS = (486, 600, 603)
FOR_GOOD = (501, 505, 513, 607, 608)
NO_SUCH_NUMBER = (404, 410, 484, 604, 416)

final_codes = st.integers(300, 699)
any_cause = st.none() | st.integers(-1, 300)
waits = st.none() | st.floats(0, 100)


@pytest.mark.parametrize(("code", "outcome"), BY_SIP)
def test_a_code_of_the_table(code: int, outcome: Outcome) -> None:
    assert classify(code, None) is outcome


@pytest.mark.parametrize(("cause", "outcome"), BY_CAUSE)
def test_a_cause_decides_before_a_code_of_the_network(cause: int, outcome: Outcome) -> None:
    for code in range(400, 600):
        if code not in (*OWN_ANSWERS, *FOR_GOOD):
            assert classify(code, cause) is outcome


@given(code=final_codes, cause=any_cause, rang=st.booleans(), wait=waits)
def test_no_cause_changes_the_answer_of_the_person_called(
    code: int, cause: int | None, rang: bool, wait: float | None
) -> None:
    if rang or code in OWN_ANSWERS or code >= 600:
        without = classify(code, None, rang=rang, progress_for=wait)
        assert classify(code, cause, rang=rang, progress_for=wait) is without


@pytest.mark.parametrize("code", OWN_ANSWERS)
@pytest.mark.parametrize("cause", [None, 16, 27, 34, 41])
@pytest.mark.parametrize("rang", [True, False])
def test_busy_and_decline_are_the_persons_own(code: int, cause: int | None, rang: bool) -> None:
    assert classify(code, cause, rang=rang, progress_for=20.0) is Outcome.BUSY


@pytest.mark.parametrize("code", [408, 480, 487])
@pytest.mark.parametrize("cause", [None, 17, 27, 41, 42, 47, 102])
def test_a_phone_that_rang_and_was_not_picked_up(code: int, cause: int | None) -> None:
    assert classify(code, cause, rang=True) is Outcome.NO_ANSWER


@given(code=final_codes, cause=any_cause, wait=waits, delivered=st.booleans())
def test_a_phone_that_rang_is_never_taken_for_trunk_trouble(
    code: int, cause: int | None, wait: float | None, delivered: bool
) -> None:
    outcome = classify(code, cause, rang=True, progress_for=wait, delivered=delivered)
    assert outcome in (
        Outcome.BUSY,
        Outcome.NO_ANSWER,
        Outcome.RANG_THEN_FAILED,
        Outcome.BAD_NUMBER,
        Outcome.REFUSED_FOR_GOOD,
    )
    assert (outcome is Outcome.BAD_NUMBER) == (code in NO_SUCH_NUMBER)


@pytest.mark.parametrize("code", [400, 401, 403, 407, 433, 488, 500, 502, 503, 504, 580])
def test_after_ringing_any_failure_is_an_attempt_that_was_not_answered(code: int) -> None:
    assert classify(code, None, rang=True) is Outcome.RANG_THEN_FAILED


@pytest.mark.parametrize("code", [408, 500, 502, 503, 504])
@pytest.mark.parametrize("cause", [None, 34, 41])
def test_trunk_trouble_is_uncertain_once_the_carrier_had_the_call_for_a_while(
    code: int, cause: int | None
) -> None:
    assert classify(code, cause, progress_for=4.0) is Outcome.TRUNK_TROUBLE
    assert classify(code, cause, progress_for=4.1) is Outcome.UNCERTAIN
    assert classify(code, cause, delivered=True) is Outcome.UNCERTAIN


def test_a_cause_of_the_trunk_is_uncertain_too() -> None:
    assert classify(480, 41, progress_for=1.0) is Outcome.TRUNK_TROUBLE
    assert classify(480, 41, progress_for=20.0) is Outcome.UNCERTAIN
    assert classify(480, None, progress_for=20.0) is Outcome.NO_ANSWER


@given(code=final_codes, cause=any_cause, wait=waits, delivered=st.booleans())
def test_only_trunk_trouble_becomes_uncertain(
    code: int, cause: int | None, wait: float | None, delivered: bool
) -> None:
    at_once = classify(code, cause)
    later = classify(code, cause, progress_for=wait, delivered=delivered)
    assert later is at_once or (at_once, later) == (Outcome.TRUNK_TROUBLE, Outcome.UNCERTAIN)


@pytest.mark.parametrize("code", [*FOR_GOOD, 601, 602, 605, 609, 650, 699])
@pytest.mark.parametrize("cause", [None, 17, 41])
@pytest.mark.parametrize("rang", [True, False])
def test_what_is_refused_for_good_stays_so(code: int, cause: int | None, rang: bool) -> None:
    assert classify(code, cause, rang=rang, progress_for=9.0) is Outcome.REFUSED_FOR_GOOD


@pytest.mark.parametrize("rang", [True, False])
def test_a_603_of_call_analytics_is_for_good(rang: bool) -> None:
    assert classify(603, None, rang=rang, analytics=True) is Outcome.REFUSED_FOR_GOOD
    assert classify(603, None, rang=rang, analytics=False) is Outcome.BUSY


@given(code=final_codes, cause=any_cause.filter(lambda cause: cause not in CAUSES))
def test_a_cause_that_no_table_names_leaves_it_to_the_code(code: int, cause: int | None) -> None:
    assert classify(code, cause) is classify(code, None)


@given(code=st.integers(300, 599).filter(lambda code: code not in dict(BY_SIP)))
def test_an_unknown_code_counts_as_its_x00(code: int) -> None:
    assert classify(code, None) is classify(code // 100 * 100, None)


@given(code=st.integers(), cause=st.none() | st.integers(), rang=st.booleans())
def test_nothing_a_far_end_sends_is_an_answer_or_an_error(
    code: int, cause: int | None, rang: bool
) -> None:
    outcome = classify(code, cause, rang=rang)
    assert outcome not in (Outcome.ANSWERED, Outcome.CANCELED, Outcome.INTERRUPTED)
