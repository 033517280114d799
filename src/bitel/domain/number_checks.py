"""Checks whether a project may call a number: the form of the number, its prefixes, its price."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from bitel.domain.number_policy import NumberPolicy
from bitel.domain.phone_numbers import country_code_of, to_e164
from bitel.domain.pricing import Tariff
from bitel.errors import ForbiddenError, InvalidPhoneNumberError

_FIELD: Final = "phoneNumber"


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
