"""Which numbers a project may call: prefixes of E.164 numbers, and costly ranges.

A number may be called if it has an allowed prefix and no forbidden one. Costly ranges need an
allowed prefix that names the range: premium-rate and shared-cost numbers of any country, and those
of `COSTLY_RANGES`. That table does not apply to numbers of the service's own region. Toll-free and
universal access numbers (UAN) are ordinary, and so are other regions under the same country code
(Canada for the United States, Jersey for Great Britain).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from bitel.domain.phone_numbers import (
    COSTLY_TYPES,
    country_code,
    country_code_of,
    is_ordinary,
    number_type,
    region_of,
    to_e164,
)
from bitel.domain.pricing import Tariff
from bitel.errors import ForbiddenError, InvalidPhoneNumberError, InvalidRequestError

COSTLY_RANGES: Final = {
    # Caribbean countries under +1, with international rates.
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
    # Satellites and other international networks.
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
    # Others with a much higher price than their country code.
    "+4470": "British personal numbers",
    "+6721": "Australian bases in Antarctica",
}
"""E.164 prefixes, and what they are."""

_FIELD: Final = "phoneNumber"
_PREFIX: Final = re.compile(r"\+[0-9]{1,15}", re.ASCII)


@dataclass(frozen=True, slots=True)
class NumberPolicy:
    """Which numbers may be called. `forbidden` takes precedence over `allowed`."""

    region: str
    """The service's own, as an ISO 3166 code."""
    allowed: tuple[str, ...]
    """E.164 prefixes with their plus sign; `+` allows all numbers that are not costly."""
    forbidden: tuple[str, ...] = ()

    def why_refused(self, e164: str) -> str | None:
        """Why a valid number may not be called, as the end of a sentence; None if it may."""
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
        """The costly range of a number, unless a prefix allows it."""
        matching = [prefix for prefix in self.allowed if e164.startswith(prefix)]
        longest = max(matching, key=len, default="")
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


class NumberChecker:
    """Checks numbers for one project.

    Args:
        policy: which numbers the project may call; its region is that of national numbers.
        tariff: the tariff in force; a number must have a price in it.
        extra_prefixes: as in `bitel.domain.phone_numbers.to_e164`.
    """

    def __init__(
        self, policy: NumberPolicy, tariff: Tariff, extra_prefixes: Sequence[str] = ()
    ) -> None:
        self._policy, self._tariff, self._extra = policy, tariff, extra_prefixes

    def e164(self, written: str, field: str = _FIELD) -> str:
        """The E.164 form of a number that the project may call.

        `field` names the number in errors. Raises InvalidPhoneNumberError if it is not the number
        of a subscriber, ForbiddenError if the project may not call it or it has no price.
        """
        try:
            e164 = to_e164(written, self._policy.region, self._extra)
        except InvalidPhoneNumberError as fault:
            raise InvalidPhoneNumberError(str(fault).replace(_FIELD, field, 1)) from None
        refused = self._policy.why_refused(e164)
        if refused is None and not self._tariff.prices(e164):
            code = country_code_of(e164)
            refused = (
                f"has no price, since no line of the tariff begins with {code}; the operator can "
                f'add one with prefix = "{code}", or prefix = "+" for all numbers'
            )
        if refused is not None:
            raise ForbiddenError(f"{field} {written!r} {refused}")
        return e164


def policy_of(
    allowed: tuple[str, ...] | None, forbidden: tuple[str, ...], region: str
) -> NumberPolicy:
    """The policy of a project; `allowed` is None for the numbers of the service's own country."""
    if allowed is None:
        allowed = (country_code(region),)
    return NumberPolicy(region, allowed, forbidden)


def parse_prefixes(text: str) -> tuple[str, ...]:
    """Parse a comma-separated list of E.164 prefixes such as `+98, +4930`; `+` means all.

    Raises InvalidRequestError for a malformed prefix.
    """
    prefixes = tuple(dict.fromkeys(filter(None, (word.strip() for word in text.split(",")))))
    check_prefixes(prefixes)
    return prefixes


def check_prefixes(prefixes: Iterable[str]) -> None:
    """Raise InvalidRequestError for a malformed prefix."""
    for prefix in prefixes:
        if prefix != "+" and not _PREFIX.fullmatch(prefix):
            raise InvalidRequestError(
                f"{prefix[:32]!r} is no prefix of phone numbers; write a plus sign and digits, "
                "as in +98 or +4930"
            )
