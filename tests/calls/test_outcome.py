"""What an answer means, held against the table as it is written down for operators."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.calls.outcome import Outcome, classify

# Copied out by hand, so that a slip in the code's own tables shows.
WRITTEN_DOWN = {
    Outcome.BUSY: ([486, 600, 603], [17, 21]),
    Outcome.NO_ANSWER: ([487, 480], [18, 19, 20, 31]),
    Outcome.BAD_NUMBER: ([404, 410, 484, 604, 416], [1, 2, 3, 22, 28]),
    Outcome.REFUSED: ([401, 407, 403, 402], [50, 52, 57, 87]),
    Outcome.MEDIA_MISMATCH: ([488, 415, 606], [65, 79, 88]),
    Outcome.TRUNK_TROUBLE: ([500, 502, 503, 504], [27, 34, 38, 41, 42, 44, 47, 58, 102]),
}
BY_SIP = [(code, outcome) for outcome, (codes, _) in WRITTEN_DOWN.items() for code in codes]
BY_CAUSE = [(cause, outcome) for outcome, (_, causes) in WRITTEN_DOWN.items() for cause in causes]
CAUSES = dict(BY_CAUSE)

final_codes = st.integers(300, 699)
any_cause = st.none() | st.integers(-1, 300)


@pytest.mark.parametrize(("code", "outcome"), BY_SIP)
@pytest.mark.parametrize("rang", [True, False])
def test_a_code_of_the_table(code: int, outcome: Outcome, rang: bool) -> None:
    assert classify(code, None, rang) is outcome


@pytest.mark.parametrize(("cause", "outcome"), BY_CAUSE)
def test_a_cause_of_the_table_decides_before_the_code(cause: int, outcome: Outcome) -> None:
    for code in range(300, 700):
        assert classify(code, cause, rang=True) is outcome
        assert classify(code, cause, rang=False) is outcome


def test_a_408_depends_on_whether_it_rang() -> None:
    assert classify(408, None, rang=True) is Outcome.NO_ANSWER
    assert classify(408, None, rang=False) is Outcome.TRUNK_TROUBLE


@given(code=final_codes, cause=any_cause.filter(lambda cause: cause not in CAUSES))
def test_a_cause_that_no_table_names_leaves_it_to_the_code(code: int, cause: int | None) -> None:
    assert classify(code, cause, rang=False) is classify(code, None, rang=False)


@given(code=final_codes.filter(lambda code: code not in dict(BY_SIP) and code != 408))
def test_an_unknown_code_counts_as_its_x00(code: int) -> None:
    assert classify(code, None, rang=True) is classify(code // 100 * 100, None, rang=True)


@given(code=st.integers(), cause=st.none() | st.integers(), rang=st.booleans())
def test_nothing_a_far_end_sends_is_an_answer_or_an_error(
    code: int, cause: int | None, rang: bool
) -> None:
    outcome = classify(code, cause, rang)
    assert outcome not in (Outcome.ANSWERED, Outcome.CALLED_OFF, Outcome.CUT_OFF)
