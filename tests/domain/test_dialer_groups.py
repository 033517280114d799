"""Which dialer of a group takes a call: by order, or in proportion to weights."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.domain.dialer_groups import MEMORY, MOST, DialerGroup, Membership, allowance

ORDER = DialerGroup("g", ("a", "b", "c"))


def member(group: DialerGroup, dialer_id: str) -> Membership:
    return Membership(group, dialer_id, frozenset(), lambda e164, call_id: "")


@pytest.mark.parametrize(
    ("free", "allowed"),
    [
        ("abc", "a"),
        ("bc", "ab"),
        ("c", "abc"),
        ("", "abc"),
        ("a", "a"),
        ("ac", "a"),
    ],
)
def test_the_first_that_is_free_takes_calls_and_so_does_any_before_it(
    free: str, allowed: str
) -> None:
    """One that asks has room, though the others may not have heard of it yet."""
    found = [each for each in "abc" if allowance(member(ORDER, each), set(free), {})[0]]
    assert found == list(allowed)


@given(
    st.lists(st.integers(1, 20), min_size=2, max_size=5),
    st.integers(200, 400),
    st.randoms(use_true_random=False),
)
def test_calls_are_taken_in_proportion_to_the_weights(
    weights: list[int], calls: int, chance: object
) -> None:
    names = tuple("abcde"[: len(weights)])
    group = DialerGroup("g", names, tuple(map(float, weights)))
    taken = dict.fromkeys(names, 0.0)
    got = dict.fromkeys(names, 0)
    for _ in range(calls):
        order = list(names)
        chance.shuffle(order)  # type: ignore[attr-defined]
        able = [each for each in order if allowance(member(group, each), names, taken)[0] > 0]
        assert able, "some dialer may always take the next call"
        mine = able[0]
        taken[mine] = allowance(member(group, mine), names, taken)[1] + 1 / group.weight(mine)
        got[mine] += 1
    for name, weight in zip(names, weights, strict=True):
        fair = calls * weight / sum(weights)
        assert abs(got[name] - fair) <= 2 * weight / min(weights) + 1


def test_a_dialer_takes_no_more_at_once_than_its_weight() -> None:
    group = DialerGroup("g", ("a", "b"), (3.0, 1.0))
    assert allowance(member(group, "a"), {"a", "b"}, {})[0] == 3
    assert allowance(member(group, "b"), {"a", "b"}, {})[0] == 1
    assert allowance(member(group, "b"), {"a", "b"}, {"b": 1.0})[0] == 0


def test_the_share_of_one_that_is_full_goes_to_the_others() -> None:
    group = DialerGroup("g", ("a", "b"), (3.0, 1.0))
    assert allowance(member(group, "b"), {"b"}, {"b": 500.0})[0] == MOST


def test_one_that_was_down_does_not_take_all_calls_afterwards() -> None:
    group = DialerGroup("g", ("a", "b"), (1.0, 1.0))
    allowed, count = allowance(member(group, "b"), {"a", "b"}, {"a": 3600.0, "b": 2.0})
    assert (allowed, count) == (MEMORY + 1, 3600.0 - MEMORY)


@given(
    st.lists(st.floats(1, 9), min_size=2, max_size=4),
    st.lists(st.floats(0, 1e6), min_size=4, max_size=4),
    st.sets(st.sampled_from("abcd")),
)
def test_whatever_they_took_some_dialer_may_take_the_next_call(
    weights: list[float], counts: list[float], free: set[str]
) -> None:
    names = tuple("abcd"[: len(weights)])
    group = DialerGroup("g", names, tuple(weights))
    taken = dict(zip(names, counts, strict=False))
    free = free & set(names)
    assert any(allowance(member(group, each), free, taken)[0] for each in free or names)
