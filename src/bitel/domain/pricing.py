"""Pricing: rates by prefix, the bill of an attempt, and a project's budget."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import ROUND_HALF_UP, Decimal
from typing import Final

from bitel.domain.attempts import AttemptResult
from bitel.errors import (
    InsufficientBalanceError,
    InvalidRequestError,
    TooManyRequestsError,
)

CENT_OF_A_CENT = Decimal("0.0001")
"""Prices are rounded to this fraction of the currency's unit."""


@dataclass(frozen=True, slots=True)
class Rate:
    """The price of calls to numbers whose E.164 form starts with `prefix` ("+" matches all).

    `per_minute` is charged in steps of `increment` seconds (at least 1), each step begun in full;
    `connection_fee` once per answered call; the sum is at least `minimum`.
    """

    prefix: str
    per_minute: Decimal
    increment: int = 60
    connection_fee: Decimal = Decimal(0)
    minimum: Decimal = Decimal(0)

    def price(self, seconds: int) -> Decimal:
        """The price of an answered call of `seconds` (0 or more)."""
        steps = -(-seconds // self.increment)
        charge = self.per_minute * steps * self.increment / 60
        exact = max(charge + self.connection_fee, self.minimum)
        return exact.quantize(CENT_OF_A_CENT, rounding=ROUND_HALF_UP)


@dataclass(frozen=True, slots=True)
class Bill:
    """The bill of an attempt: whole seconds, and a price of zero or more."""

    seconds: int
    price: Decimal
    note: str = ""
    """Why duration and price do not agree; empty if they do."""


NOTHING = Bill(0, Decimal(0))


@dataclass(frozen=True, slots=True)
class Tariff:
    """Rates by prefix; the longest matching prefix prices a number. Without any rate all calls are
    free; otherwise numbers without a matching rate are not called."""

    rates: Sequence[Rate] = ()
    _by_prefix: Mapping[str, Rate] = field(init=False, repr=False, compare=False)
    _lengths: Sequence[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_prefix = {rate.prefix: rate for rate in self.rates}
        object.__setattr__(self, "_by_prefix", by_prefix)
        object.__setattr__(self, "_lengths", sorted({len(p) for p in by_prefix}, reverse=True))

    def rate_for(self, e164: str) -> Rate | None:
        """The rate of a number in E.164 form with its plus sign; None if there is none."""
        for length in self._lengths:
            rate = self._by_prefix.get(e164[:length])
            if rate is not None:
                return rate
        return None

    def prices(self, e164: str) -> bool:
        """Whether calls to a number have a price, be it zero."""
        return not self.rates or self.rate_for(e164) is not None

    def price(self, e164: str, seconds: int) -> Decimal:
        """The price of an answered call of `seconds` (0 or more) to `e164`."""
        rate = self.rate_for(e164)
        return Decimal(0) if rate is None else rate.price(seconds)

    def price_each(self, numbers: Sequence[str], seconds: int) -> Sequence[Decimal]:
        """`price` of many numbers, computed once per rate."""
        if not self.rates:
            return [NOTHING.price] * len(numbers)
        price = functools.cache(lambda rate: rate.price(seconds) if rate else NOTHING.price)
        return [price(self.rate_for(e164)) for e164 in numbers]

    def bill(self, e164: str, result: AttemptResult) -> Bill:
        """The bill of a finished attempt: from answer to hang-up, rounded up to whole seconds.

        An attempt that an internal error cut off is not billed.
        """
        if not result.is_billed or result.answered_at is None:
            return NOTHING
        seconds = math.ceil(max(0.0, result.ended_at - result.answered_at))
        return Bill(seconds, self.price(e164, seconds))


DAY: Final = 86_400.0
"""Seconds. A day of spending begins at midnight UTC."""

HANG_UP_SECONDS: Final = 5
"""Seconds by which a call may last longer than its audio and the allowed hold."""
DEFAULT_HOLD: Final = 60
"""Seconds for which the callee may hold a call, if the project has no setting of its own."""
LONGEST_HOLD: Final = 3600

MOST_MONEY: Final = Decimal(10) ** 12
"""Largest amount; sums of such amounts fit the database columns."""
DECIMALS: Final = 4
"""Decimal places of an amount."""


def longest_call(sound_seconds: float, hold_seconds: int) -> int:
    """Maximum duration of a call in whole seconds, from its answer.

    Args:
        sound_seconds: duration of the audio.
        hold_seconds: how long the callee may hold the call, in total.
    """
    return math.ceil(sound_seconds) + hold_seconds + HANG_UP_SECONDS


def check_amount(amount: Decimal, what: str) -> None:
    """Raise InvalidRequestError if a column can't hold `amount` exactly; `what` names it."""
    is_number = amount.is_finite() and abs(amount) <= MOST_MONEY
    if not is_number or amount != round(amount, DECIMALS):
        raise InvalidRequestError(
            f"{what} must be an amount with at most {DECIMALS} decimals, up to {MOST_MONEY:f}"
        )


@dataclass(frozen=True, slots=True)
class Budget:
    """The present state of a project's money. None means no limit."""

    balance: Decimal | None = None
    daily_spend: Decimal | None = None
    """The most that it may spend in one day."""
    reserved: Decimal = Decimal(0)
    """The most that its waiting calls may cost, in total."""
    spent_today: Decimal = Decimal(0)

    @property
    def limited(self) -> bool:
        """Whether calls have to reserve what they may cost."""
        return self.balance is not None or self.daily_spend is not None

    def reserve(self, amount: Decimal, now: float) -> Budget:
        """The budget after `amount` (zero or more) is reserved for further calls.

        Raises InsufficientBalanceError if the free balance does not cover it, and
        TooManyRequestsError, until the next midnight UTC, if the day's limit does not.
        """
        if not self.limited or not amount:
            return self
        if self.balance is not None and self.balance - self.reserved < amount:
            raise InsufficientBalanceError(
                f"the calls may cost up to {amount:f}, and {self.balance - self.reserved:f} of the "
                "balance is free"
            )
        committed = self.spent_today + self.reserved
        if self.daily_spend is not None and committed + amount > self.daily_spend:
            raise TooManyRequestsError(
                f"the calls may cost up to {amount:f}, and {self.daily_spend - committed:f} of "
                "the day's spending limit is free",
                retry_after=seconds_to_midnight(now),
            )
        return replace(self, reserved=self.reserved + amount)


def day_of(now: float) -> int:
    """The day, UTC, that `now` (Unix seconds) is in: days since 1970."""
    return int(now // DAY)


def seconds_to_midnight(now: float) -> int:
    """Whole seconds, 1 to 86400, until the next day begins at 0:00 UTC."""
    return max(1, math.ceil(DAY - now % DAY))
