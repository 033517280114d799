"""Keeps the SIP messages of calls in files: those of the last calls, and of those in ERROR.

Messages are held in memory while an attempt runs; a thread of their own writes them afterwards, a
few times a second. Everything is bounded: messages of an attempt, the queue of the writer, and the
files by number, size and age. Beyond that traces are lost, and calls are not.

A file for each call would cost more than the call: here hundreds of attempts are one write, and
are forgotten by removing one file. A file is named after its number; each entry in it is a line of
JSON (`Entry`) and the messages behind it.
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

MOST_MESSAGES: Final = 200
"""Messages that are kept of one attempt."""
MOST_BYTES: Final = 512 * 1024
"""Bytes of one attempt's messages."""
LONGEST_MESSAGE: Final = 8192
"""Bytes of a message that are kept."""
MOST_WAITING: Final = 2000
"""Attempts that wait to be written; with more the oldest are lost."""
PAUSE: Final = 0.25
"""Seconds between two writes."""
A_FEW: Final = 100
"""Attempts; where more than that wait after a pause, there is a burst."""
LONG_PAUSE: Final = 15.0
"""Seconds between two writes in a burst. Writing an attempt takes as much CPU as a good part of its
call, and in a burst most would soon be pushed out by the next: those are never written."""
MANY_WRONG: Final = MOST_WAITING // 4
"""Attempts that ended in ERROR; with as many waiting, the pause ends, so that none is lost."""
LOOK_AGAIN: Final = 3600.0
"""Seconds between two checks for what has become too old, where nothing is written."""
PARTS: Final = 8
"""Files that a full share is kept in: what is removed at a time is about one part of it."""
DAY: Final = 86_400.0
ERRORS: Final = "errors"
"""The folder, within that of the traces, for calls that went wrong."""
LONGEST_HEAD: Final = 64 * 1024
LONGEST_ENTRY: Final = 16 * 1024 * 1024
"""Bytes of an entry's first line, and of its messages: a file that says more is broken."""

WENT_WRONG: Final = frozenset(
    (Outcome.BAD_NUMBER, Outcome.REFUSED, Outcome.MEDIA_MISMATCH, Outcome.REFUSED_FOR_GOOD)
)
"""What a call ends in ERROR for."""

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
    """What is kept: attempts of any kind, attempts of calls that ended in ERROR, bytes, days.

    The bytes are shared evenly by both kinds.
    """

    attempts: int = 1000
    errors: int = 10_000
    size: int = 256 * 1024 * 1024
    days: int = 30


@dataclass(slots=True)
class _AttemptTrace:
    request: DialRequest
    sip_call_ids: list[bytes] = field(default_factory=list)
    messages: list[tuple[float, Direction, Address, bytes]] = field(default_factory=list)
    room: int = MOST_BYTES
    """Bytes of further messages that are kept."""
    result: AttemptResult | None = None
    """None where a fault of our own ended it."""

    @property
    def is_wrong(self) -> bool:
        """Whether the call ended in ERROR, or for a fault of our own."""
        return self.result is None or self.result.outcome in WENT_WRONG

    def encode(self) -> tuple[str, bytes]:
        """The call, and the attempt's entry."""
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
    """A CallObserver that writes into `folder`, which is created if need be, with mode 0700."""

    def __init__(
        self, folder: Path, keep: Keep | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        keep = keep or Keep()
        self._running: dict[str, _AttemptTrace] = {}
        self._by_sip_call_id: dict[bytes, _AttemptTrace] = {}
        self._waiting: deque[_AttemptTrace] = deque(maxlen=min(keep.attempts, MOST_WAITING))
        self._wrong: deque[_AttemptTrace] = deque(maxlen=MOST_WAITING)
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
        """An INVITE for `request` is about to leave."""
        trace = self._running.get(request.attempt_id)
        if trace is None:
            trace = self._running[request.attempt_id] = _AttemptTrace(request)
        call_id = sip_call_id.encode()
        trace.sip_call_ids.append(call_id)
        self._by_sip_call_id[call_id] = trace

    def tap(self, direction: Direction, data: bytes, address: Address, at: float) -> None:
        """Keep the message if it is of a call that is under way."""
        trace = self._by_sip_call_id.get(sip_call_id(data))
        if trace is None or trace.room < len(data) or len(trace.messages) == MOST_MESSAGES:
            return
        # Not cut yet: credentials are masked first, as half a header would not be recognised.
        trace.messages.append((at, direction, address, data))
        trace.room -= len(data)

    def over(self, request: DialRequest, result: AttemptResult | None) -> None:
        """Have the attempt's messages written; one without any only if it ended in ERROR."""
        had_invite = request.attempt_id in self._running
        trace = self._running.pop(request.attempt_id, None) or _AttemptTrace(request)
        trace.result = result
        for each in trace.sip_call_ids:
            self._by_sip_call_id.pop(each, None)
        if trace.is_wrong and self._keeps_errors:
            self._wrong.append(trace)
        elif self._keeps_any and (had_invite or trace.is_wrong):
            self._waiting.append(trace)
        else:
            return
        if not self._wake.is_set():
            self._wake.set()

    def close(self) -> None:
        """Write what waits, and end the thread."""
        self._closing.set()
        self._wake.set()
        self._writer.join()

    # In the thread

    def _run(self) -> None:
        self._try(self._last.prepare, self._errors.prepare)
        while not self._closing.is_set():
            if not self._wake.wait(LOOK_AGAIN):
                self._try(self._last.forget, self._errors.forget)
            self._closing.wait(PAUSE)
            if len(self._waiting) + len(self._wrong) > A_FEW:
                self._wait_for_the_burst()
            self._wake.clear()
            self._try(self._write)
        self._try(self._write)

    def _wait_for_the_burst(self) -> None:
        end = time.monotonic() + LONG_PAUSE
        while time.monotonic() < end and len(self._wrong) < MANY_WRONG:
            if self._closing.wait(PAUSE):
                return

    def _try(self, *work: Callable[[], None]) -> None:
        try:
            for each in work:
                each()
        except OSError as fault:
            log.warning("traces_not_kept", fault=str(fault))

    def _write(self) -> None:
        well, wrong = _drained(self._waiting), _drained(self._wrong)
        if well:
            self._last.add([each.encode() for each in well])
        if wrong:
            # The earlier attempts of a call that has gone wrong are kept with it.
            earlier = self._last.of_calls({each.request.call_id for each in wrong})
            self._errors.add([*earlier, *(each.encode() for each in wrong)])


def _drained(waiting: deque[_AttemptTrace]) -> list[_AttemptTrace]:
    """What waits, the oldest first; the other thread may add to it meanwhile."""
    return [waiting.popleft() for _ in range(len(waiting))]


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
    """The files in `folder`, for one thread. Every method may raise OSError.

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


@dataclass(frozen=True, slots=True)
class Traced:
    """A SIP message; `at` is in Unix seconds, `address` the far end's. Its credentials are gone."""

    at: float
    direction: Direction
    address: str
    message: str

    @classmethod
    def of(cls, direction: Direction, data: bytes, address: Address, at: float) -> Traced:
        """The message in a datagram."""
        # Masked before it is cut: half a header would not be recognised.
        text = without_credentials(data)[:LONGEST_MESSAGE].decode("utf-8", "replace")
        return cls(round(at, 6), direction, shown(address), text.replace("\r\n", "\n"))


@dataclass(frozen=True, slots=True)
class Entry:
    """An attempt in a file: what it came to, and the messages that it took."""

    call_id: str
    attempt_id: str
    outcome: str
    detail: str
    messages: Sequence[tuple[float, Direction, str, bytes]]
    """When (Unix seconds), which way, the far end's address, and the message."""

    def encode(self) -> bytes:
        """A line of JSON, then the messages without their credentials."""
        bodies = [data for *_, data in self.messages]
        # Most attempts need none, which one search over all their messages finds faster.
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

        Ends where the file is broken, as after a crash: an entry may be half written. Messages are
        read only where a call is asked for. Raises OSError.
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
    """Overwrite the traces of calls in a folder of traces with blanks; how many attempts it was.

    The files keep their length, so that a process that appends to them is not disturbed. Raises
    OSError.
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
            continue  # it was the oldest, and has been removed meanwhile
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
    """A SIP message whose (Proxy-)Authorization headers say nothing."""
    if b"authorization" not in data.lower():
        return data  # most messages, and this is fast
    return _CREDENTIALS.sub(rb"\1***", data)


def sip_call_id(data: bytes) -> bytes:
    """A message's Call-ID, empty where it has none."""
    # Called for every message: the usual form is found without the regular expression.
    _, usual, after = data[:LONGEST_MESSAGE].partition(_USUAL_CALL_ID)
    if usual:
        return after.partition(b"\r\n")[0].strip()
    found = _CALL_ID.search(data, 0, LONGEST_MESSAGE)
    return found[1] if found else b""


def arrow(traced: Traced, width: int = 44) -> str:
    """The message as one line of a ladder: we stand on the left, the far end on the right."""
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
    """The arrow, and the message below it, indented."""
    body = traced.message.rstrip("\n").split("\n")
    return "\n".join([arrow(traced), *(f"    {printable(line)}" for line in body), ""])


def read(folder: Path, call_id: str) -> list[Traced | str]:
    """The messages of a call's attempts, each followed by a sentence on what that came to.

    `folder` is that of the traces; empty where it has none of the call. Raises OSError.
    """
    if not _ID.fullmatch(call_id):
        return []
    entries: dict[str, Entry] = {}
    for place in (folder, folder / ERRORS):
        for path in names_of_files(place):
            try:
                # Earlier attempts of a call that went wrong are kept twice.
                found = {entry.attempt_id: entry for entry, _, _ in Entry.scan(path, call_id)}
            except FileNotFoundError:
                continue  # removed by the service, at this moment
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
    """The files of traces in `folder`, the oldest first; none where there is no folder."""
    found = [path for path in folder.glob("*.trace") if path.stem.isascii() and path.stem.isdigit()]
    return sorted(found, key=lambda path: int(path.stem))
