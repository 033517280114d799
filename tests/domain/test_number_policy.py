"""Which numbers a project may call."""

from __future__ import annotations

import phonenumbers
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.domain.number_policy import (
    COSTLY_RANGES,
    check_prefixes,
    parse_prefixes,
    policy_of,
)
from bitel.domain.phone_numbers import COSTLY_TYPES, country_code
from bitel.errors import InvalidRequestError

HOME, ABROAD = "+989121234567", "+4930123456"
prefixes = st.lists(st.from_regex(r"\A\+[0-9]{0,4}\Z"), max_size=3).map(tuple)


def allows(
    number: str,
    allowed: tuple[str, ...] | None,
    forbidden: tuple[str, ...] = (),
    region: str = "IR",
) -> bool:
    return policy_of(allowed, forbidden, region).why_refused(number) is None


def test_calls_abroad_are_off_until_they_are_switched_on() -> None:
    assert allows(HOME, None)
    assert not allows(ABROAD, None)
    assert allows(ABROAD, ("+98", "+49"))
    assert allows(ABROAD, ("+",))


@pytest.mark.parametrize(
    ("region", "number"), [("IR", HOME), ("DE", ABROAD), ("US", "+12125551234")]
)
def test_calls_within_the_services_country_are_on(region: str, number: str) -> None:
    assert allows(number, None, region=region)
    assert not allows(number, None, region="FR")
    assert not allows(number, None, (number[:5],), region)


def test_no_prefix_at_all_allows_nothing() -> None:
    assert not allows(HOME, ())


@given(prefixes, prefixes)
def test_what_is_forbidden_is_so_whatever_is_allowed(
    allowed: tuple[str, ...], forbidden: tuple[str, ...]
) -> None:
    expected = any(HOME.startswith(one) for one in allowed) and not any(
        HOME.startswith(one) for one in forbidden
    )
    assert allows(HOME, allowed, forbidden) is expected


@pytest.mark.parametrize(
    ("number", "too_wide", "wide_enough"),
    [
        ("+18765551234", "+1", "+1876"),
        ("+18765551234", "+", "+18765"),
        ("+12684641234", "+1", "+1268"),
        ("+19002345678", "+1", "+1900"),
        ("+881612345678", "+", "+881"),
        ("+870773123456", "+", "+870"),
        ("+882160123456", "+", "+882"),
        ("+979123456789", "+", "+979"),
        ("+447012345678", "+44", "+4470"),
        ("+449012345678", "+44", "+4490"),
        ("+61147101234", "+61", "+61147"),
        ("+499001234567", "+49", "+49900"),
    ],
)
def test_a_costly_range_must_be_allowed_by_a_prefix_of_its_own(
    number: str, too_wide: str, wide_enough: str
) -> None:
    said = policy_of((too_wide,), (), "IR").why_refused(number)
    assert said is not None
    assert "costly range" in said
    assert said.rpartition(" ")[2] in number
    assert allows(number, (too_wide, said.rpartition(" ")[2]))
    assert allows(number, (too_wide, wide_enough))
    assert not allows(number, (wide_enough,), (wide_enough,))


@pytest.mark.parametrize(
    ("region", "number"),
    [
        ("US", "+14165551234"),  # Canada
        ("US", "+17875551234"),  # Puerto Rico
        ("US", "+18005551234"),  # toll-free
        ("GB", "+441534123456"),  # Jersey
        ("GB", "+447781123456"),  # Guernsey
        ("GB", "+447624123456"),  # the Isle of Man
        ("GB", "+448001111111"),  # toll-free
        ("IR", "+989601"),  # a UAN
        ("JM", "+18765551234"),  # at home in the Caribbean
        ("DE", "+498001234567"),
        ("FR", "+33800123456"),
        ("KZ", "+77710009998"),
    ],
)
def test_toll_free_numbers_uans_and_neighbours_are_not_costly(region: str, number: str) -> None:
    assert allows(number, None, region=region)


def test_every_premium_or_shared_cost_example_is_refused_at_home() -> None:
    checked = 0
    for region in sorted(phonenumbers.SUPPORTED_REGIONS):
        for kind in COSTLY_TYPES:
            example = phonenumbers.example_number_for_type(region, kind)
            if example is None:
                continue
            e164 = phonenumbers.format_number(example, phonenumbers.PhoneNumberFormat.E164)
            assert not allows(e164, None, region=region), (region, e164)
            assert allows(e164, (e164[:-1],), region=region)
            checked += 1
    assert checked > 100


def test_ordinary_examples_are_allowed_at_home_and_where_everything_is() -> None:
    ordinary = {
        phonenumbers.PhoneNumberType.FIXED_LINE,
        phonenumbers.PhoneNumberType.MOBILE,
        phonenumbers.PhoneNumberType.TOLL_FREE,
        phonenumbers.PhoneNumberType.UAN,
    }
    for region in sorted(phonenumbers.SUPPORTED_REGIONS):
        for kind in ordinary:
            example = phonenumbers.example_number_for_type(region, kind)
            if example is None or phonenumbers.number_type(example) in COSTLY_TYPES:
                continue
            e164 = phonenumbers.format_number(example, phonenumbers.PhoneNumberFormat.E164)
            assert allows(e164, None, region=region), (region, e164)
            if not e164.startswith(tuple(COSTLY_RANGES)):
                assert allows(e164, ("+",)), (region, e164)


def test_costly_ranges_are_prefixes_that_share_a_country_code_or_have_none() -> None:
    check_prefixes(COSTLY_RANGES)
    home = {country_code(region) for region in phonenumbers.SUPPORTED_REGIONS}
    assert not home & set(COSTLY_RANGES)


def test_a_list_of_prefixes_is_read() -> None:
    assert parse_prefixes(" +98, +4930,,+98 ") == ("+98", "+4930")
    assert parse_prefixes("+") == ("+",)
    assert parse_prefixes("") == ()


@pytest.mark.parametrize("wrong", ["98", "+98x", "+" + "1" * 16, "+۹۸", "-1", "+9 8"])
def test_what_is_no_prefix_is_refused(wrong: str) -> None:
    with pytest.raises(InvalidRequestError, match="prefix"):
        parse_prefixes(wrong)
    with pytest.raises(InvalidRequestError):
        check_prefixes(["+98", wrong])
