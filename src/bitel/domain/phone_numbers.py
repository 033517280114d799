"""Phone numbers: parses what a client writes into the E.164 form that is dialled and priced."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from typing import Final

import phonenumbers
from phonenumbers import (
    PhoneMetadata,
    PhoneNumber,
    PhoneNumberDesc,
    PhoneNumberFormat,
    PhoneNumberType,
    ValidationResult,
    shortnumberinfo,
)

from bitel.errors import InvalidPhoneNumberError

LONGEST_WRITTEN: Final = 32
"""Characters of a written number, spaces and dashes included."""

LONGEST_E164: Final = 15
"""Digits of a number, its country code included (ITU-T E.164 §6.1)."""

COSTLY_TYPES: Final = frozenset({PhoneNumberType.PREMIUM_RATE, PhoneNumberType.SHARED_COST})
"""Types of number with a surcharge for the caller."""

_SHORTEST_FIXED_LINE: Final = {"IR": 7}
"""Minimum digits after the country code of a fixed line, by region. Iran's plan has numbers of four
digits after the area code, for a few switchboards; nearly always digits are missing instead.
`extra_prefixes` allows such a number."""

_SHORTEST_EXTRA: Final = 7
"""Minimum digits after the country code of a number in `extra_prefixes`, unless the prefix is the
whole number."""

_SEPARATORS: Final = frozenset("\t().（）．/／\u2212")
_SEPARATING_CATEGORIES: Final = frozenset({"Zs", "Pd", "Cf"})
"""Spaces, dashes, and invisible format characters: writing direction, zero width, byte order mark.
"""
_NO_REGION: Final = "001"
"""The region of country codes without a country, such as +882, in `phonenumbers`."""
_PLUS_SIGNS: Final = frozenset("+＋﹢")


def to_e164(written: str, region: str, extra_prefixes: Sequence[str] = ()) -> str:
    """The E.164 form, with its plus sign, of a number as it is written in `region`.

    It may be national (`09121234567`) or international (`+98…`, `0098…`), with digits of any
    script, spaces, dashes and invisible characters. It must be valid in its country's numbering
    plan, and its national form must parse as the same number.

    Args:
        written: at most `LONGEST_WRITTEN` characters.
        region: an ISO 3166 code such as `IR`.
        extra_prefixes: E.164 prefixes, with their plus sign, that are valid besides the known
            numbering plans; the number's length must still be possible.

    Raises InvalidPhoneNumberError if it is not a subscriber's number: an emergency number, a short
    code, or a number with missing digits.
    """
    common, code = _common_form(region)
    known = common(written)
    if known is not None:
        return code + known[1]
    if len(written) <= LONGEST_WRITTEN:
        plain = _without_separators(written)
        if plain.removeprefix("+").isascii() and plain.removeprefix("+").isdigit():
            known = common(plain)
            extra = tuple(extra_prefixes)
            number = code + known[1] if known else _parse(plain, region, extra)
            if number is not None:
                return number
    raise InvalidPhoneNumberError(
        f"phoneNumber {written[:LONGEST_WRITTEN]!r} is not the number of a subscriber; "
        f"write all its digits, as dialed within {region}, or with its country code (+98…)"
    )


_LAST_DIGITS: Final = 4


def number_test(
    e164: str, region: str, extra_prefixes: Sequence[str] = ()
) -> Callable[[str], bool]:
    """A function that returns whether a text is this number; arguments as those of `to_e164`."""
    last = e164[-_LAST_DIGITS:]

    def is_number(written: str) -> bool:
        # Most texts are not, and are not parsed.
        if len(written) > LONGEST_WRITTEN or not _without_separators(written).endswith(last):
            return False
        try:
            return to_e164(written, region, extra_prefixes) == e164
        except InvalidPhoneNumberError:
            return False

    return is_number


def load_all_plans() -> None:
    """Load the numbering plans of all countries, which are else read from files at first use."""
    PhoneMetadata.load_all()
    for region in phonenumbers.SUPPORTED_REGIONS:
        PhoneMetadata.short_metadata_for_region(region)


def is_ordinary(e164: str, region: str) -> bool:
    """Whether a number is known to be of `region`, valid and not costly.

    Fast; if it returns False, `number_type` and `region_of` decide.
    """
    common, _ = _common_form(region)
    return common(e164) is not None


def number_type(e164: str) -> int:
    """The type of a number, as in `phonenumbers.PhoneNumberType`."""
    return phonenumbers.number_type(phonenumbers.parse(e164))


def region_of(e164: str) -> str | None:
    """The ISO 3166 code of the region of a number; None if it is unknown."""
    return phonenumbers.region_code_for_number(phonenumbers.parse(e164))


def country_code_of(e164: str) -> str:
    """The country code of a number, with its plus sign."""
    return f"+{phonenumbers.parse(e164).country_code}"


@cache
def country_code(region: str) -> str:
    """The country code of a region, with its plus sign: `+98` for `IR`."""
    return f"+{phonenumbers.country_code_for_region(region)}"


def _without_separators(written: str) -> str:
    kept: list[str] = []
    for character in written:
        if character.isdecimal():
            kept.append(str(unicodedata.decimal(character)))
        elif character in _PLUS_SIGNS:
            kept.append("+")
        elif not (
            character in _SEPARATORS or unicodedata.category(character) in _SEPARATING_CATEGORIES
        ):
            kept.append(character)
    return "".join(kept)


@cache
def _common_form(region: str) -> tuple[Callable[[str], re.Match[str] | None], str]:
    """A regular expression for common numbers, a hundred times as fast as `phonenumbers`.

    It matches complete numbers of the region's plan that are not costly, after the country code or
    the trunk prefix 0. For regions that rewrite numbers or share a country code it matches nothing.
    """
    code = country_code(region)
    plan = _plain_plan(region, LONGEST_E164 + 1 - len(code))
    if plan is None:
        return re.compile(r"(?!)()").match, code
    costly = [_pattern(plan.premium_rate), _pattern(plan.shared_cost)]
    fixed_line = _pattern(plan.fixed_line, _SHORTEST_FIXED_LINE.get(region, 0))
    ordinary = [
        fixed_line,
        *map(
            _pattern,
            (plan.mobile, plan.toll_free, plan.voip, plan.personal_number, plan.pager, plan.uan,
             plan.voicemail),
        ),
    ]  # fmt: skip
    number = (
        rf"(?!0){_pattern(plan.general_desc, ahead='=')}"
        + "".join(f"(?!{each})" for each in costly if each)
        + f"(?:{'|'.join(each for each in ordinary if each)})"
    )
    return re.compile(rf"(?:\{code}|00{code[1:]}|0)({number})", re.ASCII).match, code


def _pattern(kind: PhoneNumberDesc | None, shortest: int = 0, ahead: str = "") -> str:
    """A pattern for the rest of a text that is a number of this kind; empty if there are none."""
    if kind is None or not kind.national_number_pattern:
        return ""
    lengths = [length for length in kind.possible_length if length >= shortest]
    # Without lengths of its own it has those of the whole plan, which are checked anyway.
    whole = "|".join(rf"\d{{{length}}}" for length in lengths)
    length = rf"(?=(?:{whole})\Z)" if whole else ""
    matched = rf"{length}(?:{kind.national_number_pattern})\Z"
    return f"(?{ahead}{matched})" if ahead else matched


def _plain_plan(region: str, longest: int) -> PhoneMetadata | None:
    """The numbering plan of a region that rewrites no numbers; None for other regions."""
    plan = PhoneMetadata.metadata_for_region(region)
    if plan is None or plan.general_desc is None or plan.country_code is None:
        return None
    is_plain = (
        phonenumbers.region_code_for_country_code(plan.country_code) == region
        and plan.national_prefix == plan.national_prefix_for_parsing == "0"
        and plan.national_prefix_transform_rule is None
        and plan.international_prefix == "00"
        and max(plan.general_desc.possible_length) <= longest
    )
    return plan if is_plain else None


def _parse(plain: str, region: str, extra_prefixes: tuple[str, ...]) -> str | None:
    # 00 is accepted as the international prefix in every region.
    international = "+" + plain[2:] if plain.startswith("00") else plain
    try:
        number = phonenumbers.parse(international, region)
    except phonenumbers.NumberParseException:
        return None
    e164 = phonenumbers.format_number(number, PhoneNumberFormat.E164)
    # The plans of some countries allow more digits than E.164.
    if len(e164) > 1 + LONGEST_E164:
        return None
    if e164.startswith(extra_prefixes):
        is_number = _is_extra(number, shortest=0 if e164 in extra_prefixes else _SHORTEST_EXTRA)
    else:
        is_number = _is_valid(number)
    return e164 if is_number and _is_read_again(number, e164) else None


def _is_valid(number: PhoneNumber) -> bool:
    if not phonenumbers.is_valid_number(number):
        return False
    shortest = _SHORTEST_FIXED_LINE.get(phonenumbers.region_code_for_number(number) or "", 0)
    return (
        len(phonenumbers.national_significant_number(number)) >= shortest
        or phonenumbers.number_type(number) != PhoneNumberType.FIXED_LINE
    )


def _is_extra(number: PhoneNumber, shortest: int) -> bool:
    """Whether a number outside the known plans is possible: not local only, not a short code."""
    if phonenumbers.is_possible_number_with_reason(number) != ValidationResult.IS_POSSIBLE:
        return False
    digits = phonenumbers.national_significant_number(number)
    if len(digits) < shortest:
        return False
    region = phonenumbers.region_code_for_country_code(number.country_code or 0)
    plan = PhoneMetadata.metadata_for_region(region)
    trunk_prefix = plan.national_prefix if plan else None
    if trunk_prefix and digits.startswith(trunk_prefix):
        return False
    return not any(
        shortnumberinfo.is_emergency_number(digits, each)
        or shortnumberinfo.is_valid_short_number_for_region(
            PhoneNumber(number.country_code, int(digits)), each
        )
        for each in phonenumbers.region_codes_for_country_code(number.country_code or 0)
    )


def _is_read_again(number: PhoneNumber, e164: str) -> bool:
    """Whether the national form parses as the same number; else it would reach another one."""
    region = phonenumbers.region_code_for_number(
        number
    ) or phonenumbers.region_code_for_country_code(number.country_code or 0)
    if region == _NO_REGION:
        return True  # it has no national form
    try:
        again = phonenumbers.parse(_national(number), region)
    except phonenumbers.NumberParseException:
        return False
    return phonenumbers.format_number(again, PhoneNumberFormat.E164) == e164


def national(e164: str) -> str:
    """The national form of an E.164 number, digits only, as dialled there (`09121234567`)."""
    return _national(phonenumbers.parse(e164))


def _national(number: PhoneNumber) -> str:
    text = phonenumbers.format_number(number, PhoneNumberFormat.NATIONAL)
    return "".join(c for c in text if c.isdigit())


def masked(number: str) -> str:
    """A number for the log: all but its first four and last two characters hidden."""
    if len(number) <= 6:
        return "*" * len(number)
    return f"{number[:4]}{'*' * (len(number) - 6)}{number[-2:]}"
