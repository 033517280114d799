"""What a project may still spend, and what its waiting calls keep back from that."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Final

from bitel.errors import (
    InsufficientBalanceError,
    InvalidRequestError,
    TooManyRequestsError,
)

DAY: Final = 86_400.0
"""Seconds. A day of spending begins at midnight UTC."""


HANG_UP_SECONDS: Final = 5
"""Seconds by which a call may last longer than what it plays and the hold that is allowed."""
DEFAULT_HOLD: Final = 60
"""Seconds for which the person called may hold a call, where their project says nothing else."""
LONGEST_HOLD: Final = 3600

MOST_MONEY: Final = Decimal(10) ** 12
"""No amount is larger; sums of such amounts fit the columns that hold them."""
DECIMALS: Final = 4
"""Digits behind the decimal point of an amount."""


def longest_call(sound_seconds: float, hold_seconds: int) -> int:
    """Whole seconds after the answer at which a call is ended: the longest path that it may take.

    Args:
        sound_seconds: how long what it plays lasts.
        hold_seconds: how long the person called may hold it, all in all.
    """
    return math.ceil(sound_seconds) + hold_seconds + HANG_UP_SECONDS


def check_amount(amount: Decimal, what: str) -> None:
    """Raise InvalidRequestError for what no column holds exactly; `what` names it."""
    is_number = amount.is_finite() and abs(amount) <= MOST_MONEY
    if not is_number or amount != round(amount, DECIMALS):
        raise InvalidRequestError(
            f"{what} must be an amount with at most {DECIMALS} decimals, up to {MOST_MONEY:f}"
        )


@dataclass(frozen=True, slots=True)
class Budget:
    """A project's money as it stands. None stands for no limit."""

    balance: Decimal | None = None
    daily_spend: Decimal | None = None
    """The most that it may spend on one day."""
    reserved: Decimal = Decimal(0)
    """What its waiting calls may cost at most, all together."""
    spent_today: Decimal = Decimal(0)

    @property
    def limited(self) -> bool:
        """Whether calls have to reserve what they may cost."""
        return self.balance is not None or self.daily_spend is not None

    def reserve(self, amount: Decimal, now: float) -> Budget:
        """What is left once `amount` (zero or more) is kept back for further calls.

        Raises InsufficientBalanceError when the balance does not cover it beside what is reserved,
        and TooManyRequestsError, until the next midnight UTC, when the day's limit does not.
        """
        if not self.limited or not amount:
            return self
        if self.balance is not None and self.balance - self.reserved < amount:
            raise InsufficientBalanceError(
                f"the calls may cost up to {amount:f}, and {self.balance - self.reserved:f} of the "
                "balance is free"
            )
        spoken_for = self.spent_today + self.reserved
        if self.daily_spend is not None and spoken_for + amount > self.daily_spend:
            raise TooManyRequestsError(
                f"the calls may cost up to {amount:f}, and {self.daily_spend - spoken_for:f} of "
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
