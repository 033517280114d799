"""Turns the rows of a list into recipients, in pieces, and reports those that are not valid."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Final, NamedTuple

from bitel.domain.number_policy import NumberChecker
from bitel.domain.phone_numbers import country_code, is_ordinary, to_e164
from bitel.domain.recipients import LONGEST_REFERENCE, Recipient
from bitel.errors import (
    BitelError,
    InvalidPhoneNumberError,
    InvalidRequestError,
    PayloadTooLargeError,
)
from bitel.recipient_lists.columns import SAMPLE_ROWS, Layout, find_layout, letter
from bitel.recipient_lists.text import MOST_COLUMNS, IsNumber, Row

PIECE_RECIPIENTS: Final = 2500
PIECE_CHARACTERS: Final = 1 << 19
"""Characters of the recipients of a piece, about."""
LONGEST_CELL: Final = 1000
"""Characters of a cell in a column that is used."""
MOST_INVALID: Final = 1000
"""Invalid rows that are listed."""
LONGEST_SHOWN: Final = 100
"""Characters of an invalid value that are listed."""

_WHOLE: Final = re.compile(r"([0-9]+)[.]0+", re.ASCII)
_SCIENTIFIC: Final = re.compile(r"\+?([0-9]+)(?:[.,]([0-9]+))?[Ee]\+?([0-9]{1,3})", re.ASCII)
_FORMULA: Final = re.compile(r'="([^"]*)"')


class Invalid(NamedTuple):
    """A row that can't be called."""

    line: int
    """The row in the file, from 1 on."""
    value: str
    """The cell at fault, at most `LONGEST_SHOWN` characters of it."""
    message: str


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How a list is read."""

    name: str
    """The file's name, for errors."""
    column: str | None
    """The column of the numbers, as in `find_layout`."""
    max_rows: int
    """Most rows that are read; more are an error."""
    skip_invalid: bool = False
    """Whether invalid rows are left out of the recipients."""
    skip_duplicates: bool = False
    """Whether a row whose number has appeared before is left out of the recipients."""
    numbers_only: bool = False
    """Whether recipients are reduced to the E.164 form of their number; other columns are not
    checked then, and their cells may be of any length."""


@dataclass(slots=True)
class Summary:
    """What a file holds."""

    columns: Sequence[str]
    """The names of the variables."""
    number_column: str
    """The heading of the column of the numbers, or its letter."""
    rows: int = 0
    """Rows below the headings that are not blank."""
    valid: int = 0
    duplicates: int = 0
    """Valid rows whose number has appeared before."""
    recipients: int = 0
    """Recipients that were written."""
    invalid: list[Invalid] = field(default_factory=list)
    """The first `MOST_INVALID` of them."""

    @property
    def invalid_count(self) -> int:
        """How many rows are not valid."""
        return self.rows - self.valid


Write = Callable[[Sequence[Recipient]], None]
"""Takes a piece of the recipients, at most `PIECE_RECIPIENTS`."""


@dataclass(frozen=True, slots=True)
class NumberRules:
    """Which numbers are valid."""

    region: str
    extra_prefixes: Sequence[str] = ()
    """As the region, an argument of `to_e164`."""
    check: NumberChecker | None = None
    """None: any number of a subscriber is valid, whether or not the project may call it."""

    def e164(self, written: str) -> str:
        """The E.164 form of a number. Raises InvalidPhoneNumberError, ForbiddenError."""
        if self.check is not None:
            return self.check.e164(written)
        return to_e164(written, self.region, self.extra_prefixes)

    def is_number(self, cell: str) -> bool:
        """Whether a cell is the number of a subscriber, whether or not the project may call it."""
        try:
            to_e164(as_written(cell, self.region), self.region, self.extra_prefixes)
        except InvalidPhoneNumberError:
            return False
        return True


def read_list(
    rows: Iterator[Row],
    rules: NumberRules,
    time_zones: Collection[str],
    options: ReadOptions,
    write: Write | None,
) -> Summary:
    """Read the rows of a file.

    Args:
        rows: of `csv_rows` or `xlsx_rows`.
        rules: decide which numbers are valid.
        time_zones: the names that are known.
        options: how to read.
        write: takes the recipients; None: they are only checked.

    Raises InvalidRequestError if there is no row or no column of numbers, or a cell is too long,
    and PayloadTooLargeError for more than `max_rows` rows.
    """
    layout, data = _with_layout(rows, options, rules.is_number)
    found = Summary([each for each, _ in layout.variables], layout.number_name)
    names = sum(map(len, found.columns))
    seen = set[int]()
    piece: list[Recipient] = []
    size = 0
    for row in data:
        found.rows += 1
        if found.rows > options.max_rows:
            raise PayloadTooLargeError(
                f"{options.name} has more than {options.max_rows} rows; upload it in parts"
            )
        recipient = _recipient(row, layout, rules.region, options.name)
        try:
            e164 = rules.e164(recipient.phone_number)
        except BitelError as fault:
            is_valid = False
            _report(found, row, layout.number, _why(row, layout.number, fault))
        else:
            is_valid = _check_details(found, row, layout, recipient, time_zones)
        if is_valid:
            found.valid += 1
            key = int(e164[1:])
            if key in seen:
                found.duplicates += 1
                if options.skip_duplicates:
                    continue
            seen.add(key)
            if options.numbers_only:
                recipient = Recipient(e164)
        elif options.skip_invalid:
            continue
        found.recipients += 1
        if write is None:
            continue
        piece.append(recipient)
        size += names + sum(map(len, row.cells))
        if len(piece) == PIECE_RECIPIENTS or size > PIECE_CHARACTERS:
            write(piece)
            piece, size = [], 0
    if piece and write is not None:
        write(piece)
    if not found.rows:
        raise InvalidRequestError(f"{options.name} has no row below its headings")
    return found


def as_written(cell: str, region: str) -> str:
    """A cell of the number column as its author wrote it, as far as a spreadsheet lets it know.

    A spreadsheet that takes a number for an amount drops its leading zero or plus sign, may append
    `.0`, and shows it as `9.12E+09`; with few digits such a cell is returned as it is, since its
    other digits are lost.
    """
    text = cell
    if not (text.isascii() and text.isdigit()):
        text = _unwrapped(text)
    if text.isascii() and text.isdigit() and text[0] != "0":
        if is_ordinary(country_code(region) + text, region):
            return "0" + text
        if is_ordinary("+" + text, region):
            return "+" + text
    return text


def _unwrapped(cell: str) -> str:
    """A cell without a text mark and as a whole number, if it is one."""
    text = cell.removeprefix("'")
    if (formula := _FORMULA.fullmatch(text)) is not None:
        text = formula[1].strip()
    if (whole := _WHOLE.fullmatch(text)) is not None:
        return whole[1]
    if (number := _SCIENTIFIC.fullmatch(text)) is not None and not _has_lost_digits(number):
        return str(int(Decimal(text.replace(",", "."))))
    return text


def lost_digits(cell: str) -> str | None:
    """Why a cell such as `9.12E+09` is no number any more, as the end of a sentence; else None."""
    number = _SCIENTIFIC.fullmatch(cell)
    if number is None or not _has_lost_digits(number):
        return None
    return (
        f"{cell!r} has lost digits; format the column as text in the spreadsheet and enter the "
        "number again"
    )


def _has_lost_digits(number: re.Match[str]) -> bool:
    return int(number[3]) > len(number[2] or "")


def _why(row: Row, column: int, fault: BitelError) -> str:
    cell = _cell(row, column)
    if not cell:
        return f"the row has no phone number in column {letter(column)}"
    return lost_digits(cell) or str(fault)


def _with_layout(
    rows: Iterator[Row], options: ReadOptions, is_number: IsNumber
) -> tuple[Layout, Iterator[Row]]:
    sample = list(itertools.islice(rows, SAMPLE_ROWS))
    if not sample:
        raise InvalidRequestError(
            f"{options.name} is empty; it must have a column of phone numbers"
        )
    layout = find_layout(sample, options.name, options.column, is_number)
    if options.numbers_only:
        layout = replace(layout, reference=None, time_zone=None, variables=())
    return layout, itertools.chain(sample[layout.first_row :], rows)


def _cell(row: Row, column: int | None) -> str:
    return row.cells[column] if column is not None and column < len(row.cells) else ""


def _recipient(row: Row, layout: Layout, region: str, name: str) -> Recipient:
    if len(row.cells) > MOST_COLUMNS:
        raise InvalidRequestError(
            f"{name} row {row.number} has more than {MOST_COLUMNS} columns; delete the others"
        )
    number = _cell(row, layout.number)
    reference, time_zone = _cell(row, layout.reference), _cell(row, layout.time_zone)
    cells = row.cells
    if len(cells) < layout.width:
        cells = cells + [""] * (layout.width - len(cells))
    variables = {each: cells[at] for each, at in layout.variables}
    whole = "".join(row.cells)
    if len(whole) > LONGEST_CELL or "\0" in whole:
        _check_text(row, name, (number, reference, time_zone, *variables.values()))
    return Recipient(
        as_written(number, region),
        reference or None,
        variables,
        time_zone or None,
        line=row.number,
    )


def _check_text(row: Row, name: str, texts: Sequence[str]) -> None:
    """Raise InvalidRequestError for a text that can't be stored."""
    if any("\0" in text for text in texts):
        raise InvalidRequestError(
            f"{name} row {row.number} holds a NUL character, which is no text; remove it"
        )
    if max(map(len, texts)) > LONGEST_CELL:
        raise InvalidRequestError(
            f"{name} row {row.number} has a cell of more than {LONGEST_CELL} characters; "
            "make it shorter, or delete its column or heading"
        )


def _check_details(
    found: Summary,
    row: Row,
    layout: Layout,
    recipient: Recipient,
    time_zones: Collection[str],
) -> bool:
    """Whether reference and time zone are valid; reports the first that is not."""
    if recipient.reference is not None and len(recipient.reference) > LONGEST_REFERENCE:
        message = f"the reference has more than {LONGEST_REFERENCE} characters"
        _report(found, row, layout.reference, message)
        return False
    if recipient.time_zone is not None and recipient.time_zone not in time_zones:
        message = "the time zone is unknown; one is Asia/Tehran"
        _report(found, row, layout.time_zone, message)
        return False
    return True


def _report(found: Summary, row: Row, column: int | None, message: str) -> None:
    if len(found.invalid) < MOST_INVALID:
        value = _cell(row, column)[:LONGEST_SHOWN]
        found.invalid.append(Invalid(row.number, value, message))
