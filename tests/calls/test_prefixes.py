"""Prefixes of phone numbers, as operators write them."""

from __future__ import annotations

import pytest

from bitel.calls.prefixes import check_prefixes, parse_prefixes
from bitel.errors import InvalidRequestError


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
