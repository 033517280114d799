"""Which numbers a project may call: prefixes that are allowed, prefixes that are not."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import phonenumbers

from bitel.errors import InvalidRequestError

_PREFIX: Final = re.compile(r"\+[0-9]{1,15}", re.ASCII)


def permitted(
    e164: str, allowed: Iterable[str] | None, forbidden: Iterable[str], home: str
) -> bool:
    """Whether a number in E.164 may be called; what is forbidden is so even within the allowed.

    `allowed` None leaves only `home`, the prefix of the service's own country: calls abroad are
    off until somebody switches them on.
    """
    within = (home,) if allowed is None else tuple(allowed)
    return e164.startswith(within) and not e164.startswith(tuple(forbidden))


def home_prefix(region: str) -> str:
    """The prefix of a country's numbers: `+98` for `IR`."""
    return f"+{phonenumbers.country_code_for_region(region)}"


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
