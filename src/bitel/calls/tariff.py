"""What an answered attempt costs: a rate per destination prefix, in exact decimals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal

from bitel.calls.outcome import Attempted, Outcome

CENT_OF_A_CENT = Decimal("0.0001")
"""Prices are kept to this fraction of the currency's unit."""


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


@dataclass(frozen=True, slots=True)
class Bill:
    """What an attempt is billed: whole seconds, and a price that is zero or positive."""

    seconds: int
    price: Decimal


NOTHING = Bill(0, Decimal(0))


@dataclass(frozen=True, slots=True)
class Tariff:
    """Rates by prefix; the longest prefix that fits a number prices it, none makes it free."""

    rates: Sequence[Rate] = ()

    def rate_for(self, e164: str) -> Rate | None:
        """The rate of a number in E.164 form with its plus sign, or None where none is set."""
        fitting = (rate for rate in self.rates if e164.startswith(rate.prefix))
        return max(fitting, key=lambda rate: len(rate.prefix), default=None)

    def price(self, e164: str, seconds: int) -> Decimal:
        """The price of an answered call of `seconds` (0 or more) to `e164`."""
        rate = self.rate_for(e164)
        if rate is None:
            return Decimal(0)
        steps = -(-seconds // rate.increment)
        talk = rate.per_minute * steps * rate.increment / 60
        exact = max(talk + rate.connection_fee, rate.minimum)
        return exact.quantize(CENT_OF_A_CENT, rounding=ROUND_HALF_UP)

    def bill(self, e164: str, attempted: Attempted) -> Bill:
        """The bill of a finished attempt: from answer to hang-up, rounded up to whole seconds.

        An attempt that was cut off by a fault of ours is not billed, whoever answered it.
        """
        if attempted.outcome is not Outcome.ANSWERED or attempted.answered_at is None:
            return NOTHING
        seconds = math.ceil(max(0.0, attempted.ended_at - attempted.answered_at))
        return Bill(seconds, self.price(e164, seconds))
