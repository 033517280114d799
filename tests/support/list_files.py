"""Files as spreadsheets write them, and what the reader makes of them."""

from __future__ import annotations

import csv
import datetime
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import openpyxl

from bitel.domain.number_policy import NumberChecker, policy_of
from bitel.domain.pricing import Tariff
from bitel.domain.recipients import Recipient
from bitel.recipient_lists import reading, text, workbook
from bitel.recipient_lists.reading import ReadOptions, Summary

FILES = Path(__file__).parents[1] / "recipient_lists" / "files"
A, B, C = "09121234567", "09351234567", "02112345678"
TIME_ZONES = frozenset({"Asia/Tehran", "Europe/Berlin"})
DELIMITERS = {"comma": ",", "semicolon": ";", "tab": "\t", "marked": "|"}

Cell = str | int | float | bool | datetime.date | datetime.time | None


def as_csv(
    rows: Sequence[Sequence[str]],
    dialect: str = "comma",
    encoding: str = "utf-8",
    end: str = "\r\n",
) -> bytes:
    """`marked` has a delimiter that only the line `sep=` names."""
    content = io.StringIO(newline="")
    if dialect == "marked":
        content.write(f"sep=|{end}")
    # Python quotes line breaks only if they are the end of a row.
    has_breaks = any({"\r", "\n"} & set(cell) for row in rows for cell in row)
    quoting: Any = csv.QUOTE_ALL if has_breaks else csv.QUOTE_MINIMAL
    writer = csv.writer(content, delimiter=DELIMITERS[dialect], lineterminator=end, quoting=quoting)
    writer.writerows(rows)
    return content.getvalue().encode(encoding)


def as_xlsx(rows: Sequence[Sequence[Cell]], **formats: str) -> bytes:
    """A workbook by openpyxl; `formats` are number formats of cells."""
    book = openpyxl.Workbook()
    sheet: Any = book.active
    for row in rows:
        sheet.append(list(row))
    for cell, form in formats.items():
        sheet[cell].number_format = form
    return saved(book)


def saved(book: Any) -> bytes:
    content = io.BytesIO()
    book.save(content)
    return content.getvalue()


def read(content: bytes, region: str = "IR", **options: Any) -> tuple[Summary, list[Recipient]]:
    """Read a file in this process; `options` are those of `ReadOptions`."""
    checker = NumberChecker(policy_of(None, (), region), Tariff())
    rules = reading.NumberRules(region, (), checker)
    settings = ReadOptions(**{"name": "people", "column": None, "max_rows": 10**6, **options})
    file = io.BytesIO(content)
    if workbook.kind_of(file) is workbook.FileKind.XLSX:
        rows = workbook.xlsx_rows(file, settings.name)
    else:
        rows = text.csv_rows(file, settings.name, rules.is_number)
    recipients: list[Recipient] = []
    summary = reading.read_list(rows, rules, TIME_ZONES, settings, recipients.extend)
    assert summary.recipients == len(recipients)
    return summary, recipients


def numbers(content: bytes, **options: Any) -> list[str]:
    return [each.phone_number for each in read(content, **options)[1]]
