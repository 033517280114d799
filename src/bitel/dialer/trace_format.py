"""SIP messages as they are kept and shown: an entry of a file, an arrow each on a terminal."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal, Self

from bitel.dialer.trunk import shown
from bitel.sip.grammar import Address
from bitel.sip.message import printable

LONGEST_MESSAGE: Final = 8192
"""Bytes of a message that are kept."""

ERRORS: Final = "errors"
"""The folder, within that of the traces, for calls that went wrong."""

LONGEST_HEAD: Final = 64 * 1024
MOST_BYTES: Final = 16 * 1024 * 1024
"""Of an entry's first line, and of the messages behind it: a file that says more is broken."""

_CREDENTIALS: Final = re.compile(
    rb"^((?:Proxy-)?Authorization[ \t]*:[ \t]*)[^\r\n]*(?:\r?\n[ \t][^\r\n]*)*", re.I | re.M
)
_CALL_ID: Final = re.compile(rb"^(?:Call-ID|i)[ \t]*:[ \t]*([^\s]+)", re.I | re.M)
_USUAL_CALL_ID: Final = b"\r\nCall-ID: "
_TO_JSON: Final = json.JSONEncoder(ensure_ascii=False).encode
_CSEQ: Final = re.compile(r"^CSeq[ \t]*:[ \t]*\d+[ \t]+(\w+)", re.I | re.M)
_ID: Final = re.compile(r"[0-9a-f]{32}")

Direction = Literal["in", "out"]


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
        # Masked before it is cut, lest half a header be taken for none.
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
        # Most attempts need none, which is sooner told of all their messages than of each.
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
                    if not 0 <= size <= MOST_BYTES:
                        return
                    wanted = bool(call_id) and head["call"] == call_id
                    entry = cls._of(head, file if wanted else None)
                except (ValueError, TypeError, KeyError, IndexError, RecursionError):
                    return
                file.seek(at + len(line) + size)
                if file.read(1) != b"\n":
                    return
                if wanted or not call_id:
                    yield entry, at, len(line) + size + 1
                at = file.tell()

    @classmethod
    def _of(cls, head: dict[str, Any], bodies: BinaryIO | None) -> Self:
        messages = (
            []
            if bodies is None
            else [
                (float(at), _direction(way), str(address), bodies.read(size))
                for at, way, address, size in head["messages"]
            ]
        )
        return cls(
            str(head["call"]),
            str(head["attempt"]),
            str(head["outcome"]),
            str(head["detail"]),
            messages,
        )


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
    """Overwrite an entry by one of the same length that says nothing."""
    file.seek(at)
    line = file.readline(LONGEST_HEAD)
    head = json.loads(line)
    head |= {"call": "", "attempt": "", "detail": ""}
    blank = _TO_JSON(head).encode()
    body = b" " * (size - len(line) - 1)
    file.seek(at)
    file.write(blank.ljust(len(line) - 1) + b"\n" + body)


def _direction(word: str) -> Direction:
    if word not in ("in", "out"):
        raise ValueError(f"{word!r} is no direction")
    return "in" if word == "in" else "out"


def without_credentials(data: bytes) -> bytes:
    """A SIP message whose (Proxy-)Authorization headers say nothing."""
    if b"authorization" not in data.lower():
        return data  # most messages, and much sooner told
    return _CREDENTIALS.sub(rb"\1***", data)


def sip_call_id(data: bytes) -> bytes:
    """A message's Call-ID, empty where it has none."""
    # As nearly everybody writes it: looked for with every message, so soon.
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
                # Those that went wrong took earlier attempts along, which then are kept twice.
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
