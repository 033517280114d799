"""JSON in which decimals are numbers, written with exactly their digits.

The standard library writes no `Decimal`, and a float shows 15 digits of it for sure. Readers that
want them exactly parse numbers as decimals, as with `json.loads(text, parse_float=Decimal)`.
"""

from __future__ import annotations

import json
import re
import secrets
from decimal import Decimal
from typing import Any, Final

# What a client sends can't contain it, so that no string is taken for a number.
_MARK: Final = f"decimal-{secrets.token_hex(16)}:"
_MARKED: Final = re.compile(rf'"{_MARK}([^"]*)"')


def dumps(value: Any) -> str:
    """`value` as JSON without spaces; characters beyond ASCII stay as they are, NaN is refused."""
    text = _encode(value)
    return _MARKED.sub(r"\1", text) if _MARK in text else text


def number(amount: Decimal) -> str:
    """A finite decimal as a JSON number without exponent, with a decimal point: `-34.2`, `0.0`."""
    text = f"{amount:f}"
    if "." not in text:
        text += ".0"
    whole, _, fraction = text.partition(".")
    return f"{'0' if whole == '-0' and not amount else whole}.{fraction.rstrip('0') or '0'}"


def _written(value: Any) -> str:
    if isinstance(value, Decimal) and value.is_finite():
        return _MARK + number(value)
    raise TypeError(f"{value!r} can't be written as JSON")


_encode: Final = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_written
).encode
