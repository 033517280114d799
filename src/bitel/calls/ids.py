"""Identifiers: 32 hex characters that sort by the time they were made (UUIDv7, RFC 9562 §5.7)."""

from __future__ import annotations

import os
from array import array

_VERSION_7 = 0x7 << 76
_VARIANT = 0b10 << 62


def new_id(now: float) -> str:
    """An identifier made at `now` (Unix seconds): 48 bits of milliseconds, 74 random bits."""
    return _id(int(now * 1000), int.from_bytes(os.urandom(10), "big") >> 6)


def new_ids(now: float, count: int) -> list[str]:
    """`count` identifiers made at `now` that sort in the order given (RFC 9562 §6.2, method 2)."""
    milliseconds = int(now * 1000)
    # A clear top bit leaves room to count upwards from.
    random = int.from_bytes(os.urandom(10), "big") >> 7
    ids = []
    for step in array("I", os.urandom(4 * count)):
        random += step + 1
        ids.append(_id(milliseconds, random))
    return ids


def _id(milliseconds: int, random: int) -> str:
    rand_a = random >> 62
    rand_b = random & ((1 << 62) - 1)
    value = (milliseconds << 80) | _VERSION_7 | (rand_a << 64) | _VARIANT | rand_b
    return f"{value:032x}"


def is_id(text: str) -> bool:
    """Whether `text` has the form of an identifier: 32 lower-case hex characters."""
    return len(text) == 32 and all(c in "0123456789abcdef" for c in text)
