"""The worker process that reads an uploaded list: `python -m bitel.recipient_lists.list_worker`.

It inherits the file and two output files as descriptors, and gets a `Task` as JSON on stdin. Before
it reads the file it limits its resources and enters the sandbox. It writes each piece of recipients
to one output, after its length, and the `Summary`, or the sentence of an error, as JSON to the
other. Its exit status is a `ListVerdict`.
"""

from __future__ import annotations

import codecs
import errno
import json
import os
import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO, Final

from bitel.domain.recipients import Recipient, pack
from bitel.recordings import sandbox
from bitel.recordings.limits import confine, rewind

if TYPE_CHECKING:
    from bitel.recipient_lists.reading import NumberRules

LENGTH_BYTES: Final = 4
"""Size of the length before each piece, big-endian."""
_CODE: Final = "ascii"


class ListVerdict(IntEnum):
    """Exit statuses; 1 and 2 are failures of the interpreter."""

    DONE = 0
    INVALID = 10
    UNSUPPORTED = 11
    TOO_LARGE = 12
    NO_ROOM = 22
    OUT_OF_MEMORY = 34


@dataclass(frozen=True, slots=True)
class Task:
    """What is read, and which numbers are valid: see `reading.read_list`."""

    options: dict[str, Any]
    """Of `ReadOptions`."""
    region: str
    extra_prefixes: Sequence[str]
    """As the region, of `NumberRules`."""
    policy: tuple[Sequence[str], Sequence[str]] | None
    """Prefixes of numbers that the project may call, and of those that it may not. None: numbers
    are valid whether or not it may call them."""
    priced: Sequence[str] = ()
    """Prefixes of the tariff's lines; empty: calls are free."""
    writes: bool = True
    """Whether recipients are written."""

    def to_json(self) -> bytes:
        """The stdin of the worker."""
        return json.dumps(asdict(self)).encode(_CODE)


def main(arguments: list[str]) -> int:
    """Read the descriptor `source` into `pieces` and `summary`; the limits follow."""
    source, pieces, summary = map(int, arguments[:3])
    *limits, file_bytes = arguments[3:]
    task = Task(**json.loads(sys.stdin.buffer.read()))
    confine(*limits, file_bytes=int(file_bytes))
    try:
        return _read(task, source, pieces, summary)
    except MemoryError:
        return ListVerdict.OUT_OF_MEMORY
    except OSError as error:
        if error.errno == errno.EFBIG:
            return ListVerdict.TOO_LARGE
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return ListVerdict.NO_ROOM
        raise


def _read(task: Task, source: int, pieces: int, summary: int) -> int:
    # Imported and loaded under the limits, but before the sandbox forbids opening files.
    from zoneinfo import available_timezones

    import python_calamine  # noqa: F401

    from bitel.domain.phone_numbers import load_all_plans
    from bitel.errors import InvalidRequestError, PayloadTooLargeError, UnsupportedMediaError
    from bitel.recipient_lists import reading, text, workbook

    time_zones = available_timezones()
    load_all_plans()
    rules = _rules(task)
    for codec in ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "cp1252", "cp1256", "cp437"):
        codecs.lookup(codec)
    rewind((pieces, summary))
    with (
        os.fdopen(source, "rb") as file,
        os.fdopen(pieces, "wb") as pieces_file,
        os.fdopen(summary, "wb") as summary_file,
    ):
        sandbox.enter(drop_user=True)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
        sandbox.allow_computing_only()
        options = reading.ReadOptions(**task.options)
        try:
            if workbook.kind_of(file) is workbook.FileKind.XLSX:
                rows = workbook.xlsx_rows(file, options.name)
            else:
                rows = text.csv_rows(file, options.name, rules.is_number)
            write = partial(_write_piece, pieces_file) if task.writes else None
            found = reading.read_list(rows, rules, time_zones, options, write)
        except (InvalidRequestError, UnsupportedMediaError, PayloadTooLargeError) as fault:
            _write_json(summary_file, {"message": str(fault)})
            return {
                InvalidRequestError: ListVerdict.INVALID,
                UnsupportedMediaError: ListVerdict.UNSUPPORTED,
                PayloadTooLargeError: ListVerdict.TOO_LARGE,
            }[type(fault)]
        _write_json(summary_file, asdict(found))
    return ListVerdict.DONE


def _rules(task: Task) -> NumberRules:
    from bitel.domain.number_policy import NumberChecker, NumberPolicy
    from bitel.domain.pricing import Rate, Tariff
    from bitel.recipient_lists.reading import NumberRules

    check = None
    if task.policy is not None:
        allowed, forbidden = map(tuple, task.policy)
        tariff = Tariff([Rate(prefix, Decimal(0)) for prefix in task.priced])
        policy = NumberPolicy(task.region, allowed, forbidden)
        check = NumberChecker(policy, tariff, task.extra_prefixes)
    return NumberRules(task.region, task.extra_prefixes, check)


def _write_piece(into: BinaryIO, recipients: Sequence[Recipient]) -> None:
    packed = pack(recipients)
    into.write(len(packed).to_bytes(LENGTH_BYTES, "big"))
    into.write(packed)


def _write_json(into: BinaryIO, content: dict[str, Any]) -> None:
    into.write(json.dumps(content).encode(_CODE))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
