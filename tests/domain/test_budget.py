"""What may be reserved, and who is told why not."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.domain.pricing import DAY, Budget, day_of, seconds_to_midnight
from bitel.errors import InsufficientBalanceError, TooManyRequestsError

amounts = st.decimals(0, 1000, places=4)
limits = st.none() | amounts
times = st.floats(0, 4e9)


@given(limits, limits, amounts, amounts, amounts, times)
def test_what_is_reserved_fits_into_every_limit_and_all_that_fits_can_be(
    balance: Decimal | None,
    daily: Decimal | None,
    reserved: Decimal,
    spent: Decimal,
    amount: Decimal,
    now: float,
) -> None:
    budget = Budget(balance, daily, reserved, spent)
    covered = balance is None or balance - reserved >= amount
    within_the_day = daily is None or spent + reserved + amount <= daily
    if not budget.limited or not amount:
        assert budget.reserve(amount, now) == budget
    elif not covered:
        with pytest.raises(InsufficientBalanceError):
            budget.reserve(amount, now)
    elif not within_the_day:
        with pytest.raises(TooManyRequestsError) as refused:
            budget.reserve(amount, now)
        assert 1 <= refused.value.retry_after <= DAY
        assert day_of(now + refused.value.retry_after + 0.001) == day_of(now) + 1
    else:
        assert budget.reserve(amount, now).reserved == reserved + amount


def test_a_budget_without_limits_reserves_nothing() -> None:
    assert Budget().reserve(Decimal(10**9), 0.0).reserved == 0


def test_calls_that_cost_nothing_may_be_placed_with_an_empty_balance() -> None:
    overdrawn = Budget(balance=Decimal(-5))
    assert overdrawn.reserve(Decimal(0), 0.0) == overdrawn


def test_the_message_names_the_sums() -> None:
    with pytest.raises(InsufficientBalanceError, match=r"up to 3.5, and 2 of the balance"):
        Budget(balance=Decimal(5), reserved=Decimal(3)).reserve(Decimal("3.5"), 0.0)


@pytest.mark.parametrize(
    ("now", "seconds"), [(0.0, 86_400), (1.0, 86_399), (86_399.5, 1), (86_400.0, 86_400)]
)
def test_midnight_comes_in_whole_seconds(now: float, seconds: int) -> None:
    assert seconds_to_midnight(now) == seconds
