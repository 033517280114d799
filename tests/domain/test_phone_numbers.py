"""Phone numbers as people write them."""

from __future__ import annotations

import re

import phonenumbers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitel.domain.phone_numbers import (
    COSTLY_TYPES,
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
        "\u202a09121234567\u202c",
        "\u202e09121234567\u202c",
        "\u2066\u2067\u206809121234567\u2069",
        "\u061c0912\u200b123\u200d4567\ufeff\u2060\u00ad",
        "0912\u2009123\u202f4567\u2003\u3000",
        "\t0912\t123\t4567",
        "０９１２１２３４５６７",
        "＋９８ ９１２ １２３ ４５６７",
        "०९१२१२३४५६७",
        "0912\u2212123\u20144567",
        "0912－123﹣4567",
    ],
)
def test_every_way_to_write_a_mobile_number(written: str) -> None:
    assert to_e164(written, "IR") == MOBILE


def test_a_local_number_is_read_in_its_region() -> None:
    assert to_e164("030 123456", "DE") == "+4930123456"
    assert to_e164("(201) 555-1234", "US") == "+12015551234"
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
        "0912",
        "0110",
        "0115",
        "0912123450",
        "+98912123450",
        "0219100",
        "0219",
        "021",
        "110",
        "112",
        "+98110",
        "0098125",
        "1500",
        "08001234567",  # no such area code
        "09" * 5 + "1",
    ],
)
def test_what_is_no_subscribers_number_is_refused(written: str) -> None:
    with pytest.raises(InvalidPhoneNumberError, match="not the number of a subscriber"):
        to_e164(written, "IR")


@pytest.mark.parametrize(
    ("written", "e164"),
    [("02191234", "+982191234"), ("021 2222 2", "+982122222"), ("02191000000", "+982191000000")],
)
def test_short_numbers_that_the_plan_has_are_taken(written: str, e164: str) -> None:
    assert to_e164(written, "IR") == e164
    assert national(e164) == re.sub(r"\s", "", written)


def every_example() -> list[tuple[str, str]]:
    """A region and a number of it, of each type that it has."""
    found = []
    for region in sorted(phonenumbers.SUPPORTED_REGIONS):
        for kind in sorted(phonenumbers.PhoneNumberType.values()):
            example = phonenumbers.example_number_for_type(region, kind)
            if example is not None:
                e164 = phonenumbers.format_number(example, phonenumbers.PhoneNumberFormat.E164)
                found.append((region, e164))
    return found


def test_an_example_of_every_type_and_region_is_taken_in_both_forms() -> None:
    examples = every_example()
    assert len(examples) > 900
    for region, e164 in examples:
        assert to_e164(e164, region) == to_e164(e164, "IR") == e164
        assert to_e164(national(e164), region) == e164


def test_emergency_numbers_of_all_regions_are_refused() -> None:
    for region in sorted(phonenumbers.SUPPORTED_REGIONS):
        for digits in ("110", "112", "113", "115", "117", "118", "119", "15", "17", "18", "911",
                       "999", "000", "111", "190", "192", "193"):  # fmt: skip
            if not phonenumbers.is_emergency_number(digits, region):
                continue
            code = country_code(region)
            for written in (digits, f"0{digits}", f"00{code[1:]}{digits}", code + digits):
                for extra in ((), (code,), ("+",)):
                    with pytest.raises(InvalidPhoneNumberError):
                        to_e164(written, region, extra)


NEW_RANGE = "+98987"


def test_a_new_range_is_taken_where_the_settings_name_it() -> None:
    for written in ("09871234567", "+989871234567", "0098 987 123 4567"):
        with pytest.raises(InvalidPhoneNumberError):
            to_e164(written, "IR")
        assert to_e164(written, "IR", (NEW_RANGE,)) == "+989871234567"
    assert to_e164("0219100", "IR", ("+98219100",)) == "+98219100"
    for short in ("098712", "+98 987 1234 567 890", "09861234567", "0912"):
        with pytest.raises(InvalidPhoneNumberError):
            to_e164(short, "IR", (NEW_RANGE,))
    with pytest.raises(InvalidPhoneNumberError):
        to_e164("0912", "IR", ("+98",))  # +980912: begins with the trunk prefix


@given(st.data())
def test_invisible_characters_and_separators_change_nothing(data: st.DataObject) -> None:
    written = data.draw(st.sampled_from(["09121234567", "+989121234567", "00989121234567"]))
    hidden = st.text(st.characters(categories=["Zs", "Cf", "Pd"]), max_size=2)
    spread = "".join(character + data.draw(hidden) for character in written)
    if len(spread) <= LONGEST_WRITTEN:
        assert to_e164(spread, "IR") == MOBILE


@given(st.text(max_size=50) | st.text("+0123456789 -۰۹", max_size=LONGEST_WRITTEN))
def test_whatever_is_written_becomes_e164_or_is_refused(written: str) -> None:
    try:
        e164 = to_e164(written, "IR")
    except InvalidPhoneNumberError:
        return
    assert re.fullmatch(r"\+[1-9][0-9]{1,14}", e164)
    assert to_e164(e164, "IR") == to_e164(e164, "US") == e164


@given(st.from_regex(r"9(0[1-5]|1[0-9]|3[0-9]|2[0-3])[0-9]{7}", fullmatch=True))
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


PLAIN = [region for region in sorted(phonenumbers.SUPPORTED_REGIONS) if _plain_plan(region, 13)]
"""Regions whose numbers are read without `phonenumbers` where they have the common form."""


def by_the_book(written: str, region: str) -> str | None:
    """The long way, for comparison."""
    try:
        number = phonenumbers.parse(written, region)
    except phonenumbers.NumberParseException:
        return None
    costly = phonenumbers.number_type(number) in COSTLY_TYPES
    if costly or not phonenumbers.is_valid_number(number):
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
    plan = _plain_plan(region, 13)
    assert plan is not None
    assert plan.general_desc is not None
    pattern = plan.general_desc.national_number_pattern
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
