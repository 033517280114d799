"""Reads lists of phone numbers for `bitel batch`: one per line, or a file of a spreadsheet.

`bitel.recipient_lists` parses the file: CSV in UTF-8 or UTF-16, or XLSX. Here the column is found
by its content, and an ambiguous one is an error. Numbers that are equal in E.164 form are kept
once.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from bitel.errors import (
    BitelError,
    InvalidPhoneNumberError,
    InvalidRequestError,
    PayloadTooLargeError,
    UnsupportedMediaError,
)
from bitel.recipient_lists.columns import is_recipient_field, number_columns
from bitel.recipient_lists.text import IsNumber, Row, csv_rows

MOST_SHOWN: Final = 5
"""Duplicates and columns listed in a message."""

_PLACE: Final = re.compile(r"\bphoneNumbers\[(\d+)\]")

E164 = Callable[[str], str | None]
"""Returns the E.164 form of a number as written; None if it is not valid."""


@dataclass(frozen=True, slots=True)
class NumberList:
    """The distinct numbers of a file, as written."""

    numbers: Sequence[str]
    places: Sequence[str]
    """The place of each: `line 3`, or `line 3, column 'phone'`."""
    duplicates: Sequence[str]
    """A description of each omitted number: `line 7 repeats line 3`."""


def read_number_list(
    raw: bytes, name: str, column: str | None, region: str, extra_prefixes: Sequence[str] = ()
) -> NumberList:
    """Parse a file.

    Args:
        raw: the file's content.
        name: the file's name in messages.
        column: the heading of the column of the numbers; None: find it.
        region: country of national numbers, to find the column and duplicates.
        extra_prefixes: as in `bitel.domain.phone_numbers.to_e164`.

    Raises InvalidRequestError, naming line and column.
    """
    from bitel.domain.phone_numbers import to_e164
    from bitel.recipient_lists.reading import as_written, lost_digits

    def e164(written: str) -> str | None:
        try:
            return to_e164(as_written(written, region), region, extra_prefixes)
        except InvalidPhoneNumberError:
            return None

    rows = _rows(raw, name, lambda cell: e164(cell) is not None)
    if column is None and all(len(row.cells) == 1 for row in rows):
        heading, at = None, 0
        rows = rows[not re.search(r"\d", rows[0].cells[0]) :]
    else:
        heading, at, rows = _column(rows, name, column, e164)
    cells = []
    for row in rows:
        cell = row.cells[at] if at < len(row.cells) else ""
        place = f"line {row.line}" if heading is None else f"line {row.line}, column {heading!r}"
        if (why := lost_digits(cell)) is not None:
            raise InvalidRequestError(f"{name} {place}: {why}")
        if cell:
            cells.append((row.line, place, as_written(cell, region)))
    return _distinct(cells, name, e164)


def has_recipient_fields(raw: bytes, name: str) -> bool:
    """Whether a file holds more of its recipients than numbers: a workbook, or with a column of
    references or time zones. Raises InvalidRequestError if it is no text."""
    from bitel.recipient_lists.workbook import ZIP

    if raw.startswith(ZIP):
        return True
    first = next(csv_rows(io.BytesIO(raw), name, lambda _: False, code_pages=False), None)
    return first is not None and any(map(is_recipient_field, first.cells))


def located(error: BitelError, found: NumberList, name: str) -> BitelError:
    """Return `error` with the place in the file instead of `phoneNumbers[3]`."""
    match = _PLACE.search(str(error))
    if match is None or int(match[1]) >= len(found.places):
        return error
    place = f"{name} {found.places[int(match[1])]}:"
    return InvalidRequestError(_PLACE.sub(lambda _: place, str(error), count=1))


def _rows(raw: bytes, name: str, is_number: IsNumber) -> Sequence[Row]:
    from bitel.recipient_lists.workbook import ZIP, xlsx_rows

    file = io.BytesIO(raw)
    if raw.startswith(ZIP):
        try:
            found = [*xlsx_rows(file, name)]
        except ImportError:
            raise InvalidRequestError(
                f"{name} is a workbook, which takes the extra bitel[server] to read; save it as CSV"
            ) from None
        except (UnsupportedMediaError, PayloadTooLargeError) as fault:
            raise InvalidRequestError(f"{name}: {fault}") from None
    else:
        found = list(csv_rows(file, name, is_number, code_pages=False))
    if not found:
        raise InvalidRequestError(f"{name} holds no number")
    return found


def _column(
    rows: Sequence[Row], name: str, column: str | None, e164: E164
) -> tuple[str, int, Sequence[Row]]:
    """Return the heading of the numbers' column, its index, and the rows below the headings."""
    first, rest = rows[0].cells, rows[1:]
    has_headings = not any(e164(cell) for cell in first)
    headings = [cell or str(n) for n, cell in enumerate(first, 1)]
    if column is not None:
        chosen = [n for n, heading in enumerate(headings) if heading == column] or [
            n for n, heading in enumerate(headings) if heading.casefold() == column.casefold()
        ]
        if not chosen:
            raise InvalidRequestError(
                f"{name} has no column {column!r}; its columns are: {_shown(headings)}"
            )
        if len(chosen) > 1:
            raise InvalidRequestError(
                f"{name} has {len(chosen)} columns {column!r}; give each a heading of its own"
            )
    else:
        if not has_headings:
            headings = [str(n) for n in range(1, len(first) + 1)]
            rest = rows
        found = number_columns(rest, lambda cell: e164(cell) is not None)
        chosen = [n for n in found if n < len(first)]
        if len(chosen) != 1:
            which = f"no column of {name} holds phone numbers"
            if chosen:
                many = _shown([headings[n] for n in chosen])
                which = f"the columns {many} of {name} hold phone numbers"
            raise InvalidRequestError(
                f"{which}; name the one to call with --column: {_shown(headings)}"
            )
    return headings[chosen[0]], chosen[0], rest


def _distinct(cells: Sequence[tuple[int, str, str]], name: str, e164: E164) -> NumberList:
    """The list without repeated numbers; `cells` have the line, the place and the number."""
    numbers: list[str] = []
    places: list[str] = []
    duplicates: list[str] = []
    seen: dict[str, int] = {}
    for line, place, number in cells:
        key = e164(number) or number
        if key in seen:
            duplicates.append(f"line {line} repeats line {seen[key]}")
            continue
        seen[key] = line
        numbers.append(number)
        places.append(place)
    if not numbers:
        raise InvalidRequestError(f"{name} holds no number")
    return NumberList(numbers, places, duplicates)


def _shown(headings: Sequence[str]) -> str:
    more = f" and {len(headings) - MOST_SHOWN} more" if len(headings) > MOST_SHOWN + 1 else ""
    return ", ".join(headings[: None if not more else MOST_SHOWN]) + more
