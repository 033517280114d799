"""When an event is offered again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.webhooks import retry_policy
from bitel.webhooks.retry_policy import JITTER, LONGEST_WAIT, PAUSES, next_try, retry_after

NOW = 1_700_000_000.0  # Tue, 14 Nov 2023 22:13:20 GMT

jitters = st.floats(0, 1)
tries = st.integers(1, len(PAUSES))


def test_the_pauses_are_the_contract_s() -> None:
    hour = 3600
    assert list(PAUSES) == [
        5,
        5 * 60,
        30 * 60,
        2 * hour,
        5 * hour,
        10 * hour,
        14 * hour,
        20 * hour,
        24 * hour,
    ]


@given(tries, jitters)
def test_a_pause_keeps_within_its_jitter(count: int, jitter: float) -> None:
    at = next_try(count, NOW, jitter, None)
    assert at is not None
    pause = PAUSES[count - 1]
    assert pause * (1 - JITTER) - 1e-3 <= at - NOW <= pause * (1 + JITTER) + 1e-3


@given(st.integers(1, len(PAUSES) - 1), jitters)
def test_later_tries_are_further_apart_but_for_luck(count: int, jitter: float) -> None:
    sooner, later = next_try(count, 0, jitter, None), next_try(count + 1, 0, jitter, None)
    assert sooner is not None
    assert later is not None
    assert sooner < later


@given(st.integers(len(PAUSES) + 1, 1000), jitters, st.none() | st.floats(0, 1e12))
def test_after_the_last_pause_it_is_given_up(
    count: int, jitter: float, asked_for: float | None
) -> None:
    assert next_try(count, NOW, jitter, asked_for) is None


@given(tries, jitters, st.floats(0, 1e12))
def test_retry_after_makes_pauses_longer_within_reason(
    count: int, jitter: float, asked_for: float
) -> None:
    own, asked = next_try(count, 0, jitter, None), next_try(count, 0, jitter, asked_for)
    assert own is not None
    assert asked is not None
    assert asked >= own
    assert asked >= min(asked_for, LONGEST_WAIT)
    assert asked <= max(own, LONGEST_WAIT)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("120", 120.0),
        (" 0 ", 0.0),
        ("Tue, 14 Nov 2023 22:14:20 GMT", 60.0),
        ("Tuesday, 14-Nov-23 22:14:20 GMT", 60.0),
        ("Tue Nov 14 22:14:20 2023", 60.0),
        ("Tue, 14 Nov 2023 21:14:20 GMT", 0.0),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("1.5", None),
        ("٣", None),
        ("9" * 65, None),
        ("Tue, 99 Nov 2023 99:99:99 GMT", None),
        ("Fri, 31 Dec 9999 23:59:59 -9999", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": text}, NOW) == seconds


def test_no_retry_after_asks_for_nothing() -> None:
    assert retry_after({}, NOW) is None


@given(st.text(max_size=80) | st.from_regex(r"\A[A-Z][a-z]{2}, \d+ [A-Z][a-z]{2} \d+ [\d:]+ .*"))
def test_no_retry_after_breaks_anything(text: str) -> None:
    asked = retry_after({"retry-after": text}, NOW)
    assert asked is None or asked >= 0


@pytest.mark.parametrize(
    ("status", "success", "gone"),
    [
        (200, True, False),
        (204, True, False),
        (299, True, False),
        (101, False, False),
        (301, False, False),
        (404, False, False),
        (410, False, True),
        (500, False, False),
    ],
)
def test_what_a_status_means(status: int, success: bool, gone: bool) -> None:
    assert (retry_policy.is_success(status), retry_policy.is_gone(status)) == (success, gone)
