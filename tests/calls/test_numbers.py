"""Phone numbers as people write them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.calls.numbers import LONGEST_WRITTEN, masked, national, to_e164
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
