"""Reads an uploaded list in a confined worker process, and checks what that has written."""

from __future__ import annotations

import asyncio
import errno
import json
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from pydantic import TypeAdapter, ValidationError

from bitel.domain.recipients import Recipient, unpack
from bitel.errors import (
    InvalidRequestError,
    PayloadTooLargeError,
    UnavailableError,
    UnsupportedMediaError,
)
from bitel.recipient_lists.list_worker import LENGTH_BYTES, ListVerdict, Task
from bitel.recipient_lists.reading import Summary
from bitel.recordings import worker_process
from bitel.recordings.files import new_file, removed_on_failure
from bitel.recordings.limits import MEBIBYTE
from bitel.recordings.worker_process import SERVICE

NO_ROOM: Final = "the service has no room for the list now; try again later"
NOT_NOW: Final = "the list can't be read now; try again later"
MOST_SUMMARY: Final = 4 * MEBIBYTE
"""Bytes of the worker's summary."""


class ListLimits(NamedTuple):
    """Limits of a process that reads one list; units as in `DecodeLimits`.

    100,000 rows take a second of CPU time, or up to a minute if most numbers are foreign.
    """

    cpu_seconds: int = 120
    memory_bytes: int = 1024 * MEBIBYTE
    wall_seconds: float = 240.0
    piece_bytes: int = 256 * MEBIBYTE
    """Of the packed recipients together."""


@dataclass(frozen=True, slots=True)
class ReadFile:
    """What the worker has found in a file."""

    summary: Summary
    path: Path
    """The file of the pieces."""

    def pieces(self) -> Iterator[tuple[bytes, Sequence[Recipient]]]:
        """The pieces as they are stored, each with its recipients, checked.

        Raises UnavailableError if the worker wrote something else.
        """
        with self.path.open("rb") as file:
            while head := file.read(LENGTH_BYTES):
                packed = file.read(int.from_bytes(head, "big"))
                try:
                    yield packed, unpack(packed)
                except ValueError as fault:
                    raise UnavailableError(NOT_NOW) from fault


_SUMMARY: Final = TypeAdapter(Summary)


async def read_file(
    source: Path, into: Path, task: Task, limits: ListLimits, owner: str = SERVICE
) -> ReadFile:
    """Read the list `source`, with output files in the folder `into`, which must exist.

    A worker process runs under `limits`, in a turn of the project `owner`.

    Raises UnsupportedMediaError if the file is neither CSV nor XLSX or is encrypted,
    InvalidRequestError if it has no numbers or is no valid CSV, PayloadTooLargeError if it exceeds
    the limits, and UnavailableError if the worker was killed twice or can't be started.
    """
    pieces, summary = into / "pieces", into / "summary"
    with removed_on_failure(pieces, summary):
        ended = await _run_worker(source, pieces, summary, task, limits, owner)
        found = await asyncio.to_thread(_read_summary, summary)
        if ended.status == ListVerdict.DONE:
            try:
                return ReadFile(_SUMMARY.validate_json(found, strict=True), pieces)
            except ValidationError as fault:
                raise UnavailableError(NOT_NOW) from fault
        raise _error(ended, found, limits)


async def _run_worker(
    source: Path, pieces: Path, summary: Path, task: Task, limits: ListLimits, owner: str
) -> worker_process.Ended:
    with ExitStack() as opened:

        def open_files() -> list[int]:
            file = opened.enter_context(source.open("rb"))
            return [file.fileno(), new_file(opened, pieces), new_file(opened, summary)]

        try:
            descriptors = await asyncio.to_thread(open_files)
        except OSError as error:
            is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise UnavailableError(NO_ROOM if is_full else NOT_NOW) from error
        try:
            return await worker_process.run(
                "bitel.recipient_lists.list_worker",
                [str(each) for each in (*descriptors, *limits)],
                limits.wall_seconds,
                stdin=task.to_json(),
                descriptors=descriptors,
                owner=owner,
            )
        except TimeoutError:
            raise PayloadTooLargeError(
                f"the list takes longer than {limits.wall_seconds:g} s to read; upload it in parts"
            ) from None


def _read_summary(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MOST_SUMMARY)


def _error(ended: worker_process.Ended, summary: bytes, limits: ListLimits) -> Exception:
    """The error of an exit status."""
    status = ended.status
    kinds = {
        ListVerdict.INVALID: InvalidRequestError,
        ListVerdict.UNSUPPORTED: UnsupportedMediaError,
        ListVerdict.TOO_LARGE: PayloadTooLargeError,
    }
    for verdict, kind in kinds.items():
        if status == verdict and (message := _message(summary)):
            return kind(message)
    if status == ListVerdict.OUT_OF_MEMORY or status == -signal.SIGABRT:
        # The workbook reader ends the process if it gets no memory.
        return PayloadTooLargeError(
            f"the list takes more than {limits.memory_bytes // MEBIBYTE} MiB of memory to read; "
            "upload it as CSV, or in parts"
        )
    if status in (ListVerdict.TOO_LARGE, -signal.SIGXFSZ):
        return PayloadTooLargeError(
            f"the recipients take more than {limits.piece_bytes // MEBIBYTE} MiB to store; upload "
            "the list in parts"
        )
    if status == -signal.SIGXCPU:
        return PayloadTooLargeError(
            f"the list takes more than {limits.cpu_seconds} s of processor time to read; upload it "
            "in parts"
        )
    if status in worker_process.CRASHES:
        return UnsupportedMediaError(
            "the file is damaged in a way that stops its reader; save it again, or as CSV UTF-8"
        )
    if status == ListVerdict.NO_ROOM:
        return UnavailableError(NO_ROOM)
    error = UnavailableError(NOT_NOW)
    error.__cause__ = worker_process.WorkerError(ended)
    return error


def _message(summary: bytes) -> str:
    """The sentence of an error that the worker has written; empty if there is none."""
    try:
        message = json.loads(summary)["message"]
    except (ValueError, TypeError, KeyError):
        return ""
    return message if isinstance(message, str) else ""
