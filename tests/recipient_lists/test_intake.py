"""Reading files in the confined process: large ones, hostile ones, and what the process may do."""

from __future__ import annotations

import asyncio
import io
import os
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from bitel.domain.recipients import Recipient
from bitel.errors import (
    BitelError,
    InvalidRequestError,
    PayloadTooLargeError,
    UnavailableError,
    UnsupportedMediaError,
)
from bitel.recipient_lists import intake
from bitel.recipient_lists.intake import ListLimits, ReadFile, read_file
from bitel.recipient_lists.list_worker import Task
from bitel.recordings.limits import MEBIBYTE
from tests.support.list_files import A, B, as_csv, as_xlsx

MANY = 100_000
HEADINGS = ["name", "phone", "city", "debt"]


def task(writes: bool = True, **options: Any) -> Task:
    known = {"name": "people", "column": None, "max_rows": 10**6}
    return Task(known | options, "IR", [], (["+98"], []), writes=writes)


def read(
    folder: Path, content: bytes, what: Task | None = None, limits: ListLimits | None = None
) -> ReadFile:
    source = folder / "upload"
    source.write_bytes(content)
    return asyncio.run(read_file(source, folder, what or task(), limits or ListLimits()))


def people(found: ReadFile) -> list[Recipient]:
    return [each for _, piece in found.pieces() for each in piece]


def parts_of(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(parts: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return content.getvalue()


SHEET = "xl/worksheets/sheet1.xml"
XML = b'<?xml version="1.0" encoding="UTF-8"?>'
MAIN = b'<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main">'


def with_sheet(rows: bytes) -> bytes:
    """A workbook whose sheet has these rows, as XML."""
    parts = parts_of(as_xlsx([["phone"], [A]]))
    parts[SHEET] = XML + MAIN + b"<sheetData>" + rows + b"</sheetData></worksheet>"
    return zipped(parts)


def large_csv() -> bytes:
    rows = [[f"نام {n}", f"0912{n:07}", "Tehran", str(n)] for n in range(MANY)]
    return as_csv([HEADINGS, *rows], "semicolon", "utf-8-sig")


def large_xlsx() -> bytes:
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet()
    sheet.append(HEADINGS)
    for n in range(MANY):
        sheet.append([f"نام {n}", 9120000000 + n, "Tehran", n])
    content = io.BytesIO()
    book.save(content)
    return content.getvalue()


@pytest.mark.parametrize("make", [large_csv, large_xlsx])
def test_a_list_of_100_000_is_read_piece_by_piece(
    tmp_path: Path, make: Callable[[], bytes]
) -> None:
    """The worker's memory is limited to what it needs for a list of this size, and this process
    takes one piece at a time."""
    content = make()
    limits = ListLimits(memory_bytes=512 * MEBIBYTE)
    before = resident()
    found = read(tmp_path, content, limits=limits)
    del content
    assert (found.summary.rows, found.summary.valid) == (MANY, MANY)
    count, largest = 0, 0
    for _, piece in found.pieces():
        assert piece[0].phone_number == f"0912{count:07}"
        assert dict(piece[0].variables) == {
            "name": f"نام {count}",
            "city": "Tehran",
            "debt": str(count),
        }
        count += len(piece)
        largest = max(largest, resident())
    assert count == MANY
    assert largest - before < 60 * MEBIBYTE


def resident() -> int:
    """Bytes of memory that this process uses."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_a_dry_run_writes_no_recipients(tmp_path: Path) -> None:
    found = read(tmp_path, as_csv([["phone"], [A]]), task(writes=False))
    assert found.summary.recipients == 1
    assert found.path.stat().st_size == 0


def with_size(content: bytes, size: int) -> bytes:
    """The workbook with another unpacked size of its sheet in its directory (APPNOTE 4.3.12)."""
    at = content.rindex(SHEET.encode()) - 46
    assert content[at : at + 4] == b"PK\1\2"
    return content[: at + 24] + size.to_bytes(4, "little") + content[at + 28 :]


def bomb(kind: str) -> bytes:
    """Files of a few hundred kilobytes that unpack to gigabytes, or claim a vast sheet."""
    row = b'<row><c t="inlineStr"><is><t>%s</t></is></c></row>'
    if kind == "sheet":
        # The directory says 2 GiB.
        return with_size(with_sheet(b" "), 2**31 - 1)
    if kind == "hidden size":
        # The directory says less than there is.
        return with_size(with_sheet(row % b"x" * (4 * MEBIBYTE)), 1000)
    if kind == "dimension":
        far = b'<row r="1048576"><c r="XFD1048576"><v>1</v></c></row>'
        return with_sheet(b'<row r="1"><c r="A1"><v>1</v></c></row>' + far)
    if kind == "shared":
        parts = parts_of(as_xlsx([["phone", "note"], [A, "x"]]))
        parts["xl/sharedStrings.xml"] = (
            XML
            + b'<sst xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main">'
            + b"<si><t>x</t></si>" * (12 * MEBIBYTE)
            + b"</sst>"
        )
        return zipped(parts)
    assert kind == "entities"
    entities = b"".join(
        b'<!ENTITY e%d "%s">' % (n, b"&e%d;" % (n - 1) * 10 if n else b"0" * 1000)
        for n in range(10)
    )
    parts = parts_of(as_xlsx([["phone"], [A]]))
    parts[SHEET] = (
        XML + b"<!DOCTYPE x [" + entities + b"]>" + MAIN + b"<sheetData>"
        b'<row r="1"><c r="A1" t="inlineStr"><is><t>&e9;</t></is></c></row></sheetData></worksheet>'
    )
    return zipped(parts)


@pytest.mark.parametrize("kind", ["sheet", "hidden size", "dimension", "shared", "entities"])
def test_a_bomb_is_refused(tmp_path: Path, kind: str) -> None:
    limits = ListLimits(cpu_seconds=15, memory_bytes=512 * MEBIBYTE, wall_seconds=60)
    with pytest.raises(BitelError) as refused:
        read(tmp_path, bomb(kind), limits=limits)
    assert not isinstance(refused.value, UnavailableError), refused.value.__cause__
    assert refused.value.http_status in (400, 413, 415)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["upload"]


@pytest.mark.parametrize("cut", range(0, 100, 7))
def test_a_damaged_workbook_is_refused_or_read(tmp_path: Path, cut: int) -> None:
    whole = as_xlsx([["name", "phone"], *([f"n{n}", A] for n in range(300))])
    at = len(whole) * cut // 100
    for content in (whole[:at], whole[:at] + bytes(64) + whole[at + 64 :]):
        try:
            found = read(tmp_path, content)
        except (InvalidRequestError, UnsupportedMediaError):
            continue
        assert found.summary.rows <= 300


def test_parts_of_other_workbooks_are_refused(tmp_path: Path) -> None:
    parts = parts_of(as_xlsx([["phone"], [A]]))
    del parts["xl/workbook.xml"]
    with pytest.raises(UnsupportedMediaError, match="neither CSV nor XLSX"):
        read(tmp_path, zipped(parts | {"xl/workbook.bin": b"x"}))
    with pytest.raises(UnsupportedMediaError, match="neither CSV nor XLSX"):
        read(tmp_path, zipped({"mimetype": b"application/zip"}))
    with pytest.raises(UnsupportedMediaError, match="damaged and can't be read"):
        read(tmp_path, zipped({"xl/workbook.xml": b"<workbook"}))


def test_the_first_visible_sheet_with_cells_is_read(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheets: list[Any] = [book.active, *(book.create_sheet() for _ in range(3))]
    sheets[0].sheet_state = "hidden"
    sheets[0]["A1"] = B
    sheets[2]["B3"] = A
    sheets[3]["A1"] = B
    content = io.BytesIO()
    book.active = 1
    book.save(content)
    found = read(tmp_path, content.getvalue())
    assert people(found) == [Recipient(A, None, {}, None, 3)]
    assert found.summary.number_column == "B"
    sheets[2].sheet_state = sheets[3].sheet_state = "veryHidden"
    content = io.BytesIO()
    book.save(content)
    with pytest.raises(InvalidRequestError, match="no visible sheet with cells"):
        read(tmp_path, content.getvalue())


def test_foreign_numbers_are_known_in_the_process(tmp_path: Path) -> None:
    """It can't open the files of their numbering plans any more."""
    numbers = ["+4930123456", "+12125550123", "+81312345678", "+8613812345678", "+882123456789"]
    found = read(
        tmp_path,
        as_csv([["phone"], *([each] for each in numbers)]),
        Task(task().options, "IR", ["+98998", "+4915"], (["+"], ["+1"])),
    )
    assert [each.value for each in found.summary.invalid] == ["+12125550123", "+882123456789"]
    every = Task(task().options, "IR", ["+98998", "+4915"], None)
    found = read(tmp_path, as_csv([["phone"], *([each] for each in [*numbers, "0998"])]), every)
    assert [each.value for each in found.summary.invalid][-1:] == ["0998"]


def test_the_time_of_the_process_is_limited(tmp_path: Path) -> None:
    content = as_csv([["phone"], *(["+4930123456"] for _ in range(60_000))])
    with pytest.raises(PayloadTooLargeError, match="takes more than 2 s of processor time"):
        read(tmp_path, content, limits=ListLimits(cpu_seconds=2))
    started = time.monotonic()
    with pytest.raises(PayloadTooLargeError, match=r"takes longer than 0\.05 s to read"):
        read(tmp_path, content, limits=ListLimits(wall_seconds=0.05))
    assert time.monotonic() - started < 30


def test_what_it_writes_is_limited_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [["phone", "note"], *([A, os.urandom(400).hex()] for _ in range(20_000))]
    with pytest.raises(PayloadTooLargeError, match="take more than 1 MiB to store"):
        read(tmp_path, as_csv(rows), limits=ListLimits(piece_bytes=MEBIBYTE))
    found = read(tmp_path, as_csv(rows[:3]))
    found.path.write_bytes(b"\0\0\0\5other")
    with pytest.raises(UnavailableError, match=intake.NOT_NOW):
        people(found)


def test_a_missing_file_is_a_fault_of_the_service(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=intake.NOT_NOW):
        asyncio.run(read_file(tmp_path / "none", tmp_path, task(), ListLimits()))
