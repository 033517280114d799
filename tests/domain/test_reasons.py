"""Reasons in words, for every outcome, code and cause."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.domain.attempts import Outcome, classify
from bitel.domain.calls import CallStatus
from bitel.domain.reasons import attempt_reason, call_reason


@pytest.mark.parametrize(
    ("code", "cause", "rang", "words"),
    [
        (486, None, True, "busy (SIP 486)"),
        (486, 17, True, "busy (SIP 486, cause 17)"),
        (603, None, True, "rejected by the callee (SIP 603)"),
        (480, None, True, "not answered (SIP 480)"),
        (480, 20, False, "switched off or out of reach (SIP 480, cause 20)"),
        (404, 1, False, "the number does not exist (SIP 404, cause 1)"),
        (484, None, False, "the number is incomplete (SIP 484)"),
        (403, None, False, "refused by the carrier (SIP 403)"),
        (407, None, False, "the carrier did not accept the credentials (SIP 407)"),
        (488, None, False, "no audio format in common (SIP 488)"),
        (503, None, False, "the carrier could not deliver the call (SIP 503)"),
        (503, None, True, "rang, then failed in the network (SIP 503)"),
        (607, None, True, "the callee rejects such calls (SIP 607)"),
    ],
)
def test_a_failure_is_explained(code: int, cause: int | None, rang: bool, words: str) -> None:
    assert attempt_reason(classify(code, cause, rang=rang), code, cause) == words


@given(
    outcome=st.sampled_from(Outcome),
    code=st.none() | st.integers(100, 699),
    cause=st.none() | st.integers(0, 127),
)
def test_there_are_words_for_everything(
    outcome: Outcome, code: int | None, cause: int | None
) -> None:
    words = attempt_reason(outcome, code, cause)
    assert words[0].isalpha()
    assert (f"SIP {code}" in words) == (code is not None and code // 100 != 2)
    assert (f"cause {cause}" in words) == (cause not in (None, 16))


def test_an_answer_needs_no_numbers() -> None:
    assert attempt_reason(Outcome.ANSWERED, 200, 16) == "answered"


def test_what_is_stored_with_a_call_comes_first() -> None:
    assert call_reason(CallStatus.ERROR, "on the do-not-call list", None) == (
        "on the do-not-call list"
    )
    assert call_reason(CallStatus.USER_BUSY, "", "busy (SIP 486)") == "busy (SIP 486)"
    assert call_reason(CallStatus.EXPIRED, "", "busy (SIP 486)") == (
        "its time was over before it could be placed"
    )
    assert call_reason(CallStatus.WAITING, "", None) is None
