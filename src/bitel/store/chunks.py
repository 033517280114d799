"""Long lists of identifiers, in pieces that an IN list may hold."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import islice
from typing import Final

LONGEST: Final = 1000
"""Values in one IN list."""


def in_chunks(ids: Collection[str]) -> Iterator[dict[str, list[str]]]:
    """The values in their order, as parameters `ids` of up to `LONGEST` each."""
    rest = iter(ids)
    while chunk := list(islice(rest, LONGEST)):
        yield {"ids": chunk}


def in_equal_chunks(ids: Collection[str], size: int) -> Iterator[dict[str, list[str]]]:
    """As `in_chunks`, with exactly `size` values each: what is missing is filled with empty ones.

    A statement then has the same text each time, of which drivers keep the compiled form: one of
    every length would push out those of statements that are needed all the time.
    """
    rest = iter(ids)
    while chunk := list(islice(rest, size)):
        yield {"ids": chunk + [""] * (size - len(chunk))}
