"""Phone numbers: what a client may write, and the E.164 form that is dialled and priced."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache

import phonenumbers

from bitel.errors import InvalidPhoneNumberError

LONGEST_WRITTEN = 32
"""Characters that a written number may have, spaces and dashes included."""

LONGEST_E164 = 15
"""Digits that a number has at most, its country code included (ITU-T E.164 §6.1)."""

# str.translate: Persian (U+06F0…) and Arabic-Indic (U+0660…) digits to ASCII.
_DIGITS = {0x06F0 + d: str(d) for d in range(10)} | {0x0660 + d: str(d) for d in range(10)}
_SEPARATORS = dict.fromkeys(map(ord, " -‐‑‒–\u00a0\u200c\u200e\u200f.()/"))


def to_e164(written: str, region: str) -> str:
    """The E.164 form, with its plus sign, of a number as a person in `region` writes it.

    `region` is an ISO 3166 code such as `IR`. A number may be local (`09121234567`) or
    international (`+98…`, `0098…`); spaces, dashes and Persian or Arabic digits are understood.
    Raises InvalidPhoneNumberError for what can't be a number.
    """
    common, code = _common_form(region)
    known = common(written)
    if known is not None:
        return code + known[1]
    if len(written) <= LONGEST_WRITTEN:
        plain = written.translate(_DIGITS).translate(_SEPARATORS)
        if plain.removeprefix("+").isascii() and plain.removeprefix("+").isdigit():
            known = common(plain)
            number = code + known[1] if known else _parse(plain, region)
            if number is not None:
                return number
    raise InvalidPhoneNumberError(
        f"phoneNumber {written[:LONGEST_WRITTEN]!r} is not a possible phone number; "
        f"write it as in {region} or with its country code (+98…)"
    )


@cache
def country_code(region: str) -> str:
    """The country code of a region, with its plus sign: `+98` for `IR`."""
    return f"+{phonenumbers.country_code_for_region(region)}"


@cache
def _common_form(region: str) -> tuple[Callable[[str], re.Match[str] | None], str]:
    """Matches what can be read without `phonenumbers`, which takes a hundred times as long.

    That is a number of the region's own plan, whole, after its country code or after a trunk
    prefix 0. Regions whose numbers are rewritten on the way, or that share a country code, have
    no such form: nothing matches then, and everything goes the long way.
    """
    code = country_code(region)
    pattern, lengths = _plain_plan(region, LONGEST_E164 + 1 - len(code))
    if not pattern:
        return re.compile(r"(?!)()").match, code
    whole = "|".join(rf"\d{{{length}}}" for length in lengths)
    number = rf"(?!0)(?=(?:{whole})\Z)(?:{pattern})\Z"
    return re.compile(rf"(?:\{code}|00{code[1:]}|0)({number})", re.ASCII).match, code


def _plain_plan(region: str, longest: int) -> tuple[str, tuple[int, ...]]:
    """The pattern and the lengths of a region's numbers; empty where they are not taken as such."""
    plan = phonenumbers.PhoneMetadata.metadata_for_region(region)
    if plan is None or plan.general_desc is None or plan.country_code is None:
        return "", ()
    numbers = plan.general_desc
    plain = (
        phonenumbers.region_code_for_country_code(plan.country_code) == region
        and plan.national_prefix == plan.national_prefix_for_parsing == "0"
        and plan.national_prefix_transform_rule is None
        and plan.international_prefix == "00"
        and max(numbers.possible_length) <= longest
    )
    return (numbers.national_number_pattern or "", numbers.possible_length) if plain else ("", ())


def _parse(plain: str, region: str) -> str | None:
    # 00 is understood as the international prefix also where a region's own is another.
    international = "+" + plain[2:] if plain.startswith("00") else plain
    try:
        number = phonenumbers.parse(international, region)
    except phonenumbers.NumberParseException:
        return None
    # A number that is only possible within its own area code can't be dialled from elsewhere.
    reason = phonenumbers.is_possible_number_with_reason(number)
    if reason != phonenumbers.ValidationResult.IS_POSSIBLE:
        return None
    e164 = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
    # The plan of some countries leaves room for more digits than E.164 has.
    return e164 if len(e164) <= 1 + LONGEST_E164 else None


def national(e164: str) -> str:
    """The national form of an E.164 number, digits only, as dialled there (`09121234567`)."""
    number = phonenumbers.parse(e164)
    text = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.NATIONAL)
    return "".join(c for c in text if c.isdigit())


def masked(number: str) -> str:
    """A number fit for a log: all but its first four and last two characters hidden."""
    if len(number) <= 6:
        return "*" * len(number)
    return f"{number[:4]}{'*' * (len(number) - 6)}{number[-2:]}"
