"""JSON encoder that writes `Decimal` as a number with all its digits.

The standard library does not encode `Decimal`, and a float keeps only 15 digits. Readers get the
exact value by `json.loads(text, parse_float=Decimal)`.
"""

from __future__ import annotations

import json
import re
import secrets
from decimal import Decimal
from typing import Any, Final

# Random, so that no string of a client can contain it.
_MARK: Final = f"decimal-{secrets.token_hex(16)}:"
_MARKED: Final = re.compile(rf'"{_MARK}([^"]*)"')


def dumps(value: Any) -> str:
    """`value` as JSON without spaces or ASCII escapes. Raises ValueError for NaN and infinity."""
    text = _encode(value)
    return _MARKED.sub(r"\1", text) if _MARK in text else text


def number(amount: Decimal) -> str:
    """A finite decimal as a JSON number without exponent, with a decimal point: `-34.2`, `0.0`."""
    text = f"{amount:f}"
    if "." not in text:
        text += ".0"
    whole, _, fraction = text.partition(".")
    return f"{'0' if whole == '-0' and not amount else whole}.{fraction.rstrip('0') or '0'}"


def _encode_decimal(value: Any) -> str:
    if isinstance(value, Decimal) and value.is_finite():
        return _MARK + number(value)
    raise TypeError(f"{value!r} can't be written as JSON")


_encode: Final = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_encode_decimal
).encode
