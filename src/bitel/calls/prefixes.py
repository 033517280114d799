"""Reads and checks prefixes of E.164 numbers, such as +98."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from bitel.errors import InvalidRequestError

_PREFIX: Final = re.compile(r"\+[0-9]{1,15}", re.ASCII)


def parse_prefixes(text: str) -> tuple[str, ...]:
    """Prefixes of E.164 numbers, from a comma-separated list such as `+98, +4930`; `+` is all.

    Raises InvalidRequestError for what is no prefix.
    """
    prefixes = tuple(dict.fromkeys(filter(None, (word.strip() for word in text.split(",")))))
    check_prefixes(prefixes)
    return prefixes


def check_prefixes(prefixes: Iterable[str]) -> None:
    """Raises InvalidRequestError for what is no prefix of E.164 numbers."""
    for prefix in prefixes:
        if prefix != "+" and not _PREFIX.fullmatch(prefix):
            raise InvalidRequestError(
                f"{prefix[:32]!r} is no prefix of phone numbers; write a plus sign and digits, "
                "as in +98 or +4930"
            )
