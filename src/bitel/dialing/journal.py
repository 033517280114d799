"""The journal: a preallocated file of settlements that the database did not take in time.

The file is created at its full size, filled with zeros, when the dialer starts, so that it can be
written while the disk is full. A fixed header is followed by entries, each with its length and
checksum; a length of zero ends them. Once all settlements are in the database, they are
overwritten with zeros. An entry is a settlement as JSON, without the phone number.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import struct
import threading
import zlib
from collections.abc import Sequence
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, Final

import structlog

from bitel.domain.attempts import AttemptResult, Irregularity, Media, Outcome
from bitel.domain.calls import CallStatus
from bitel.domain.pricing import Bill
from bitel.domain.retry import Finish, Requeue, RetryAt, RetryWaits
from bitel.store.settling import Settlement

log = structlog.get_logger(__name__)

_HEAD: Final = b"bitel-unsettled1"
_FRAME: Final = struct.Struct(">II")  # length and CRC-32 of the payload
_END: Final = bytes(_FRAME.size)

ENTRY_BYTES: Final = 1024
"""Maximum size of an entry. A longer one is written without its free text and digits."""

_OF_FEW: Final = frozenset({"reports", "opted_out", "machine"})

_VERDICTS: Final[dict[str, type[Finish] | type[RetryAt] | type[Requeue]]] = {
    "final": Finish,
    "again": RetryAt,
    "hand back": Requeue,
}


class Journal:
    """The file of one dialer. Its methods block, and may be called from any thread."""

    def __init__(self, path: Path, capacity: int) -> None:
        """`capacity` is the number of settlements that fit."""
        self._path = path
        self._size = len(_HEAD) + capacity * ENTRY_BYTES + len(_END)
        self._file = -1
        self._at = len(_HEAD)
        self._lock = threading.Lock()

    def grow(self, capacity: int) -> None:
        """Enlarge the file for so many settlements; it never shrinks.

        If the disk is full, that is logged, and the journal stays as it is.
        """
        with self._lock:
            before, size = self._size, len(_HEAD) + capacity * ENTRY_BYTES + len(_END)
            if size <= before:
                return
            self._size = size
            if self._file < 0:
                return
            try:
                self._grow(before)
            except OSError as fault:
                self._size = before
                log.error("journal_not_enlarged", path=str(self._path), fault=str(fault))

    @property
    def is_empty(self) -> bool:
        """Whether it has no entries."""
        return self._at == len(_HEAD)

    def open(self) -> list[Settlement]:
        """Create the file if needed, and read the settlements that an earlier process left.

        If that fails, or another process has it open, that is logged, and `append` holds nothing.
        Entries after a damaged one are lost, which is logged too.
        """
        with self._lock:
            try:
                return self._open()
            except OSError as fault:
                log.error("journal_unavailable", path=str(self._path), fault=str(fault))
                self._close()
                return []

    def append(self, settlements: Sequence[Settlement]) -> list[Settlement]:
        """Append settlements and wait for the disk. Returns those that do not fit."""
        with self._lock:
            if self._file < 0:
                return list(settlements)
            entries, left = [], []
            room = self._size - self._at - len(_END)
            for one in settlements:
                entry = _encode_entry(one)
                if entry is None or len(entry) > room:
                    left.append(one)
                else:
                    entries.append(entry)
                    room -= len(entry)
            written = b"".join(entries)
            try:
                self._write(written + _END, self._at)
            except OSError as fault:
                log.error("journal_not_written", path=str(self._path), fault=str(fault))
                return list(settlements)
            self._at += len(written)
            return left

    def clear(self) -> None:
        """Overwrite all entries, once their settlements are in the database or given up."""
        with self._lock:
            if self._file < 0 or self.is_empty:
                return
            try:
                self._write(bytes(self._at - len(_HEAD)), len(_HEAD))
            except OSError as fault:
                # The next start tries to apply the entries, and finds them settled.
                log.error("journal_not_written", path=str(self._path), fault=str(fault))
            else:
                self._at = len(_HEAD)

    def close(self) -> None:
        """Close the file. Idempotent."""
        with self._lock:
            self._close()

    def _close(self) -> None:
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.close(self._file)
            self._file = -1

    def _open(self) -> list[Settlement]:
        if self._file < 0:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            # A worker that has lost its lease may still be running.
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        size = os.fstat(self._file).st_size
        content = os.pread(self._file, size, 0)
        found, used, damage = _read(content)
        if damage:
            log.error("journal_damaged", path=str(self._path), readable=len(found), damage=damage)
        self._at = used
        if size < self._size:
            self._grow(size)
        self._write(_HEAD, 0)
        return found

    def _grow(self, size: int) -> None:
        # Zeros are written, since overwriting space that is only allocated may need more metadata.
        os.posix_fallocate(self._file, 0, self._size)
        zeros = bytes(min(1 << 20, self._size - size))
        for at in range(size, self._size, len(zeros)):
            os.pwrite(self._file, zeros[: self._size - at], at)
        os.fsync(self._file)
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _write(self, content: bytes, at: int) -> None:
        while content:
            done = os.pwrite(self._file, content, at)
            content, at = content[done:], at + done
        os.fdatasync(self._file)


def _read(content: bytes) -> tuple[list[Settlement], int, str]:
    """The settlements in a file, the bytes that they take, and what is wrong with the rest, if any.

    If the file is damaged, all of it counts as taken, so that `clear` overwrites it.
    """
    found: list[Settlement] = []
    at = len(_HEAD)
    if not content.strip(b"\0"):
        return found, at, ""
    if not content.startswith(_HEAD):
        return found, max(len(content), at), "it does not begin as a journal does"
    while at + _FRAME.size <= len(content):
        length, checksum = _FRAME.unpack_from(content, at)
        if not length:
            if content[at:].strip(b"\0"):
                return found, len(content), f"there is something behind the end at byte {at}"
            return found, at, ""
        payload = content[at + _FRAME.size : at + _FRAME.size + length]
        if len(payload) < length or zlib.crc32(payload) != checksum:
            return found, len(content), f"the entry at byte {at} is torn"
        try:
            found.append(_decode(payload))
        except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError) as fault:
            return found, len(content), f"the entry at byte {at} can't be read: {fault!r}"
        at += _FRAME.size + length
    return found, at, ""


def _encode_entry(one: Settlement) -> bytes | None:
    for each in (one, _shortened(one)):
        payload = _encode(each)
        if _FRAME.size + len(payload) <= ENTRY_BYTES:
            return _FRAME.pack(len(payload), zlib.crc32(payload)) + payload
    return None


def _shortened(one: Settlement) -> Settlement:
    result = one.result._replace(detail="")
    if result.media is not None:
        result = result._replace(media=result.media._replace(digits="", reports=()))
    one = one._replace(result=result)
    if isinstance(one.decision, Finish):
        one = one._replace(decision=one.decision._replace(reason=""))
    return one


def _encode(one: Settlement) -> bytes:
    decision = one.decision
    (kind,) = (name for name, made_of in _VERDICTS.items() if isinstance(decision, made_of))
    media = one.result.media
    settlement = {
        "attempt_id": one.attempt_id,
        "call_id": one.call_id,
        "attempted": {**one.result._asdict(), "media": media and _media_fields(media)},
        "verdict": [kind, decision._asdict()],
        "bill": [one.bill.seconds, str(one.bill.price)],
    }
    return json.dumps(settlement, default=_value, separators=(",", ":")).encode()


def _media_fields(media: Media) -> dict[str, Any]:
    """Without what few calls have, which the version before can't read."""
    fields = media._asdict()
    return {name: value for name, value in fields.items() if name not in _OF_FEW or value}


def _value(of: object) -> Any:
    if isinstance(of, Enum):
        return of.value
    raise TypeError(f"a journal holds no {type(of).__name__}")


def _decode(payload: bytes) -> Settlement:
    settlement = json.loads(payload)
    result, (kind, decision) = settlement["attempted"], settlement["verdict"]
    result["outcome"] = Outcome(result["outcome"])
    if result["media"] is not None:
        media = result["media"]
        result["media"] = Media(**{**media, "reports": tuple(media.get("reports", ()))})
    irregular = result.get("irregularities", ())
    result["irregularities"] = tuple(map(Irregularity, irregular))
    if "status" in decision:
        decision["status"] = CallStatus(decision["status"])
    if decision.get("waits") is not None:
        decision["waits"] = RetryWaits(*map(tuple, decision["waits"]))
    seconds, price = settlement["bill"]
    return Settlement(
        settlement["attempt_id"],
        settlement["call_id"],
        AttemptResult(**result),
        _VERDICTS[kind](**decision),
        Bill(seconds, Decimal(price)),
    )
