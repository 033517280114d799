"""Identifiers: 32 hex characters that sort by the time they were made (UUIDv7, RFC 9562 §5.7)."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator

_VERSION_7 = 0x7 << 76
_VARIANT = 0b10 << 62
_RAND_B = (1 << 62) - 1


def new_id(now: float) -> str:
    """An identifier made at `now` (Unix seconds): 48 bits of milliseconds, 74 random bits."""
    return _id(int(now * 1000), int.from_bytes(os.urandom(10), "big") >> 6)


def first_id_at(at: float) -> str:
    """An identifier that sorts before all that were made at `at` (Unix seconds) or later."""
    return f"{max(0, int(at * 1000)):012x}{'0' * 20}"


def new_ids(now: float, count: int) -> list[str]:
    """`count` identifiers made at `now` that sort in the order given (RFC 9562 §6.2, method 2)."""
    milliseconds = int(now * 1000)
    # 73 bits: a clear top bit leaves room for the steps.
    random = int.from_bytes(os.urandom(10), "big") >> 7
    steps = array("I", os.urandom(4 * count))
    if (random & _RAND_B) + (count << 32) > _RAND_B:
        return [_id(milliseconds, each) for each in _counted(random, steps)]
    # The steps change the last 62 bits only, so the first 16 characters are the same in all.
    first = _id(milliseconds, random)
    start = first[:16]
    return [f"{start}{each:016x}" for each in _counted(int(first[16:], 16), steps)]


def _counted(start: int, steps: Iterable[int]) -> Iterator[int]:
    """Running sums from `start`; each is higher by a step plus 1."""
    for step in steps:
        start += step + 1
        yield start


def _id(milliseconds: int, random: int) -> str:
    rand_a = random >> 62
    rand_b = random & _RAND_B
    value = (milliseconds << 80) | _VERSION_7 | (rand_a << 64) | _VARIANT | rand_b
    return f"{value:032x}"


def is_id(text: str) -> bool:
    """Whether `text` has the form of an identifier: 32 lower-case hex characters."""
    return len(text) == 32 and all(c in "0123456789abcdef" for c in text)
