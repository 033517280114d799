"""Finds what the columns of a list are: the number, reference and time zone of recipients, and
variables, by the row of headings or by the cells."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bitel.errors import InvalidRequestError
from bitel.recipient_lists.text import IsNumber, Row

SAMPLE_ROWS: Final = 1000
"""Rows from which the columns are found."""
HEADING_WITHIN: Final = 20
"""Rows, blank ones aside, among which the row of headings may be."""
MOST_DIGITS: Final = 4
"""Digits from which a word is no heading, such as `tel2`, but a faulty number."""
LONGEST_NAME: Final = 100
"""Characters of a heading."""
MOST_SHOWN: Final = 20
"""Columns in a message."""

# Without the characters that `_plain` removes; the first ones are preferred.
NUMBER_HEADINGS: Final = (
    *("phonenumber", "mobilenumber", "phone", "mobile", "mobilephone", "mobileno", "phoneno"),
    *("msisdn", "cellphone", "cellnumber", "cell", "contactnumber", "telephonenumber"),
    *("telephone", "telnumber", "telno", "tel"),
    *("شمارهموبایل", "شمارههمراه", "شمارهتلفنهمراه", "شمارهتلفن", "شمارهتماس", "تلفنهمراه"),
    *("موبایل", "همراه", "تلفن", "گوشی", "رقمالجوال", "رقمالهاتف", "الجوال", "جوال", "الهاتف"),
    *("هاتف", "number", "شماره", "رقم"),
)
REFERENCE_HEADINGS: Final = frozenset(
    {"reference", "referenceid", "referenceno", "ref", "refid", "refno", "مرجع", "شناسهمرجع"}
)
TIME_ZONE_HEADINGS: Final = frozenset(
    {"timezone", "timezoneid", "timezonename", "tz", "منطقهزمانی", "المنطقةالزمنية"}
)

_LETTERS_OF_ARABIC_KEYBOARDS: Final = str.maketrans("يكى", "یکی")
_LETTER: Final = re.compile(r"[A-Za-z]{1,2}")


@dataclass(frozen=True, slots=True)
class Layout:
    """What the columns are, by their index from 0 on."""

    number: int
    number_name: str
    """Its heading, or its letter if it has none."""
    reference: int | None
    time_zone: int | None
    variables: Sequence[tuple[str, int]]
    """Names and columns of the variables."""
    first_row: int
    """Index among the sample of the first row that is a recipient."""
    width: int = 0
    """How many columns have headings."""


def find_layout(
    sample: Sequence[Row], name: str, column: str | None, is_number: IsNumber
) -> Layout:
    """Find the columns from the first rows of a file.

    Args:
        sample: the first `SAMPLE_ROWS` rows.
        name: names the file in errors.
        column: the column of the numbers by its heading, its number from 1 on, or its letter; None:
            the one whose heading says so, else the one most of whose cells are numbers.
        is_number: whether a cell is a phone number.

    A repeated heading gets a number: `name`, `name 2`. Columns without a heading are not used.
    Raises InvalidRequestError.
    """
    heading = _row_with_heading(sample, column, is_number)
    number: int | None = None
    if heading is not None:
        number = _by_heading(sample, heading, name, column, is_number)
    elif column is not None:
        number = _by_position(column)
        if number is None or not any(number < len(row.cells) for row in sample):
            raise InvalidRequestError(
                f"{name} has no column {column[:LONGEST_NAME]!r}; its columns are: "
                f"{shown(_names(sample[0].cells))}"
            )
    else:
        number = _by_cells(sample, name, is_number)
    if heading is None:
        heading = _row_above(sample, number, is_number)
    if heading is None and column is not None:
        # The column may have no heading where others have.
        heading = _row_with_heading(sample, None, is_number)
    if heading is None:
        return Layout(number, letter(number), None, None, (), 0)
    return _with_headings(sample[heading].cells, number, name, heading)


def number_columns(rows: Sequence[Row], is_number: IsNumber) -> list[int]:
    """The columns at least half of whose cells are phone numbers."""
    width = max((len(row.cells) for row in rows), default=0)
    return [at for at in range(width) if _share(rows, at, is_number) >= 0.5]


def letter(column: int) -> str:
    """The letters of a column in a spreadsheet: A for 0, AA for 26."""
    letters = ""
    while column >= 0:
        letters = chr(ord("A") + column % 26) + letters
        column = column // 26 - 1
    return letters


def shown(names: Sequence[str]) -> str:
    """Names of columns for a message."""
    more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
    return ", ".join(names[:MOST_SHOWN]) + more


def _names(cells: Sequence[str]) -> list[str]:
    return [cell[:LONGEST_NAME] or letter(at) for at, cell in enumerate(cells)]


def _plain(heading: str) -> str:
    """A heading in lower case, with its letters and digits only."""
    folded = heading.casefold().translate(_LETTERS_OF_ARABIC_KEYBOARDS)
    return "".join(character for character in folded if character.isalnum())


_NUMBER_RANKS: Final = {_plain(each): rank for rank, each in enumerate(NUMBER_HEADINGS)}
_REFERENCES: Final = frozenset(map(_plain, REFERENCE_HEADINGS))
_TIME_ZONES: Final = frozenset(map(_plain, TIME_ZONE_HEADINGS))


def _row_with_heading(sample: Sequence[Row], column: str | None, is_number: IsNumber) -> int | None:
    """The first row that has the heading `column`, or that of numbers, above all numbers."""
    for at, row in enumerate(sample[:HEADING_WITHIN]):
        if any(map(is_number, row.cells)):
            return None
        if column is None:
            if any(_plain(cell) in _NUMBER_RANKS for cell in row.cells):
                return at
        elif column.strip().casefold() in map(str.casefold, row.cells):
            return at
    return None


def _by_heading(
    sample: Sequence[Row], heading: int, name: str, column: str | None, is_number: IsNumber
) -> int:
    cells = sample[heading].cells
    if column is None:
        ranks = {
            at: _NUMBER_RANKS[_plain(cell)]
            for at, cell in enumerate(cells)
            if _plain(cell) in _NUMBER_RANKS
        }
        rows = sample[heading + 1 :]
        # A column "number" may number the rows.
        return max(ranks, key=lambda at: (_share(rows, at, is_number) >= 0.5, -ranks[at]))
    wanted = column.strip()
    found = [at for at, cell in enumerate(cells) if cell == wanted] or [
        at for at, cell in enumerate(cells) if cell.casefold() == wanted.casefold()
    ]
    if len(found) > 1:
        raise InvalidRequestError(
            f"{name} has {len(found)} columns {wanted[:LONGEST_NAME]!r}; give each a heading of "
            "its own, or name the column by its letter"
        )
    return found[0]


def _by_position(column: str) -> int | None:
    """The index of a column given as a number from 1 on or as letters."""
    text = column.strip()
    if text.isascii() and text.isdigit() and len(text) <= 3:
        return int(text) - 1 if int(text) else None
    if _LETTER.fullmatch(text):
        index = 0
        for character in text.upper():
            index = index * 26 + ord(character) - ord("A") + 1
        return index - 1
    return None


def _by_cells(sample: Sequence[Row], name: str, is_number: IsNumber) -> int:
    width = max(len(row.cells) for row in sample)
    if width == 1:
        return 0
    shares = {at: _share(sample, at, is_number) for at in range(width)}
    best = max(shares, key=lambda at: shares[at])
    if not shares[best]:
        raise InvalidRequestError(
            f"no column of {name} holds phone numbers; name it with column, one of: "
            f"{shown(_names(sample[0].cells))}"
        )
    return best


def _share(rows: Sequence[Row], column: int, is_number: IsNumber) -> float:
    """The share of a column's cells that are phone numbers."""
    cells = [row.cells[column] for row in rows if column < len(row.cells) and row.cells[column]]
    return sum(map(is_number, cells)) / len(cells) if cells else 0.0


def _row_above(sample: Sequence[Row], column: int, is_number: IsNumber) -> int | None:
    """The first row above all numbers whose cell in this column is a word."""
    for at, row in enumerate(sample[:HEADING_WITHIN]):
        if any(map(is_number, row.cells)):
            return None
        cell = row.cells[column] if column < len(row.cells) else ""
        if any(map(str.isalpha, cell)) and sum(map(str.isdigit, cell)) < MOST_DIGITS:
            return at
    return None


def _with_headings(cells: Sequence[str], number: int, name: str, heading: int) -> Layout:
    reference = time_zone = None
    variables: dict[str, int] = {}
    for at, cell in enumerate(cells):
        text = " ".join(cell.split())
        if not text or at == number:
            continue
        if len(text) > LONGEST_NAME or "\0" in text:
            raise InvalidRequestError(
                f"{name} has a heading in column {letter(at)} that is longer than {LONGEST_NAME} "
                "characters or holds a NUL character; change it"
            )
        if reference is None and _plain(text) in _REFERENCES:
            reference = at
        elif time_zone is None and _plain(text) in _TIME_ZONES:
            time_zone = at
        else:
            variables[_free_name(text, variables)] = at
    own = cells[number] if number < len(cells) else ""
    number_name = " ".join(own.split())[:LONGEST_NAME] or letter(number)
    return Layout(
        number, number_name, reference, time_zone, tuple(variables.items()), heading + 1, len(cells)
    )


def _free_name(text: str, taken: dict[str, int]) -> str:
    name, count = text, 1
    while name in taken:
        count += 1
        name = f"{text} {count}"
    return name


def is_recipient_field(heading: str) -> bool:
    """Whether a column of that heading is the reference or the time zone of recipients."""
    return _plain(heading) in _REFERENCES or _plain(heading) in _TIME_ZONES
