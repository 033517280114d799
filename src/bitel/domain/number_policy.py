"""Which numbers a project may call: prefixes of E.164 numbers, and costly ranges.

A number is called if an allowed prefix begins it and no forbidden one does. Costly ranges are
called only where a prefix allows that very range: premium-rate and shared-cost numbers of any
country, and those of `COSTLY_RANGES`, which share a country code with numbers that are not. Numbers
of the service's own region are never costly by that table. Toll-free and universal access numbers
(UAN) are ordinary ones, and so are neighbours under one country code (Canada for the United
States, Jersey for Great Britain).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from bitel.domain.phone_numbers import (
    COSTLY_TYPES,
    country_code,
    country_code_of,
    is_ordinary,
    number_type,
    region_of,
)
from bitel.errors import InvalidRequestError

COSTLY_RANGES: Final = {
    # Caribbean countries under +1, each with the rates of a call abroad.
    "+1242": "the Bahamas",
    "+1246": "Barbados",
    "+1264": "Anguilla",
    "+1268": "Antigua and Barbuda",
    "+1284": "the British Virgin Islands",
    "+1345": "the Cayman Islands",
    "+1441": "Bermuda",
    "+1473": "Grenada",
    "+1649": "the Turks and Caicos Islands",
    "+1658": "Jamaica",
    "+1664": "Montserrat",
    "+1721": "Sint Maarten",
    "+1758": "Saint Lucia",
    "+1767": "Dominica",
    "+1784": "Saint Vincent and the Grenadines",
    "+1809": "the Dominican Republic",
    "+1829": "the Dominican Republic",
    "+1849": "the Dominican Republic",
    "+1868": "Trinidad and Tobago",
    "+1869": "Saint Kitts and Nevis",
    "+1876": "Jamaica",
    # Satellites, and other networks without a country.
    "+870": "Inmarsat satellites",
    "+878": "universal personal numbers",
    "+881": "satellites (Globalstar, Iridium)",
    "+882": "international networks, among them satellites",
    "+883": "international networks",
    "+979": "international premium-rate numbers",
    "+808": "international shared-cost numbers",
    "+1600": "Canadian non-geographic numbers, among them satellites",
    "+61147": "Australian satellites",
    "+62868": "Indonesian satellites",
    "+7954": "Russian satellites",
    "+861349": "Chinese maritime satellites",
    "+861740": "Chinese satellites",
    # Others that cost many times as much as their neighbours.
    "+4470": "British personal numbers",
    "+6721": "Australian bases in Antarctica",
}
"""Prefixes in E.164, and what is there."""

_PREFIX: Final = re.compile(r"\+[0-9]{1,15}", re.ASCII)


@dataclass(frozen=True, slots=True)
class NumberPolicy:
    """What may be called. What is forbidden stays so, whatever is allowed."""

    region: str
    """The service's own, as an ISO 3166 code."""
    allowed: tuple[str, ...]
    """Prefixes in E.164 with their plus sign; `+` allows all that is not costly."""
    forbidden: tuple[str, ...] = ()

    def why_refused(self, e164: str) -> str | None:
        """Why a valid number may not be called, as the end of a sentence; None where it may."""
        if not e164.startswith(self.allowed) or e164.startswith(self.forbidden):
            return "is not among the numbers that this project may call"
        if is_ordinary(e164, self.region):
            return None
        costly = self._costly_range(e164)
        if costly is None:
            return None
        prefix, what = costly
        return (
            f"is in a costly range ({what}); the operator can allow it to this project "
            f"with the prefix {prefix}"
        )

    def _costly_range(self, e164: str) -> tuple[str, str] | None:
        """The costly range that a number is in and no prefix allows."""
        fitting = [prefix for prefix in self.allowed if e164.startswith(prefix)]
        longest = max(fitting, key=len, default="")
        for length in range(len(e164), 1, -1):
            prefix = e164[:length]
            if prefix in COSTLY_RANGES:
                if len(longest) >= length:
                    return None
                if region_of(e164) == self.region:
                    break
                return prefix, COSTLY_RANGES[prefix]
        kind = number_type(e164)
        code = country_code_of(e164)
        if kind in COSTLY_TYPES and len(longest) <= len(code):
            return e164[: len(code) + 3], "premium rate or shared cost"
        return None


def policy_of(
    allowed: tuple[str, ...] | None, forbidden: tuple[str, ...], region: str
) -> NumberPolicy:
    """The policy of a project; `allowed` is None for the numbers of the service's own country."""
    if allowed is None:
        allowed = (country_code(region),)
    return NumberPolicy(region, allowed, forbidden)


def parse_prefixes(text: str) -> tuple[str, ...]:
    """Prefixes of E.164 numbers, from a comma-separated list such as `+98, +4930`; `+` is all.

    Raises InvalidRequestError for what is no prefix.
    """
    prefixes = tuple(dict.fromkeys(filter(None, (word.strip() for word in text.split(",")))))
    check_prefixes(prefixes)
    return prefixes


def check_prefixes(prefixes: Iterable[str]) -> None:
    """Raises InvalidRequestError for what is no prefix of E.164 numbers."""
    for prefix in prefixes:
        if prefix != "+" and not _PREFIX.fullmatch(prefix):
            raise InvalidRequestError(
                f"{prefix[:32]!r} is no prefix of phone numbers; write a plus sign and digits, "
                "as in +98 or +4930"
            )
