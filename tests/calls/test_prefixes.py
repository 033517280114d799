"""Which numbers a project may call."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.calls.prefixes import check_prefixes, home_prefix, parse_prefixes, permitted
from bitel.errors import InvalidRequestError

HOME, ABROAD = "+989121234567", "+4930123456"
prefixes = st.lists(st.from_regex(r"\A\+[0-9]{0,4}\Z"), max_size=3)


def test_calls_abroad_are_off_until_they_are_switched_on() -> None:
    assert permitted(HOME, None, (), "+98")
    assert not permitted(ABROAD, None, (), "+98")
    assert permitted(ABROAD, ("+98", "+49"), (), "+98")
    assert permitted(ABROAD, ("+",), (), "+98")


def test_no_prefix_at_all_allows_nothing() -> None:
    assert not permitted(HOME, (), (), "+98")


@given(prefixes, prefixes)
def test_what_is_forbidden_is_so_whatever_is_allowed(
    allowed: list[str], forbidden: list[str]
) -> None:
    expected = any(HOME.startswith(one) for one in allowed) and not any(
        HOME.startswith(one) for one in forbidden
    )
    assert permitted(HOME, allowed, forbidden, "+98") is expected


@pytest.mark.parametrize(("region", "prefix"), [("IR", "+98"), ("DE", "+49"), ("US", "+1")])
def test_a_country_has_its_prefix(region: str, prefix: str) -> None:
    assert home_prefix(region) == prefix


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
