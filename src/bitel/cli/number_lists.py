"""Reads lists of phone numbers: one per line, or a CSV file of a spreadsheet.

The file may be UTF-8 or UTF-16, with or without a byte order mark, with commas, semicolons, tabs or
the delimiter in Excel's first line `sep=;`. The column may be found by its content. Numbers that
are equal in E.164 form are kept once.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from bitel.errors import BitelError, InvalidPhoneNumberError, InvalidRequestError

DELIMITERS: Final = (",", ";", "\t")
MOST_SHOWN: Final = 5
"""Duplicates and columns listed in a message."""

_UTF16: Final = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
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

    def e164(written: str) -> str | None:
        try:
            return to_e164(written, region, extra_prefixes)
        except InvalidPhoneNumberError:
            return None

    rows = _rows(_decoded(raw, name), name)
    if column is None and all(len(row) == 1 for _, row in rows):
        heading = None
        has_heading = not re.search(r"\d", rows[0][1][0])
        cells = [(line, row[0]) for line, row in rows[has_heading:]]
    else:
        heading, cells = _column(rows, name, column, e164)
    return _distinct(cells, heading, name, e164)


def located(error: BitelError, found: NumberList, name: str) -> BitelError:
    """Return `error` with the place in the file instead of `phoneNumbers[3]`."""
    match = _PLACE.search(str(error))
    if match is None or int(match[1]) >= len(found.places):
        return error
    place = f"{name} {found.places[int(match[1])]}:"
    return InvalidRequestError(_PLACE.sub(lambda _: place, str(error), count=1))


def _decoded(raw: bytes, name: str) -> str:
    encoding = _UTF16.get(raw[:2])
    if encoding is None and b"\0" in raw[:2]:
        # Without a byte order mark, the first character is assumed to be ASCII.
        encoding = "utf-16-be" if raw[:1] == b"\0" else "utf-16-le"
    try:
        return raw.decode(encoding or "utf-8-sig")
    except UnicodeDecodeError as fault:
        line = raw.count(b"\n", 0, fault.start) + 1
        raise InvalidRequestError(
            f"{name} line {line} is neither UTF-8 nor UTF-16 text; save the file as CSV UTF-8"
        ) from None


def _rows(text: str, name: str) -> list[tuple[int, list[str]]]:
    """Return the non-blank rows, each with the number of its first line."""
    lines = io.StringIO(text, newline="")
    first = lines.readline()
    if marked := re.fullmatch(r"\"?sep=(.)\"?\s*", first):
        delimiter, skipped = marked[1], 1
    else:
        outside = re.sub(r'"[^"]*"', "", first)
        delimiter, skipped = max(DELIMITERS, key=outside.count), 0
        lines.seek(0)
    rows: list[tuple[int, list[str]]] = []
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    line = 1 + skipped
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                rows.append((line, cells))
            line = 1 + skipped + reader.line_num
    except csv.Error as fault:
        raise InvalidRequestError(f"{name} line {line} is no CSV: {fault}") from None
    if not rows:
        raise InvalidRequestError(f"{name} holds no number")
    return rows


def _column(
    rows: Sequence[tuple[int, list[str]]], name: str, column: str | None, e164: E164
) -> tuple[str, list[tuple[int, str]]]:
    """Return the heading of the numbers' column, and its cells with their lines."""
    (_, first), rest = rows[0], rows[1:]
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
        chosen = [n for n in range(len(first)) if _holds_numbers(rest, n, e164)]
        if len(chosen) != 1:
            which = f"no column of {name} holds phone numbers"
            if chosen:
                many = _shown([headings[n] for n in chosen])
                which = f"the columns {many} of {name} hold phone numbers"
            raise InvalidRequestError(
                f"{which}; name the one to call with --column: {_shown(headings)}"
            )
    at = chosen[0]
    return headings[at], [(line, row[at] if at < len(row) else "") for line, row in rest]


def _holds_numbers(rows: Sequence[tuple[int, list[str]]], column: int, e164: E164) -> bool:
    """Whether at least half of a column's cells are phone numbers."""
    cells = [row[column] for _, row in rows if column < len(row) and row[column]]
    return bool(cells) and 2 * sum(e164(cell) is not None for cell in cells) >= len(cells)


def _distinct(
    cells: Sequence[tuple[int, str]], heading: str | None, name: str, e164: E164
) -> NumberList:
    numbers: list[str] = []
    places: list[str] = []
    duplicates: list[str] = []
    seen: dict[str, int] = {}
    for line, cell in cells:
        if not cell:
            continue
        place = f"line {line}" if heading is None else f"line {line}, column {heading!r}"
        if re.fullmatch(r"[+-]?\d+[.,]\d+[Ee]\+\d+", cell):
            raise InvalidRequestError(
                f"{name} {place}: {cell!r} has lost digits; format the column as text in the "
                "spreadsheet and enter the number again"
            )
        key = e164(cell) or cell
        if key in seen:
            duplicates.append(f"line {line} repeats line {seen[key]}")
            continue
        seen[key] = line
        numbers.append(cell)
        places.append(place)
    if not numbers:
        raise InvalidRequestError(f"{name} holds no number")
    return NumberList(numbers, places, duplicates)


def _shown(headings: Sequence[str]) -> str:
    more = f" and {len(headings) - MOST_SHOWN} more" if len(headings) > MOST_SHOWN + 1 else ""
    return ", ".join(headings[: None if not more else MOST_SHOWN]) + more
