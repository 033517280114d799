"""A file beside the database with the id of the newest attempt that a dialer has begun.

It is compared with the dialer's row at the next start. A database without that attempt was restored
from a backup, and dialling with it would repeat the calls made since.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Final

import structlog

log = structlog.get_logger(__name__)

_ID: Final = re.compile(rb"[0-9a-f]{32}")


class ClaimMark:
    """The mark of one dialer. A missing or damaged file counts as no mark."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1
        self._newest = ""

    def read(self) -> str:
        """The id; empty if there is none."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return ""
        except OSError as fault:
            log.error("claim_mark_not_read", path=str(self._path), fault=str(fault))
            return ""
        found = _ID.match(content)
        return found[0].decode() if found else ""

    def note(self, attempt_id: str) -> None:
        """Write the id of an attempt whose claim is durable, before its INVITE is sent.

        Does not wait for the disk: after a power loss the mark may be older than the database,
        which is harmless.
        """
        if attempt_id <= self._newest:
            return
        self._newest = attempt_id
        try:
            if self._file < 0:
                flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
                self._file = os.open(self._path, flags, 0o600)
            os.pwrite(self._file, f"{attempt_id}\n".encode(), 0)
        except OSError as fault:
            log.error("claim_mark_not_written", path=str(self._path), fault=str(fault))

    def sync(self) -> None:
        """Block until the mark is on the disk."""
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.fdatasync(self._file)

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
