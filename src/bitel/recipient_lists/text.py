"""Rows of text files: finds the encoding and the delimiter, and parses CSV.

The encoding is UTF-8 or UTF-16, with or without a byte order mark, else one of the Windows code
pages 1252 (western) and 1256 (Arabic script). The delimiter is a comma, a semicolon, a tab, or the
one that Excel's first line `sep=;` names.
"""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import BinaryIO, Final, NamedTuple

from bitel.errors import InvalidRequestError

DELIMITERS: Final = (",", ";", "\t")

MOST_COLUMNS: Final = 256

_CHUNK: Final = 1 << 20
_SAMPLE: Final = 1 << 16
"""Characters from which the delimiter is found."""
_SAMPLE_ROWS: Final = 20
_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SEPARATOR_LINE: Final = re.compile(r"\"?sep=([^\"\r\n0-9A-Za-z])\"?[ \t]*(?:[\r\n]|\Z)")
_HIGH: Final = re.compile(rb"[\x80-\xff]+")


class Row(NamedTuple):
    """A row that is not blank."""

    number: int
    """As a spreadsheet shows it, from 1 on: blank rows count, a line `sep=;` does not."""
    line: int
    """Of the text at which it begins, from 1 on; a cell may have several lines."""
    cells: list[str]
    """Without white space around them."""


IsNumber = Callable[[str], bool]
"""Whether a cell is a phone number."""


def csv_rows(
    file: BinaryIO, name: str, is_number: IsNumber, *, code_pages: bool = True
) -> Iterator[Row]:
    """Parse a text file, which must be seekable; yields its rows that are not blank.

    Args:
        file: read from its beginning.
        name: names the file in errors.
        is_number: helps to find the delimiter.
        code_pages: whether text that is not Unicode is read as Windows-1252 or 1256.

    Raises InvalidRequestError, naming the line, for what is no text or no CSV.
    """
    encoding = find_encoding(file, name, code_pages=code_pages)
    try:
        with _opened(file, encoding) as text:
            sample = text.read(_SAMPLE)
        marked = _SEPARATOR_LINE.match(sample)
        delimiter = marked[1] if marked else _find_delimiter(sample, is_number)
        with _opened(file, encoding) as text:
            yield from _parse(text, name, delimiter, skipped=1 if marked else 0)
    except UnicodeDecodeError:
        raise InvalidRequestError(
            f"{name} is no text of the encoding {encoding}; save the file as CSV UTF-8"
        ) from None


@contextmanager
def _opened(file: BinaryIO, encoding: str) -> Iterator[io.TextIOWrapper]:
    """The text of a file from its beginning; the file stays open."""
    file.seek(0)
    text = io.TextIOWrapper(file, encoding, newline="")
    try:
        yield text
    finally:
        with suppress(ValueError):  # the file was closed meanwhile
            text.detach()


def find_encoding(file: BinaryIO, name: str, *, code_pages: bool = True) -> str:
    """The encoding of a text file, as a codec's name. Raises InvalidRequestError."""
    file.seek(0)
    head = file.read(4)
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            if encoding == "utf-8-sig":
                break
            return encoding
    else:
        if b"\0" in head[:2]:
            # Without a byte order mark, the first character is assumed to be ASCII.
            return "utf-16-be" if head[:1] == b"\0" else "utf-16-le"
    line = _first_line_not_utf8(file)
    if line is None:
        return "utf-8-sig"
    if not code_pages:
        raise InvalidRequestError(
            f"{name} line {line} is neither UTF-8 nor UTF-16 text; save the file as CSV UTF-8"
        )
    return _code_page(file)


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    while chunk := file.read(_CHUNK):
        yield chunk


def _first_line_not_utf8(file: BinaryIO) -> int | None:
    """The first line that is not UTF-8; None if all of the file is."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line = 1
    for chunk in itertools.chain(_chunks(file), [b""]):
        pending = decoder.getstate()[0]
        try:
            decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as fault:
            return line + (pending + chunk).count(b"\n", 0, fault.start)
        line += chunk.count(b"\n")
    return None


def _code_page(file: BinaryIO) -> str:
    """cp1256 if letters beyond ASCII mostly come in words, as Arabic ones do; else cp1252."""
    alone = together = 0
    for chunk in _chunks(file):
        for run in _HIGH.findall(chunk):
            if len(run) == 1:
                alone += 1
            else:
                together += len(run)
    return "cp1256" if together > alone else "cp1252"


def _parse(text: io.TextIOWrapper, name: str, delimiter: str, skipped: int) -> Iterator[Row]:
    for _ in range(skipped):
        text.readline()
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    line = 1 + skipped
    try:
        for number, record in enumerate(reader, 1):
            cells = [cell.strip() for cell in record]
            if any(cells):
                yield Row(number, line, cells)
            line = 1 + skipped + reader.line_num
    except csv.Error as fault:
        raise InvalidRequestError(f"{name} line {line} is no CSV: {fault}") from None


def _find_delimiter(sample: str, is_number: IsNumber) -> str:
    """The delimiter that makes most rows of a sample have a phone number and the same width."""

    def fits(delimiter: str) -> tuple[int, int, int]:
        reader = csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter)
        numbers, widths = 0, Counter[int]()
        try:
            for record in itertools.islice(filter(None, reader), _SAMPLE_ROWS):
                numbers += any(is_number(cell.strip()) for cell in record)
                widths[len(record)] += len(record) > 1
        except csv.Error:
            pass  # the part before it decides
        same = max(widths.values(), default=0)
        return numbers, same, max((width for width in widths if widths[width] == same), default=0)

    return max(DELIMITERS, key=fits)
