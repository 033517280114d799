"""Identifiers, and the states of a call."""

from __future__ import annotations

import os
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.domain.calls import CallStatus, Lane
from bitel.domain.ids import is_id, new_id, new_ids

times = st.floats(0, 2**48 / 1000 - 1)


@given(times)
def test_an_identifier_is_a_uuid_of_version_7_that_tells_its_time(now: float) -> None:
    made = new_id(now)
    assert is_id(made)
    parsed = uuid.UUID(hex=made)
    assert parsed.version == 7
    assert parsed.variant == uuid.RFC_4122
    assert int(made[:12], 16) == int(now * 1000)


@given(times, st.floats(0.001, 10**6))
def test_identifiers_sort_by_the_time_they_were_made(now: float, later: float) -> None:
    if int(now * 1000) < int((now + later) * 1000) < 2**48:
        assert new_id(now) < new_id(now + later)


def test_identifiers_of_one_moment_differ() -> None:
    assert len({new_id(1.0) for _ in range(10_000)}) == 10_000


@given(times, st.integers(0, 300))
def test_identifiers_made_together_sort_in_their_order(now: float, count: int) -> None:
    made = new_ids(now, count)
    assert len(made) == count
    assert made == sorted(set(made))
    for each in made:
        parsed = uuid.UUID(hex=each)
        assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
        assert int(each[:12], 16) == int(now * 1000)


def test_counting_on_carries_over(monkeypatch: pytest.MonkeyPatch) -> None:
    # All bits set: the lower 62 of the random ones overflow with the first step.
    monkeypatch.setattr(os, "urandom", lambda count: b"\xff" * count)
    made = new_ids(1.0, 3)
    assert made == sorted(set(made))
    assert [uuid.UUID(hex=each).version for each in made] == [7, 7, 7]
    assert {each[:16] for each in made} == {"0000000003e87800"}


@given(st.text("0123456789abcdefABCDEF-\n", min_size=30, max_size=34))
def test_what_has_the_form_of_an_identifier(text: str) -> None:
    well_formed = len(text) == 32 and not set(text) - set("0123456789abcdef")
    assert is_id(text) == well_formed


def test_only_waiting_is_not_final() -> None:
    assert [status for status in CallStatus if not status.final] == [CallStatus.WAITING]


def test_the_codes_that_clients_see() -> None:
    assert {status.name: int(status) for status in CallStatus} == {
        "WAITING": 0,
        "NORMAL": 1,
        "NO_ANSWER": 2,
        "USER_BUSY": 3,
        "CANCELED": 4,
        "EXPIRED": 10,
        "ERROR": 11,
        "UNKNOWN": 20,
    }


def test_one_time_passwords_go_first_and_batches_last() -> None:
    assert sorted(Lane) == [Lane.OTP, Lane.SINGLE, Lane.BATCH]
