"""Lists of phone numbers as people and spreadsheets write them."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.cli.number_lists import NumberList, read_number_list
from bitel.errors import InvalidRequestError
from tests.support.list_files import as_xlsx

A, B, C = "09121234567", "09351234567", "02112345678"


def read(raw: bytes | str, column: str | None = None) -> NumberList:
    data = raw if isinstance(raw, bytes) else raw.encode()
    return read_number_list(data, "people.csv", column, "IR")


def refusal(raw: bytes | str, column: str | None = None) -> str:
    with pytest.raises(InvalidRequestError) as refused:
        read(raw, column)
    return str(refused.value)


def saved(rows: Sequence[Sequence[str]], dialect: str, encoding: str) -> bytes:
    """As Excel saves it: "CSV" of a country with commas, of one with semicolons, "Unicode text"."""
    text = io.StringIO(newline="")
    delimiter = {"comma": ",", "semicolon": ";", "tab": "\t", "marked": ";"}[dialect]
    if dialect == "marked":
        text.write("sep=;\r\n")
    csv.writer(text, delimiter=delimiter).writerows(rows)
    return text.getvalue().encode(encoding)


@pytest.mark.parametrize("dialect", ["comma", "semicolon", "tab", "marked"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("column", [None, "phone", "Phone"])
def test_every_dialect_and_encoding(dialect: str, encoding: str, column: str | None) -> None:
    rows = [["name", "phone", "age"], ["Sara; B., Jr", A, "31"], ["علی", "", "7"], ["x\ny", B, ""]]
    found = read(saved(rows, dialect, encoding), column)
    first = 3 if dialect == "marked" else 2
    assert found.numbers == [A, B]
    assert found.places == [f"line {n}, column 'phone'" for n in (first, first + 2)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("heading", ["", "phone", "شماره"])
def test_one_number_a_line(end: str, heading: str) -> None:
    text = end.join([*([heading] if heading else []), A, "", f"  {B} ", ""])
    found = read(text)
    first = 2 if heading else 1
    assert found.numbers == [A, B]
    assert found.places == [f"line {first}", f"line {first + 2}"]


def test_a_number_in_four_writings_is_kept_once() -> None:
    writings = ["+98 912 123 4567", "۰۹۱۲۱۲۳۴۵۶۷", "00989121234567", "(0912) 1234567"]
    found = read("\n".join([A, B, *writings]))
    assert found.numbers == [A, B]
    assert found.duplicates == [f"line {n} repeats line 1" for n in (3, 4, 5, 6)]


def test_what_is_no_number_is_kept_for_the_service_to_refuse() -> None:
    assert read(f"{A}\n0912\n0912\nletters").numbers == [A, "0912", "letters"]


def test_without_headings_the_column_of_numbers_is_found() -> None:
    found = read(f"Sara,{A}\nAli,{B}\nBad,0912\n")
    assert found.numbers == [A, B, "0912"]
    assert found.places[2] == "line 3, column '2'"


def test_a_workbook_is_read_by_its_rows() -> None:
    rows: list[list[str | int]] = [
        ["name", "phone"],
        ["Sara", 9121234567],
        [],
        ["Ali", B],
        ["Sara", A],
    ]
    found = read(as_xlsx(rows))
    assert found.numbers == [A, B]
    assert found.places == ["line 2, column 'phone'", "line 4, column 'phone'"]
    assert found.duplicates == ["line 5 repeats line 2"]


def test_an_ambiguous_column_is_an_error() -> None:
    text = f"name,mobile,home\nSara,{A},{C}\n"
    assert "columns mobile, home of people.csv hold phone numbers" in refusal(text)
    assert "--column" in refusal(text)
    assert read(text, "home").numbers == [C]
    assert "has 2 columns 'phone'" in refusal(f"phone,phone\n{A},{B}\n", "phone")
    assert "no column of people.csv holds phone numbers" in refusal("name,age\nSara,31\n")
    assert "has no column 'tel'; its columns are: name, phone" in refusal("name,phone\n", "tel")


@pytest.mark.parametrize(
    ("raw", "names"),
    [
        (f"phone\n{A}\n9.12123E+11\n", "line 3: '9.12123E+11' has lost digits"),
        (f'name,phone\n"Sara,{A}\n', "line 2 is no CSV"),
        (f"{A}\n".encode() + b"\xe9\n", "line 2 is neither UTF-8 nor UTF-16"),
        ("", "holds no number"),
        ("phone\n\n", "holds no number"),
    ],
)
def test_errors_name_the_line(raw: bytes | str, names: str) -> None:
    assert names in refusal(raw)


@given(st.binary(max_size=200) | st.text(max_size=80).map(str.encode))
def test_any_file_is_read_or_refused(raw: bytes) -> None:
    try:
        found = read(raw)
    except InvalidRequestError:
        return
    assert len(found.numbers) == len(found.places) > 0
