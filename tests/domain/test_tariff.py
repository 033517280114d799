"""What an answered attempt costs."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.domain.attempts import AttemptResult, Outcome
from bitel.domain.pricing import NOTHING, Bill, Rate, Tariff

IRAN = "+989121234567"
money = st.decimals(0, 10**6, places=4)
rates = st.builds(
    Rate,
    prefix=st.sampled_from(["+", "+9", "+98", "+98912", "+1"]),
    per_minute=money,
    increment=st.integers(1, 3600),
    connection_fee=money,
    minimum=money,
)


@pytest.mark.parametrize(
    ("increment", "seconds", "price"),
    [(60, 1, "60"), (60, 60, "60"), (60, 61, "120"), (1, 61, "61"), (6, 61, "66"), (60, 0, "0")],
)
def test_each_step_that_is_begun_is_charged(increment: int, seconds: int, price: str) -> None:
    tariff = Tariff([Rate("+98", Decimal(60), increment)])
    assert tariff.price(IRAN, seconds) == Decimal(price)


def test_the_longest_prefix_prices_a_number() -> None:
    tariff = Tariff([Rate("+98", Decimal(2)), Rate("+98912", Decimal(3)), Rate("+", Decimal(1))])
    assert tariff.price("+989121234567", 1) == 3
    assert tariff.price("+982112345678", 1) == 2
    assert tariff.price("+4930123456", 1) == 1


@given(
    st.lists(rates, max_size=12, unique_by=lambda rate: rate.prefix),
    st.sampled_from([IRAN, "+982112345678", "+12025550123"]),
)
def test_the_rate_is_the_one_with_the_longest_prefix(listed: list[Rate], e164: str) -> None:
    fitting = [rate for rate in listed if e164.startswith(rate.prefix)]
    expected = max(fitting, key=lambda rate: len(rate.prefix), default=None)
    assert Tariff(listed).rate_for(e164) is expected


def test_a_number_without_a_rate_has_no_price_once_there_are_rates() -> None:
    assert not Tariff([Rate("+1", Decimal(5))]).prices(IRAN)
    assert Tariff([Rate("+1", Decimal(5)), Rate("+", Decimal(0))]).prices(IRAN)
    assert Tariff().prices(IRAN)
    assert Tariff().rate_for(IRAN) is None


def test_fee_and_minimum() -> None:
    tariff = Tariff([Rate("+98", Decimal(60), 1, Decimal("0.5"), minimum=Decimal(10))])
    assert tariff.price(IRAN, 1) == 10
    assert tariff.price(IRAN, 100) == Decimal("100.5")


def test_a_price_is_rounded_to_a_hundredth_of_a_cent() -> None:
    assert Tariff([Rate("+", Decimal(1), 1)]).price(IRAN, 20) == Decimal("0.3333")
    assert Tariff([Rate("+", Decimal("0.003"), 1)]).price(IRAN, 1) == Decimal("0.0001")  # half up


@given(st.lists(rates, max_size=6), st.integers(0, 100_000), st.integers(0, 100_000))
def test_longer_never_costs_less_and_nothing_costs_less_than_nothing(
    some: list[Rate], one: int, other: int
) -> None:
    tariff = Tariff(some)
    shorter, longer = sorted([one, other])
    assert 0 <= tariff.price(IRAN, shorter) <= tariff.price(IRAN, longer)
    assert tariff.price(IRAN, longer).as_tuple().exponent in (0, -4)


@given(st.integers(0, 100_000), st.floats(0.01, 0.99), st.integers(0, 10**6))
def test_seconds_run_from_answer_to_hang_up_rounded_up(
    whole: int, part: float, milliseconds: int
) -> None:
    answered = 1_700_000_000 + milliseconds / 1000
    tariff = Tariff([Rate("+", Decimal(60), 1)])

    def bill(ended: float) -> Bill:
        done = AttemptResult(Outcome.ANSWERED, answered - 10, ended, answered_at=answered)
        return tariff.bill(IRAN, done)

    assert bill(answered + whole) == Bill(whole, Decimal(whole))
    assert bill(answered + whole + part).seconds == whole + 1
    assert bill(answered - part) == Bill(0, Decimal(0))


@given(st.sampled_from(Outcome), st.floats(0, 1000))
def test_nobody_pays_for_what_was_not_answered(outcome: Outcome, lasted: float) -> None:
    tariff = Tariff([Rate("+", Decimal(60), 1, Decimal(5), Decimal(7))])
    assert tariff.bill(IRAN, AttemptResult(outcome, 1e9, 1e9 + lasted)) == NOTHING
