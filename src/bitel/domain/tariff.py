"""What an answered attempt costs: a rate per destination prefix, in exact decimals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal

from bitel.domain.attempts import AttemptResult

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

    def price(self, seconds: int) -> Decimal:
        """The price of an answered call of `seconds` (0 or more)."""
        steps = -(-seconds // self.increment)
        talk = self.per_minute * steps * self.increment / 60
        exact = max(talk + self.connection_fee, self.minimum)
        return exact.quantize(CENT_OF_A_CENT, rounding=ROUND_HALF_UP)


@dataclass(frozen=True, slots=True)
class Bill:
    """What an attempt is billed: whole seconds, and a price that is zero or positive."""

    seconds: int
    price: Decimal
    note: str = ""
    """Why length and price do not agree; empty where they do."""


NOTHING = Bill(0, Decimal(0))


@dataclass(frozen=True, slots=True)
class Tariff:
    """Rates by prefix; the longest prefix that fits a number prices it. Without any rate all calls
    are free; with some, numbers that none fits are not called."""

    rates: Sequence[Rate] = ()
    _by_prefix: Mapping[str, Rate] = field(init=False, repr=False, compare=False)
    _lengths: Sequence[int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_prefix = {rate.prefix: rate for rate in self.rates}
        object.__setattr__(self, "_by_prefix", by_prefix)
        object.__setattr__(self, "_lengths", sorted({len(p) for p in by_prefix}, reverse=True))

    def rate_for(self, e164: str) -> Rate | None:
        """The rate of a number in E.164 form with its plus sign, or None where none is set."""
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

    def bill(self, e164: str, attempted: AttemptResult) -> Bill:
        """The bill of a finished attempt: from answer to hang-up, rounded up to whole seconds.

        An attempt that was cut off by a fault of ours is not billed, whoever answered it.
        """
        if not attempted.is_billed or attempted.answered_at is None:
            return NOTHING
        seconds = math.ceil(max(0.0, attempted.ended_at - attempted.answered_at))
        return Bill(seconds, self.price(e164, seconds))
