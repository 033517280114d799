"""Recipients: the persons that a batch calls, each with a number and what is particular to them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final, NamedTuple

NO_VARIABLES: Final[Mapping[str, str]] = MappingProxyType({})

LONGEST_REFERENCE: Final = 100
"""Characters."""
MOST_PACKED: Final = 1 << 23
"""Bytes that a packed piece of a list may unpack to."""

_encode: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Recipient(NamedTuple):
    """A person to call."""

    phone_number: str
    """As the client wrote it."""
    reference: str | None = None
    """The client's own name for the call, up to 100 characters."""
    variables: Mapping[str, str] = NO_VARIABLES
    """Values of the variables of a text, by name."""
    time_zone: str | None = None
    """An IANA name such as Asia/Tehran; None: as the number says."""
    line: int | None = None
    """The row in the uploaded list, from 1 on; None where there is no list."""


def pack(recipients: Sequence[Recipient]) -> bytes:
    """The compressed JSON of a piece of a list."""
    # A lone surrogate of a file has no UTF-8 form.
    return zlib.compress(_encode([_plain(each) for each in recipients]).encode("utf-8", "replace"))


def unpack(packed: bytes) -> list[Recipient]:
    """The recipients of `pack`. Raises ValueError for what is none of its results."""
    reader = zlib.decompressobj()
    try:
        text = reader.decompress(packed, MOST_PACKED)
    except zlib.error as fault:
        raise ValueError("a piece of a list is not compressed by zlib") from fault
    if not reader.eof or reader.unused_data:
        raise ValueError("a piece of a list is cut short or too long")
    found = json.loads(text)
    if not isinstance(found, list):
        raise ValueError("a piece of a list holds no list")
    return [_checked(each) for each in found]


def _plain(recipient: Recipient) -> list[object]:
    number, reference, variables, time_zone, line = recipient
    return [
        number,
        reference,
        variables if type(variables) is dict else {**variables},
        time_zone,
        line,
    ]


def _checked(row: object) -> Recipient:
    if type(row) is list and len(row) == 5:
        number, reference, variables, time_zone, line = row
        if (
            type(number) is str
            and (reference is None or type(reference) is str)
            and type(variables) is dict
            and all(type(value) is str for value in variables.values())
            and (time_zone is None or type(time_zone) is str)
            and (line is None or type(line) is int)
        ):
            return Recipient(number, reference, variables, time_zone, line)
    raise ValueError("a piece of a list holds something that is no recipient")
