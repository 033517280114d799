"""SIP traces: files with the messages of the last calls, and of calls that ended in ERROR.

Messages are buffered while an attempt runs; a thread writes them afterwards, a few times a second.
Everything is bounded: messages of an attempt, the queue of the writer, and the files by number,
size and age. Beyond that traces are dropped.

Files are numbered segments with many attempts, so that hundreds are appended by one write and
removed with one file. An entry is a line of JSON (`Entry`), followed by the messages.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import BinaryIO, Final, Literal, Self

import structlog

from bitel.dialer.trunk import shown
from bitel.domain.attempts import AttemptResult, DialRequest, Outcome
from bitel.sip.grammar import Address
from bitel.sip.message import printable

log = structlog.get_logger(__name__)

MAX_MESSAGES: Final = 200
"""Messages kept of one attempt."""
MAX_BYTES: Final = 512 * 1024
"""Bytes kept of one attempt."""
LONGEST_MESSAGE: Final = 8192
"""Bytes kept of one message."""
MAX_WAITING: Final = 2000
"""Attempts queued for the writer; beyond, the oldest are dropped."""
PAUSE: Final = 0.25
"""Seconds between writes."""
BURST: Final = 100
"""Attempts; more than that in the queue after a pause are a burst."""
LONG_PAUSE: Final = 15.0
"""Seconds between writes in a burst. Writing costs much CPU, and in a burst most attempts are soon
replaced by later ones: those are never written."""
MAX_WAITING_ERRORS: Final = MAX_WAITING // 4
"""Queued attempts that ended in ERROR at which the pause ends, so that none is dropped."""
CHECK_INTERVAL: Final = 3600.0
"""Seconds between checks for old files if nothing is written."""
SEGMENTS: Final = 8
"""Files of a full share: the oldest is removed at a time."""
DAY: Final = 86_400.0
ERRORS: Final = "errors"
"""The subfolder for calls that ended in ERROR."""
LONGEST_HEAD: Final = 64 * 1024
LONGEST_ENTRY: Final = 16 * 1024 * 1024
"""Limits in bytes of the first line of an entry, and of its messages, in a valid file."""

ERROR_OUTCOMES: Final = frozenset(
    (Outcome.BAD_NUMBER, Outcome.REFUSED, Outcome.MEDIA_MISMATCH, Outcome.REFUSED_FOR_GOOD)
)
"""Outcomes of calls that end in ERROR."""

_CREDENTIALS: Final = re.compile(
    rb"^((?:Proxy-)?Authorization[ \t]*:[ \t]*)[^\r\n]*(?:\r?\n[ \t][^\r\n]*)*", re.I | re.M
)
_CALL_ID: Final = re.compile(rb"^(?:Call-ID|i)[ \t]*:[ \t]*([^\s]+)", re.I | re.M)
_USUAL_CALL_ID: Final = b"\r\nCall-ID: "
_TO_JSON: Final = json.JSONEncoder(ensure_ascii=False).encode
_CSEQ: Final = re.compile(r"^CSeq[ \t]*:[ \t]*\d+[ \t]+(\w+)", re.I | re.M)
_ID: Final = re.compile(r"[0-9a-f]{32}")

Direction = Literal["in", "out"]
_DIRECTIONS: Final[dict[str, Direction]] = {"in": "in", "out": "out"}


@dataclass(frozen=True, slots=True)
class Keep:
    """What is kept: attempts of any kind, attempts of calls that ended in ERROR, bytes (one half
    for each kind), and days."""

    attempts: int = 1000
    errors: int = 10_000
    size: int = 256 * 1024 * 1024
    days: int = 30


@dataclass(slots=True)
class _AttemptTrace:
    request: DialRequest
    sip_call_ids: list[bytes] = field(default_factory=list)
    messages: list[tuple[float, Direction, Address, bytes]] = field(default_factory=list)
    room: int = MAX_BYTES
    """Bytes of further messages that may be kept."""
    result: AttemptResult | None = None
    """None after an internal error."""

    @property
    def is_error(self) -> bool:
        """Whether the call ended in ERROR or by an internal error."""
        return self.result is None or self.result.outcome in ERROR_OUTCOMES

    def encode(self) -> tuple[str, bytes]:
        """The call's id and the encoded entry of the attempt."""
        result = self.result
        entry = Entry(
            self.request.call_id,
            self.request.attempt_id,
            result.outcome.value if result else "a fault inside the dialer",
            result.detail if result else "",
            [(at, way, shown(address), data) for at, way, address, data in self.messages],
        )
        return self.request.call_id, entry.encode()


class TraceStore:
    """A CallObserver that writes to `folder`, which is created with mode 0700."""

    def __init__(
        self, folder: Path, keep: Keep | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        keep = keep or Keep()
        self._running: dict[str, _AttemptTrace] = {}
        self._by_sip_call_id: dict[bytes, _AttemptTrace] = {}
        self._waiting: deque[_AttemptTrace] = deque(maxlen=min(keep.attempts, MAX_WAITING))
        self._waiting_errors: deque[_AttemptTrace] = deque(maxlen=MAX_WAITING)
        share, errors = (
            Share(most, keep.size // 2, keep.days) for most in (keep.attempts, keep.errors)
        )
        self._last = TraceFiles(folder, share, clock)
        self._errors = TraceFiles(folder / ERRORS, errors, clock)
        self._keeps_any, self._keeps_errors = keep.attempts > 0, keep.errors > 0
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._writer = threading.Thread(target=self._run, name="traces", daemon=True)
        self._writer.start()

    def invited(self, request: DialRequest, sip_call_id: str) -> None:
        """An INVITE for `request` is about to be sent."""
        trace = self._running.get(request.attempt_id)
        if trace is None:
            trace = self._running[request.attempt_id] = _AttemptTrace(request)
        call_id = sip_call_id.encode()
        trace.sip_call_ids.append(call_id)
        self._by_sip_call_id[call_id] = trace

    def tap(self, direction: Direction, data: bytes, address: Address, at: float) -> None:
        """Buffer a message of a running call."""
        trace = self._by_sip_call_id.get(sip_call_id(data))
        if trace is None or trace.room < len(data) or len(trace.messages) == MAX_MESSAGES:
            return
        # Truncated later: credentials in half a header would not be masked.
        trace.messages.append((at, direction, address, data))
        trace.room -= len(data)

    def over(self, request: DialRequest, result: AttemptResult | None) -> None:
        """Queue the attempt for the writer; without an INVITE only if it ended in ERROR."""
        had_invite = request.attempt_id in self._running
        trace = self._running.pop(request.attempt_id, None) or _AttemptTrace(request)
        trace.result = result
        for each in trace.sip_call_ids:
            self._by_sip_call_id.pop(each, None)
        if trace.is_error and self._keeps_errors:
            self._waiting_errors.append(trace)
        elif self._keeps_any and (had_invite or trace.is_error):
            self._waiting.append(trace)
        else:
            return
        if not self._wake.is_set():
            self._wake.set()

    def close(self) -> None:
        """Write the queue, and end the thread."""
        self._closing.set()
        self._wake.set()
        self._writer.join()

    # The writer thread

    def _run(self) -> None:
        self._try(self._last.prepare, self._errors.prepare)
        while not self._closing.is_set():
            if not self._wake.wait(CHECK_INTERVAL):
                self._try(self._last.forget, self._errors.forget)
            self._closing.wait(PAUSE)
            if len(self._waiting) + len(self._waiting_errors) > BURST:
                self._wait_for_the_burst()
            self._wake.clear()
            self._try(self._write)
        self._try(self._write)

    def _wait_for_the_burst(self) -> None:
        end = time.monotonic() + LONG_PAUSE
        while time.monotonic() < end and len(self._waiting_errors) < MAX_WAITING_ERRORS:
            if self._closing.wait(PAUSE):
                return

    def _try(self, *work: Callable[[], None]) -> None:
        try:
            for each in work:
                each()
        except OSError as fault:
            log.warning("traces_not_kept", fault=str(fault))

    def _write(self) -> None:
        recent, errors = _drained(self._waiting), _drained(self._waiting_errors)
        if recent:
            self._last.add([each.encode() for each in recent])
        if errors:
            # Copy the earlier attempts of calls that ended in ERROR.
            earlier = self._last.of_calls({each.request.call_id for each in errors})
            self._errors.add([*earlier, *(each.encode() for each in errors)])


def _drained(waiting: deque[_AttemptTrace]) -> list[_AttemptTrace]:
    """Take what is queued, oldest first; the other thread may append meanwhile."""
    return [waiting.popleft() for _ in range(len(waiting))]


@dataclass(frozen=True, slots=True)
class Share:
    """Limits of a folder: attempts, bytes, days."""

    attempts: int
    size: int
    days: int


@dataclass(slots=True)
class _File:
    path: Path
    size: int = 0
    written_at: float = 0.0
    entries: list[tuple[str, int, int]] = field(default_factory=list)
    """Call id, offset and length of each entry."""


class TraceFiles:
    """The files of a folder; not thread-safe. All methods may raise OSError.

    `clock` gives Unix seconds.
    """

    def __init__(self, folder: Path, share: Share, clock: Callable[[], float]) -> None:
        self._folder = folder
        self._share = share
        self._clock = clock
        self._files: OrderedDict[int, _File] = OrderedDict()
        self._last = 0
        self._is_open = False

    def prepare(self) -> None:
        """Create the folder, for this user only, and read the index of existing files."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in names_of_files(self._folder):
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                entries = [(one.call_id, at, size) for one, at, size in Entry.scan(path)]
                self._last = int(path.stem)
                self._files[self._last] = _File(path, stat.st_size, stat.st_mtime, entries)
        self.forget()

    def add(self, entries: Sequence[tuple[str, bytes]]) -> None:
        """Append encoded entries, given with their call ids, and apply the limits."""
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
        """The entries of these calls, in the form of `add`."""
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
        """Remove files beyond the limits."""
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
        most = max(1, self._share.attempts // SEGMENTS)
        return [entries[first : first + most] for first in range(0, len(entries), most)]

    def _file(self) -> _File:
        """The file to append to: the last one of this run until it is full, or a new one."""
        share = self._share
        if self._is_open:
            file = self._files[self._last]
            if len(file.entries) < share.attempts / SEGMENTS and file.size < share.size / SEGMENTS:
                return file
        self._last += 1
        self._is_open = True
        file = self._files[self._last] = _File(self._folder / f"{self._last}.trace")
        return file


@dataclass(frozen=True, slots=True)
class Traced:
    """A SIP message with masked credentials; `at` is in Unix seconds, `address` is remote."""

    at: float
    direction: Direction
    address: str
    message: str

    @classmethod
    def of(cls, direction: Direction, data: bytes, address: Address, at: float) -> Traced:
        """The message of a datagram."""
        # Masked before truncation, as half a header would not be recognised.
        text = without_credentials(data)[:LONGEST_MESSAGE].decode("utf-8", "replace")
        return cls(round(at, 6), direction, shown(address), text.replace("\r\n", "\n"))


@dataclass(frozen=True, slots=True)
class Entry:
    """An attempt in a file: its outcome and messages."""

    call_id: str
    attempt_id: str
    outcome: str
    detail: str
    messages: Sequence[tuple[float, Direction, str, bytes]]
    """Time (Unix seconds), direction, remote address and message."""

    def encode(self) -> bytes:
        """A line of JSON, then the messages with masked credentials."""
        bodies = [data for *_, data in self.messages]
        # Most attempts have no credentials: one search over all messages is faster.
        if b"authorization" in b"\n".join(bodies).lower():
            bodies = [without_credentials(data) for data in bodies]
        bodies = [data[:LONGEST_MESSAGE] for data in bodies]
        head = {
            "call": self.call_id,
            "attempt": self.attempt_id,
            "outcome": self.outcome,
            "detail": self.detail[:1000],
            "messages": [
                (round(at, 6), direction, address, len(body))
                for (at, direction, address, _), body in zip(self.messages, bodies, strict=True)
            ],
        }
        return b"".join((_TO_JSON(head).encode(), b"\n", *bodies, b"\n"))

    @classmethod
    def scan(cls, path: Path, call_id: str = "") -> Iterator[tuple[Self, int, int]]:
        """The entries in a file, or those of a call, each with its offset and length.

        Ends at an incomplete entry, as after a crash. Messages are read only for `call_id`. Raises
        OSError.
        """
        with path.open("rb") as file:
            at = 0
            while (line := file.readline(LONGEST_HEAD)).endswith(b"\n"):
                try:
                    head = json.loads(line)
                    size = sum(each[3] for each in head["messages"])
                    if not 0 <= size <= LONGEST_ENTRY:
                        return
                    wanted = bool(call_id) and head["call"] == call_id
                    entry = cls(
                        str(head["call"]),
                        str(head["attempt"]),
                        str(head["outcome"]),
                        str(head["detail"]),
                        [
                            (float(when), _DIRECTIONS[way], str(address), file.read(length))
                            for when, way, address, length in head["messages"]
                            if wanted
                        ],
                    )
                except (ValueError, TypeError, KeyError, IndexError, RecursionError):
                    return
                file.seek(at + len(line) + size)
                if file.read(1) != b"\n":
                    return
                if wanted or not call_id:
                    yield entry, at, len(line) + size + 1
                at = file.tell()


def erase(folder: Path, call_ids: Collection[str]) -> int:
    """Overwrite the traces of calls with blanks; returns the number of attempts.

    Files keep their length, because another process may append to them. Raises OSError.
    """
    erased = 0
    for path in [*names_of_files(folder), *names_of_files(folder / ERRORS)]:
        try:
            with path.open("r+b") as file:
                for entry, at, size in list(Entry.scan(path)):
                    if entry.call_id in call_ids:
                        _blank(file, at, size)
                        erased += 1
        except FileNotFoundError:
            continue  # removed by the service
    return erased


def _blank(file: BinaryIO, at: int, size: int) -> None:
    """Overwrite an entry by an empty one of the same length."""
    file.seek(at)
    line = file.readline(LONGEST_HEAD)
    head = json.loads(line)
    head |= {"call": "", "attempt": "", "detail": ""}
    blank = _TO_JSON(head).encode()
    body = b" " * (size - len(line) - 1)
    file.seek(at)
    file.write(blank.ljust(len(line) - 1) + b"\n" + body)


def without_credentials(data: bytes) -> bytes:
    """Mask the (Proxy-)Authorization headers of a SIP message."""
    if b"authorization" not in data.lower():
        return data  # fast path
    return _CREDENTIALS.sub(rb"\1***", data)


def sip_call_id(data: bytes) -> bytes:
    """The Call-ID of an unparsed message, b"" without one."""
    # Called for every message: fast path for the usual form.
    _, usual, after = data[:LONGEST_MESSAGE].partition(_USUAL_CALL_ID)
    if usual:
        return after.partition(b"\r\n")[0].strip()
    found = _CALL_ID.search(data, 0, LONGEST_MESSAGE)
    return found[1] if found else b""


def arrow(traced: Traced, width: int = 44) -> str:
    """The message as one line of a ladder diagram: we are left, the remote is right."""
    first = traced.message.partition("\n")[0]
    if first.startswith("SIP/2.0 "):
        cseq = _CSEQ.search(traced.message)
        what = first.removeprefix("SIP/2.0 ") + (f" ({cseq[1]})" if cseq else "")
    else:
        what = first.removesuffix(" SIP/2.0")
    what = printable(what)
    if len(what) > width:
        what = what[: width - 1] + "…"
    line = f" {what} ".center(width + 4, "─")
    pointed = f"├{line}▶" if traced.direction == "out" else f"◀{line}┤"
    clock = time.strftime("%H:%M:%S", time.localtime(traced.at)) + f"{traced.at % 1:.3f}"[1:]
    return f"{clock}  {pointed}  {printable(traced.address)}"


def in_full(traced: Traced) -> str:
    """The arrow and the indented message."""
    body = traced.message.rstrip("\n").split("\n")
    return "\n".join([arrow(traced), *(f"    {printable(line)}" for line in body), ""])


def read(folder: Path, call_id: str) -> list[Traced | str]:
    """The messages of a call's attempts, each attempt followed by a sentence on its outcome.

    Empty if `folder` has no traces of the call. Raises OSError.
    """
    if not _ID.fullmatch(call_id):
        return []
    entries: dict[str, Entry] = {}
    for place in (folder, folder / ERRORS):
        for path in names_of_files(place):
            try:
                # Earlier attempts of a call in ERROR are stored twice.
                found = {entry.attempt_id: entry for entry, _, _ in Entry.scan(path, call_id)}
            except FileNotFoundError:
                continue  # removed by the service
            entries.update(found)
    lines: list[Traced | str] = []
    # Ids are time-ordered.
    for entry in sorted(entries.values(), key=attrgetter("attempt_id")):
        lines += [
            Traced(at, way, address, data.decode("utf-8", "replace").replace("\r\n", "\n"))
            for at, way, address, data in entry.messages
        ]
        detail = f": {entry.detail}" if entry.detail else ""
        lines.append(printable(f"attempt {entry.attempt_id} ended as {entry.outcome}{detail}"))
    return lines


def names_of_files(folder: Path) -> list[Path]:
    """The trace files in `folder`, oldest first; empty without a folder."""
    found = [path for path in folder.glob("*.trace") if path.stem.isascii() and path.stem.isdigit()]
    return sorted(found, key=lambda path: int(path.stem))
