"""Phone numbers as people write them."""

from __future__ import annotations

import re

import phonenumbers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitel.calls.numbers import (
    LONGEST_WRITTEN,
    _common_form,
    _plain_plan,
    country_code,
    masked,
    national,
    to_e164,
)
from bitel.errors import InvalidPhoneNumberError

MOBILE = "+989121234567"


@pytest.mark.parametrize(
    "written",
    [
        "09121234567",
        "9121234567",
        "+989121234567",
        "00989121234567",
        "0912 123 4567",
        "0912-123-4567",
        "(0912) 123.45.67",
        "۰۹۱۲۱۲۳۴۵۶۷",
        "٠٩١٢١٢٣٤٥٦٧",
        "+۹۸ ۹۱۲ ۱۲۳ ۴۵۶۷",
        "\u200e0912\u00a0123\u200c4567\u200f",
    ],
)
def test_every_way_to_write_a_mobile_number(written: str) -> None:
    assert to_e164(written, "IR") == MOBILE


def test_a_local_number_is_read_in_its_region() -> None:
    assert to_e164("030 123456", "DE") == "+4930123456"
    assert to_e164("(201) 555-0123", "US") == "+12015550123"
    assert to_e164("00989121234567", "US") == MOBILE


@pytest.mark.parametrize(
    "written",
    [
        "",
        " ",
        "+",
        "00",
        "abc",
        "0912123456x",
        "0912+1234567",
        "++989121234567",
        "12",
        "1" * (LONGEST_WRITTEN + 1),
        "09121234567;ext=5",
        "sip:09121234567",
        "0912²1234567",
        "09121234567\r\nX: y",
        "+999123456789",
        "+49" + "3" * 15,  # possible there, but more digits than E.164 has
        "\ud800",
    ],
)
def test_what_is_no_possible_number_is_refused(written: str) -> None:
    with pytest.raises(InvalidPhoneNumberError, match="not a possible phone number"):
        to_e164(written, "IR")


@given(st.text(max_size=50) | st.text("+0123456789 -۰۹", max_size=LONGEST_WRITTEN))
def test_whatever_is_written_becomes_e164_or_is_refused(written: str) -> None:
    try:
        e164 = to_e164(written, "IR")
    except InvalidPhoneNumberError:
        return
    assert re.fullmatch(r"\+[1-9][0-9]{1,14}", e164)
    assert to_e164(e164, "IR") == to_e164(e164, "US") == e164


@given(st.from_regex(r"9[0-9]{9}", fullmatch=True))
def test_national_and_back(mobile: str) -> None:
    e164 = to_e164(f"0{mobile}", "IR")
    assert national(e164) == f"0{mobile}"


@given(st.text(max_size=40))
def test_a_masked_number_shows_six_characters_at_most(number: str) -> None:
    hidden = masked(number)
    if len(number) <= 6:
        assert hidden == "*" * len(number)
    else:
        assert hidden == number[:4] + "*" * (len(number) - 6) + number[-2:]


PLAIN = [region for region in sorted(phonenumbers.SUPPORTED_REGIONS) if _plain_plan(region, 13)[0]]
"""Regions whose numbers are read without `phonenumbers` where they have the common form."""


def by_the_book(written: str, region: str) -> str | None:
    """The long way, for comparison."""
    try:
        number = phonenumbers.parse(written, region)
    except phonenumbers.NumberParseException:
        return None
    reason = phonenumbers.is_possible_number_with_reason(number)
    if reason != phonenumbers.ValidationResult.IS_POSSIBLE:
        return None
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)


def shortcut(written: str, region: str) -> str | None:
    common, code = _common_form(region)
    found = common(written)
    return code + found[1] if found else None


@given(st.data())
@settings(max_examples=400)
def test_the_short_way_agrees_with_the_long_one(data: st.DataObject) -> None:
    region = data.draw(st.one_of(st.just("IR"), st.sampled_from(PLAIN)))
    pattern = _plain_plan(region, 13)[0]
    digits = st.one_of(
        st.from_regex(rf"\A(?:{pattern})\Z", alphabet="0123456789"),
        st.text("0123456789", min_size=3, max_size=13),
    )
    code = country_code(region)
    lead = data.draw(st.sampled_from(["0", code, "00" + code[1:], "", "00", "+"]))
    written = lead + data.draw(digits)
    found = shortcut(written, region)
    if found is not None:
        international = "+" + written[2:] if written.startswith("00") else written
        assert found == by_the_book(international, region)


@given(st.integers(0, 10**9 - 1), st.sampled_from(["0", "+98", "0098"]))
def test_mobile_numbers_of_the_usual_region_take_the_short_way(n: int, lead: str) -> None:
    written = f"{lead}912{n % 10**7:07d}"
    assert shortcut(written, "IR") == to_e164(written, "IR") == f"+98912{n % 10**7:07d}"


def test_regions_that_rewrite_numbers_take_the_long_way() -> None:
    # Argentina moves a 15 to a 9, Italy keeps its zero, the US have no trunk 0, Jersey shares +44.
    assert not {"AR", "IT", "US", "JE", "MX", "BR"} & set(PLAIN)
    assert {"IR", "FR", "TR"} <= set(PLAIN)
    for region in ("AR", "IT", "US", "JE"):
        example = phonenumbers.example_number(region)
        assert example is not None
        e164 = phonenumbers.format_number(example, phonenumbers.PhoneNumberFormat.E164)
        assert shortcut(e164, region) is None
        assert to_e164(e164, region) == e164
