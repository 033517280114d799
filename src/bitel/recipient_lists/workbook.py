"""Rows of XLSX workbooks, read by calamine, and what kind a file is by its first bytes."""

from __future__ import annotations

import datetime
import zipfile
from collections.abc import Iterator
from enum import Enum
from typing import BinaryIO, Final

from bitel.errors import InvalidRequestError, PayloadTooLargeError, UnsupportedMediaError
from bitel.recipient_lists.text import MOST_COLUMNS, Row

MOST_UNPACKED: Final = 1 << 30
"""Bytes of a workbook's parts together; 1,000,000 rows of ten columns take half of it."""

_HEAD: Final = 4096
ZIP: Final = b"PK\x03\x04"
_COMPOUND_FILE: Final = bytes.fromhex("D0CF11E0A1B11AE1")
"""Begins files of old Office versions, and all encrypted ones ([MS-CFB] 2.2)."""
_ENCRYPTED: Final = "EncryptedPackage".encode("utf-16-le")
_WORKBOOK: Final = "xl/workbook.xml"
_OTHER_MARKUP: Final = (b"<", b"{\\rtf", b"%PDF", b"\x1f\x8b")


class FileKind(Enum):
    """A kind of file that is read."""

    TEXT = "text"
    XLSX = "xlsx"


def kind_of(file: BinaryIO) -> FileKind:
    """Whether a file is text or XLSX. Raises UnsupportedMediaError if it is neither."""
    file.seek(0)
    head = file.read(_HEAD)
    if head.startswith(ZIP):
        return FileKind.XLSX
    if head.startswith(_COMPOUND_FILE):
        file.seek(0)
        # In the directory of the file, which may be anywhere.
        if _ENCRYPTED in file.read():
            raise UnsupportedMediaError(
                "the workbook is encrypted; save it without a password and upload it again"
            )
        raise UnsupportedMediaError(
            "the file is in a format of an old Office version (such as XLS); save it as XLSX or "
            "CSV UTF-8"
        )
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    # Text of UTF-16 has a zero byte in a pair, not two.
    is_utf16 = head[:2] in (b"\xff\xfe", b"\xfe\xff") or (
        b"\0" in head[:2] and head[:2].strip(b"\0")
    )
    if start.startswith(_OTHER_MARKUP) or (b"\0" in head and not is_utf16):
        raise UnsupportedMediaError(
            "the file is neither CSV nor XLSX; save the list as XLSX or CSV UTF-8"
        )
    return FileKind.TEXT


def xlsx_rows(file: BinaryIO, name: str) -> Iterator[Row]:
    """The rows of the first visible sheet that has cells, without blank ones.

    Numbers are written in full, with up to 15 significant digits; dates as in ISO 8601.

    Raises UnsupportedMediaError for a damaged or encrypted workbook and for other formats,
    PayloadTooLargeError if it would take too much memory, InvalidRequestError if it has no cell.
    """
    _check_parts(file)
    import python_calamine as calamine

    file.seek(0)
    try:
        workbook = calamine.CalamineWorkbook.from_filelike(file)
        for at, sheet in enumerate(workbook.sheets_metadata):
            is_grid = sheet.typ == calamine.SheetTypeEnum.WorkSheet
            if not is_grid or sheet.visible != calamine.SheetVisibleEnum.Visible:
                continue
            found = workbook.get_sheet_by_index(at)
            if found.start is not None:
                break
        else:
            raise InvalidRequestError(f"{name} has no visible sheet with cells")
    except calamine.PasswordError:
        raise UnsupportedMediaError(
            "the workbook is encrypted; save it without a password and upload it again"
        ) from None
    except (calamine.CalamineError, OSError) as fault:
        raise UnsupportedMediaError(
            f"the workbook is damaged and can't be read ({str(fault)[:100]}); save it again"
        ) from None
    if found.start is None or found.start[1] + found.width > MOST_COLUMNS:
        raise InvalidRequestError(f"{name} has more than {MOST_COLUMNS} columns; delete the others")
    # Rows begin with the first of the sheet, but cells with the first column that has any.
    indent = [""] * found.start[1]
    for number, values in enumerate(found.iter_rows(), 1):
        cells = [value.strip() if type(value) is str else cell_text(value) for value in values]
        if any(cells):
            yield Row(number, number, indent + cells)


def _check_parts(file: BinaryIO) -> None:
    """Check the directory of the ZIP file. Its sizes may be false, the limits hold anyway."""
    file.seek(0)
    try:
        with zipfile.ZipFile(file) as archive:
            parts = {each.filename: each for each in archive.infolist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise UnsupportedMediaError(
            "the workbook is cut short or damaged; upload it again"
        ) from None
    if _WORKBOOK not in parts:
        raise UnsupportedMediaError(
            "the file is neither CSV nor XLSX; save the list as XLSX or CSV UTF-8"
        )
    if any(each.flag_bits & 1 for each in parts.values()):
        raise UnsupportedMediaError(
            "the workbook is encrypted; save it without a password and upload it again"
        )
    if sum(each.file_size for each in parts.values()) > MOST_UNPACKED:
        raise PayloadTooLargeError(
            f"the workbook unpacks to more than {MOST_UNPACKED >> 20} MiB; upload CSV, or parts"
        )


def cell_text(value: object) -> str:
    """The text of a cell's value."""
    match value:
        case str():
            return value
        case bool():
            return "TRUE" if value else "FALSE"
        case float():
            # As Excel: a number has 15 digits, the others are an artefact of binary fractions.
            return f"{value:.0f}" if value.is_integer() else f"{value:.15g}"
        case datetime.datetime():
            text = value.isoformat(" ", "seconds")
            return text.removesuffix(" 00:00:00")
        case datetime.date() | datetime.time():
            return value.isoformat()
    return str(value)
