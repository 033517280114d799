"""Traces on disk: attempts one after the other in a few files, of which the oldest go first.

A file for each call would cost more than the call: here hundreds of attempts are one write, and
hundreds are forgotten by removing one file. A file is named after its number; each entry in it is a
line of JSON (`tracing.Entry`) and the messages behind it. None of this is for two threads at once.
"""

from __future__ import annotations

import contextlib
import os
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bitel.dialer.trace_format import Entry, names_of_files

PARTS: Final = 8
"""Files that a full share is kept in: what is removed at a time is about one part of it."""

DAY: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Share:
    """How much is kept in a folder: attempts, bytes, days. 0 attempts: nothing."""

    attempts: int
    size: int
    days: int


@dataclass(slots=True)
class _File:
    path: Path
    size: int = 0
    written_at: float = 0.0
    entries: list[tuple[str, int, int]] = field(default_factory=list)
    """Call, offset and length of each."""


class TraceFiles:
    """The files in `folder`. `clock` is in Unix seconds. Every method may raise OSError."""

    def __init__(self, folder: Path, share: Share, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._share = share
        self._clock = clock
        self._files: OrderedDict[int, _File] = OrderedDict()
        self._last = 0
        self._is_open = False

    def prepare(self) -> None:
        """Make the folder, for this user alone, and take note of what earlier runs left in it."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in names_of_files(self._folder):
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                entries = [(one.call_id, at, size) for one, at, size in Entry.scan(path)]
                self._last = int(path.stem)
                self._files[self._last] = _File(path, stat.st_size, stat.st_mtime, entries)
        self.forget()

    def add(self, entries: Sequence[tuple[str, bytes]]) -> None:
        """Append encoded entries, each given with its call, and remove what is too much."""
        for part in self._parts(entries):
            file = self._file()
            descriptor = os.open(file.path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
            with open(descriptor, "ab") as output:
                output.write(b"".join(data for _, data in part))
            for call_id, data in part:
                file.entries.append((call_id, file.size, len(data)))
                file.size += len(data)
            file.written_at = self._clock()
        self.forget()

    def of_calls(self, call_ids: Collection[str]) -> list[tuple[str, bytes]]:
        """The entries of these calls, as they were given to `add`."""
        found = []
        for file in self._files.values():
            places = [place for place in file.entries if place[0] in call_ids]
            if places:
                with file.path.open("rb") as data:
                    for call_id, at, size in places:
                        data.seek(at)
                        found.append((call_id, data.read(size)))
        return found

    def forget(self) -> None:
        """Remove files that are too old, or too many."""
        attempts = sum(len(file.entries) for file in self._files.values())
        size = sum(file.size for file in self._files.values())
        oldest = self._clock() - self._share.days * DAY
        for number, file in list(self._files.items()):
            is_old = file.written_at < oldest
            is_needed = attempts - len(file.entries) < self._share.attempts
            if not is_old and is_needed and size <= self._share.size:
                return
            file.path.unlink(missing_ok=True)
            del self._files[number]
            self._is_open = self._is_open and number != self._last
            attempts -= len(file.entries)
            size -= file.size

    def _parts(self, entries: Sequence[tuple[str, bytes]]) -> list[Sequence[tuple[str, bytes]]]:
        most = max(1, self._share.attempts // PARTS)
        return [entries[first : first + most] for first in range(0, len(entries), most)]

    def _file(self) -> _File:
        """The file to append to: the last one, until it is full. Those of earlier runs are."""
        share = self._share
        if self._is_open:
            file = self._files[self._last]
            if len(file.entries) < share.attempts / PARTS and file.size < share.size / PARTS:
                return file
        self._last += 1
        self._is_open = True
        file = self._files[self._last] = _File(self._folder / f"{self._last}.trace")
        return file
