"""Text files: encodings, delimiters, and rows as a spreadsheet counts them."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.errors import InvalidRequestError
from bitel.recipient_lists.text import Row, csv_rows, find_encoding
from tests.support.list_files import A, B, as_csv, numbers, read

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be")


def is_number(cell: str) -> bool:
    return cell.startswith("09")


def rows(content: bytes) -> list[Row]:
    return list(csv_rows(io.BytesIO(content), "people.csv", is_number))


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
TABLES = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(CELLS, min_size=width, max_size=width), max_size=8)
)


@given(
    table=TABLES,
    dialect=st.sampled_from(["comma", "semicolon", "tab", "marked"]),
    encoding=st.sampled_from(ENCODINGS[:3]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_rows_of_every_dialect_are_read_as_they_were_written(
    table: list[list[str]], dialect: str, encoding: str, end: str
) -> None:
    # Each row ends with a number, as those of a list do: the delimiter is found by it.
    table = [["name", *("x" for _ in row), "phone"] for row in table[:1]] + [
        ["", *row, A] for row in table
    ]
    found = rows(as_csv(table, dialect, encoding, end))
    assert [row.cells for row in found] == [[cell.strip() for cell in row] for row in table]
    assert [row.number for row in found] == list(range(1, len(table) + 1))


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("dialect", ["comma", "semicolon", "tab", "marked"])
def test_rows_are_counted_as_a_spreadsheet_shows_them(
    encoding: str, end: str, dialect: str
) -> None:
    """Blank rows count, further lines of a cell and the line `sep=` do not."""
    table = [["name", "phone"], [], ["Sara\nB.", A], ["", ""], ["علی", B]]
    found = rows(as_csv(table, dialect, encoding, end))
    assert [row.number for row in found] == [1, 3, 5]
    first = 2 if dialect == "marked" else 1
    assert [row.line for row in found] == [first + n for n in (0, 2, 5)]


@pytest.mark.parametrize(
    ("content", "cells"),
    [
        (f"Doe, John, Jr.;{A}\nAnn;{B}\n", ["Doe, John, Jr.", A]),
        (f"Customers, March\n\nname;phone\nAnn;{B}\n", ["Customers, March"]),
        (f"a,b;phone\nc,d;{A}\n", ["a,b", "phone"]),
        (f"a;b;c\t{A}\n", ["a;b;c", A]),
        (f'"a;b",{A}\n', ["a;b", A]),
    ],
)
def test_the_delimiter_is_the_one_that_separates_numbers(content: str, cells: list[str]) -> None:
    assert rows(content.encode())[0].cells == cells


@pytest.mark.parametrize(
    ("encoding", "names"),
    [
        ("cp1252", ["Zoë", "René Müller", "Muñoz"]),
        ("cp1256", ["محمد علي", "سارا", "رضا"]),
    ],
)
def test_code_pages_of_windows_are_told_apart(encoding: str, names: list[str]) -> None:
    table = [["name", "phone"], *([name, A] for name in names)]
    content = as_csv(table, "semicolon", encoding)
    assert find_encoding(io.BytesIO(content), "people.csv") == encoding
    assert [each.variables["name"] for each in read(content)[1]] == names
    with pytest.raises(InvalidRequestError, match="line 2 is neither UTF-8 nor UTF-16"):
        find_encoding(io.BytesIO(content), "people.csv", code_pages=False)


@pytest.mark.parametrize("size", [(1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_a_character_may_cross_the_pieces_that_are_read(size: int) -> None:
    content = b"x" * size + "ی".encode()
    assert find_encoding(io.BytesIO(content), "people.csv") == "utf-8-sig"
    fault = b"\n" + content + b"\n" + "ی".encode()[:1] + b"\n"
    with pytest.raises(InvalidRequestError, match="line 3 is neither"):
        find_encoding(io.BytesIO(fault), "people.csv", code_pages=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'phone\n"0912', "line 2 is no CSV"),
        (b"phone\n" + b"9" * 200_000, "line 2 is no CSV: field larger"),
        ("phone\n09".encode("utf-16") + b"\0", "is no text of the encoding utf-16"),
        (b"a\n\x81\n", "is no text of the encoding cp1252"),
    ],
)
def test_what_is_no_csv_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        rows(content)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    try:
        found = rows(content)
    except InvalidRequestError:
        return
    assert all(any(row.cells) for row in found)


@given(st.binary(max_size=200) | st.text(max_size=80).map(str.encode))
def test_any_list_is_read_or_refused(content: bytes) -> None:
    from bitel.errors import BitelError

    try:
        summary, recipients = read(content)
    except BitelError:
        return
    assert summary.rows == summary.valid + summary.invalid_count == len(recipients)


def test_a_long_file_is_read_whole() -> None:
    many = [f"0912{n:07}" for n in range(30_000)]
    assert numbers(as_csv([["phone"], *([each] for each in many)], "comma", "utf-16")) == many
    assert csv.field_size_limit() == 131_072
