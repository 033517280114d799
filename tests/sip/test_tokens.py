"""Random digits: never twice the same, as many as asked for."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from bitel.sip.transaction import Tokens


@given(st.lists(st.integers(1, 64), min_size=1, max_size=40), st.integers())
def test_digits_are_handed_out_in_order_and_once(lengths: list[int], seed: int) -> None:
    tokens = Tokens(random.Random(seed))
    drawn = "".join([tokens.take(length) for length in lengths])
    assert drawn == random.Random(seed).randbytes(4096).hex()[: sum(lengths)]


def test_a_token_is_whole_where_the_pool_runs_out() -> None:
    tokens = Tokens(random.Random(1))
    taken = [tokens.take(24) for _ in range(2000)]
    assert len(set(taken)) == 2000
    assert {len(token) for token in taken} == {24}


def test_the_system_makes_no_two_pools_alike() -> None:
    first, second = Tokens(random.SystemRandom()), Tokens(random.SystemRandom())
    assert first.take(32) != second.take(32)
