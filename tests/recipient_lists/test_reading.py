"""What the columns of a list are, and which rows can be called."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.domain.phone_numbers import to_e164
from bitel.domain.recipients import Recipient
from bitel.errors import InvalidRequestError, PayloadTooLargeError
from bitel.recipient_lists.columns import letter
from bitel.recipient_lists.reading import MOST_INVALID, PIECE_RECIPIENTS, as_written
from tests.support.list_files import (
    FILES,
    TIME_ZONES,
    A,
    B,
    C,
    as_csv,
    as_xlsx,
    numbers,
    read,
)


@pytest.mark.parametrize(
    "heading",
    [
        *(
            "phoneNumber",
            "Phone Number",
            "PHONE_NUMBER",
            "phone",
            "Mobile",
            "tel.",
            "Tel",
            "Number",
        ),
        *("شماره", "موبایل", "شماره موبایل", "شمارهٔ تلفن", "تلفن همراه", "شماره\u200cتلفن"),
        *("موبايل", "رقم الجوال", "شماره همراه"),
    ],
)
def test_the_column_is_found_by_its_heading(heading: str) -> None:
    """Though another column holds numbers too, and this one fewer."""
    table = [["id", "other", heading], ["1", A, B], ["2", A, "x"], ["3", A, B], ["4", C, ""]]
    summary, recipients = read(as_csv(table))
    assert summary.number_column == heading.replace("\u200c", "\u200c")
    assert [each.phone_number for each in recipients] == [B, "x", B, ""]
    assert summary.columns == ["id", "other"]


def test_of_two_such_headings_the_one_above_numbers_counts() -> None:
    table = [["number", "phone"], ["1", A], ["2", B]]
    assert numbers(as_csv(table)) == [A, B]
    assert numbers(as_csv([["phone", "number"], ["home", A], ["work", B]])) == [A, B]


def test_without_a_known_heading_the_column_of_numbers_is_found() -> None:
    table = [["who", "call", "age"], ["Sara", A, "31"], ["Ali", "0912", "7"], ["X", B, ""]]
    summary, recipients = read(as_csv(table))
    assert (summary.number_column, summary.columns) == ("call", ["who", "age"])
    assert [each.phone_number for each in recipients] == [A, "0912", B]
    with pytest.raises(InvalidRequestError, match="no column of people holds phone numbers"):
        read(as_csv([["who", "age"], ["Sara", "31"]]))


@pytest.mark.parametrize("heading", [[], ["phone"], ["who to call"], ["افراد"]])
def test_one_number_a_line(heading: list[str]) -> None:
    summary, recipients = read(as_csv([*([heading] if heading else []), [A], [], ["0912"], [B]]))
    first = 2 if heading else 1
    assert [(each.phone_number, each.line) for each in recipients] == [
        (A, first),
        ("0912", first + 2),
        (B, first + 3),
    ]
    assert summary.number_column == (heading[0] if heading else "A")


def test_a_file_without_headings_has_no_variables() -> None:
    summary, recipients = read(as_csv([["Sara", A], ["Ali", B]]))
    assert recipients == [Recipient(A, None, {}, None, 1), Recipient(B, None, {}, None, 2)]
    assert (summary.number_column, summary.columns) == ("B", [])


def test_a_named_column_may_have_no_heading() -> None:
    summary, recipients = read(as_csv([["name", "phone", ""], ["Sara", B, A]]), column="C")
    assert recipients == [Recipient(A, None, {"name": "Sara", "phone": B}, None, 2)]
    assert summary.number_column == "C"


def test_headings_may_stand_below_titles() -> None:
    table = [["Customers of March"], [], ["", "as of 1.4.2026"], ["name", "phone"], ["Sara", A]]
    summary, recipients = read(as_csv(table))
    assert recipients == [Recipient(A, None, {"name": "Sara"}, None, 5)]
    assert summary.rows == 1


def test_reference_and_time_zone_are_fields_and_the_rest_variables() -> None:
    table = [
        ["Ref", " first\nname ", "phone", "Time Zone", "", "city", "city", "city 2", "reference"],
        ["r1", "Sara", A, "Asia/Tehran", "lost", "1", "2", "3", "4"],
        ["x" * 101, "Ali", B, "", "", "", "", "", ""],
        ["", "Reza", B, "Mars/Base", "", "", "", "", ""],
    ]
    summary, recipients = read(as_csv(table))
    names = ["first name", "city", "city 2", "city 2 2", "reference"]
    assert summary.columns == names
    values = dict(zip(names, ["Sara", "1", "2", "3", "4"], strict=True))
    assert recipients[0] == Recipient(A, "r1", values, "Asia/Tehran", 2)
    assert [(each.line, each.value) for each in summary.invalid] == [
        (3, "x" * 100),
        (4, "Mars/Base"),
    ]
    assert summary.invalid[0].message == "the reference has more than 100 characters"
    assert (summary.valid, summary.duplicates) == (1, 0)


def test_a_row_without_a_number_is_invalid_and_a_blank_one_is_none() -> None:
    summary, _ = read(as_csv([["name", "phone"], ["Sara", A], ["", ""], ["total", ""]]))
    assert summary.rows == 2
    [invalid] = summary.invalid
    assert invalid == (4, "", "the row has no phone number in column B")


def test_duplicates_are_counted_by_their_e164_form() -> None:
    writings = [A, "+98 912 123 4567", "۰۹۱۲۱۲۳۴۵۶۷", "9121234567", "0912", "0912"]
    content = as_csv([["phone"], *([each] for each in writings)])
    summary, recipients = read(content)
    assert (summary.rows, summary.valid, summary.duplicates) == (6, 4, 3)
    assert len(recipients) == 6
    assert numbers(content, skip_duplicates=True) == [A, "0912", "0912"]
    assert numbers(content, skip_duplicates=True, skip_invalid=True) == [A]


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        *((A, A), ("9121234567", A), ("9121234567.0", A), ("9.121234567E+09", A)),
        *(("9,121234567E+9", A), ("989121234567", "+989121234567"), ("2112345678", C)),
        *((f'="{A}"', A), (f"'{A}", A), ("+98 912 123 4567", "+98 912 123 4567")),
        *(("9.12123E+09", "9.12123E+09"), ("9.12E+09", "9.12E+09"), ("912", "912")),
        *(("", ""), ("x", "x"), ("912123456.7", "912123456.7"), ("1E+999", "1E+999")),
    ],
)
def test_a_number_that_a_spreadsheet_took_for_an_amount_is_restored(
    cell: str, written: str
) -> None:
    assert as_written(cell, "IR") == written


@given(st.sampled_from(["912", "935", "21", "990"]), st.integers(0, 9_999_999))
def test_what_is_restored_is_the_same_number(prefix: str, rest: int) -> None:
    digits = f"{prefix}{rest:07}" if prefix != "21" else f"21{rest + 10_000_000:08}"
    cell = digits
    assert to_e164(as_written(cell, "IR"), "IR") == to_e164("0" + digits, "IR") == "+98" + digits


def test_lost_digits_are_named() -> None:
    summary, recipients = read(as_csv([["phone"], [A], ["9.12123E+09"]]))
    [invalid] = summary.invalid
    assert (invalid.line, invalid.value) == (3, "9.12123E+09")
    assert "'9.12123E+09' has lost digits; format the column as text" in invalid.message
    assert recipients[1].phone_number == "9.12123E+09"


def test_limits() -> None:
    many = as_csv([["phone", "note"], *([A, ""] for _ in range(4))])
    assert read(many, max_rows=4)[0].rows == 4
    with pytest.raises(PayloadTooLargeError, match="people has more than 3 rows"):
        read(many, max_rows=3)
    with pytest.raises(InvalidRequestError, match="row 2 has a cell of more than 1000 characters"):
        read(as_csv([["phone", "note"], [A, "x" * 1001]]))
    # Without a heading it is not used.
    assert read(as_csv([["phone", ""], [A, "x" * 1001]]))[0].valid == 1
    with pytest.raises(InvalidRequestError, match="more than 256 columns"):
        read(as_csv([["phone"], [A, *["x"] * 256]]))
    with pytest.raises(InvalidRequestError, match="heading in column B that is longer"):
        read(as_csv([["phone", "x" * 101], [A, "1"]]))
    with pytest.raises(InvalidRequestError, match="row 2 holds a NUL"):
        read(as_csv([["phone", "note"], [A, "x\0"]], encoding="utf-16"))


def test_only_the_first_invalid_rows_are_listed() -> None:
    summary, _ = read(as_csv([["phone"], *(["0912"] for _ in range(MOST_INVALID + 5))]))
    assert len(summary.invalid) == MOST_INVALID
    assert summary.invalid_count == MOST_INVALID + 5


def test_recipients_are_written_in_pieces() -> None:
    import io

    from bitel.recipient_lists import reading, text

    for width, most in ((1, PIECE_RECIPIENTS), (900, 600)):
        content = as_csv([["phone", "note"], *([A, "x" * width] for _ in range(5001))])
        rules = reading.NumberRules("IR")
        pieces: list[int] = []
        summary = reading.read_list(
            text.csv_rows(io.BytesIO(content), "people", rules.is_number),
            rules,
            TIME_ZONES,
            reading.ReadOptions("people", None, 10_000),
            lambda piece, sizes=pieces: sizes.append(len(piece)),  # type: ignore[misc]
        )
        assert sum(pieces) == summary.recipients == 5001
        assert max(pieces) <= most


COLUMNS = st.integers(0, 701)


@given(COLUMNS)
def test_a_column_may_be_named_by_its_letters(column: int) -> None:
    from openpyxl.utils import get_column_letter

    assert letter(column) == get_column_letter(column + 1)
    if column < 200:
        table = [[f"h{n}" for n in range(200)], [A if n == column else B for n in range(200)]]
        for name in (letter(column), letter(column).lower(), str(column + 1), f"h{column}"):
            assert numbers(as_csv(table), column=name) == [A]


def test_a_heading_may_have_a_digit_and_a_faulty_number_letters() -> None:
    assert read(as_csv([["who", "call 1"], ["Sara", A]]))[0].number_column == "call 1"
    table = [["Sara", "9.12E+09"], ["Ali", B]]
    assert numbers(as_csv(table)) == ["9.12E+09", B]


def expected_of_libreoffice() -> list[tuple[int, str, str | None]]:
    return [
        (4, A, "Asia/Tehran"),
        (6, B, None),
        (7, "91212345", "Mars/Base"),
        (8, "۰۹۱۲۷۶۵۴۳۲۱", None),
        (9, A, None),
    ]


@pytest.mark.parametrize("name", ["libreoffice.xlsx", "libreoffice_semicolon.csv"])
def test_a_file_that_libreoffice_wrote(name: str) -> None:
    """With a title, blank rows, dates, amounts, percentages, and a number shown as 9.12E+09."""
    summary, recipients = read((FILES / name).read_bytes())
    found = [(each.line, each.phone_number, each.time_zone) for each in recipients]
    assert found == expected_of_libreoffice()
    assert summary.number_column == "شماره موبایل"
    assert summary.columns == ["نام", "تاریخ", "مبلغ", "تخفیف"]
    assert (summary.valid, summary.duplicates) == (4, 1)
    assert [each.reference for each in recipients] == ["A-1", "A-2", "A-3", "A-4", None]
    percent = {"libreoffice.xlsx": "0.25", "libreoffice_semicolon.csv": "25%"}[name]
    assert list(recipients[0].variables.values()) == ["سارا", "2026-03-21", "1250000.5", percent]
    assert recipients[1].variables["تاریخ"] == "2026-03-21 14:30:00"
    assert recipients[2].variables["مبلغ"] == "0.3"


def test_text_that_libreoffice_wrote_as_it_shows_it() -> None:
    """UTF-16 with tabs, and a number that the cell's format has cut to 9.12E+09."""
    summary, recipients = read((FILES / "libreoffice_utf16_tab.csv").read_bytes())
    found = [(each.line, each.phone_number, each.time_zone) for each in recipients]
    assert found == [(4, "9.12E+09", "Asia/Tehran"), *expected_of_libreoffice()[1:]]
    assert "has lost digits" in summary.invalid[0].message


def test_a_workbook_as_openpyxl_writes_it() -> None:
    rows: list[list[Any]] = [
        ["phone", "due", "at", "paid", "share", "sum"],
        [9121234567, datetime.date(2026, 3, 21), datetime.time(9, 30), True, 0.25, 0.1 + 0.2],
        [],
        [B, datetime.datetime(2026, 3, 21, 9, 30), None, False, 1e-7, 1e15],
        [9121234567.5, None, None, None, None, "text"],
    ]
    content = as_xlsx(rows, A2="0.00E+00", E2="0%")
    summary, recipients = read(content)
    assert [list(each.variables.values()) for each in recipients[:2]] == [
        ["2026-03-21", "09:30:00", "TRUE", "0.25", "0.3"],
        ["2026-03-21 09:30:00", "", "FALSE", "1e-07", "1000000000000000"],
    ]
    assert [each.phone_number for each in recipients] == [A, B, "9121234567.5"]
    assert [(each.line, each.value) for each in summary.invalid] == [(5, "9121234567.5")]


TEXTS = st.text(
    st.characters(min_codepoint=32, exclude_categories=("Cs", "Cc", "Co", "Cn")), max_size=10
).filter(lambda text: not text.startswith(("=", "'")) and "_x" not in text)


@given(st.lists(st.tuples(TEXTS, st.integers(0, 9_999_999)), min_size=1, max_size=6))
def test_the_same_rows_come_out_of_both_formats(people: list[tuple[str, int]]) -> None:
    table = [["name", "phone"], *([name, f"0912{rest:07}"] for name, rest in people)]
    expected = [
        Recipient(f"0912{rest:07}", None, {"name": name.strip()}, None, line)
        for line, (name, rest) in enumerate(people, 2)
    ]
    assert read(as_xlsx(table))[1] == expected
    assert read(as_csv(table, "tab", "utf-16"))[1] == expected
    assert read(as_csv(table, "semicolon", "utf-8-sig"))[1] == expected
