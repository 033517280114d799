"""SIP messages as they are kept and shown: a line each in a file, an arrow each on a terminal."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from bitel.dialers.trunk import shown
from bitel.sip.grammar import Address
from bitel.sip.message import printable

LONGEST_MESSAGE: Final = 8192
"""Bytes of a message that are kept."""

ERRORS: Final = "errors"
"""The folder, within that of the traces, for calls that went wrong."""

_CREDENTIALS: Final = re.compile(
    rb"^((?:Proxy-)?Authorization[ \t]*:[ \t]*)[^\r\n]*(?:\r?\n[ \t][^\r\n]*)*", re.I | re.M
)
_CALL_ID: Final = re.compile(rb"^(?:Call-ID|i)[ \t]*:[ \t]*([^\s]+)", re.I | re.M)
_USUAL_CALL_ID: Final = b"\r\nCall-ID: "
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

    def to_json(self) -> str:
        fields = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps(fields, ensure_ascii=False)


def without_credentials(data: bytes) -> bytes:
    """A SIP message whose (Proxy-)Authorization headers say nothing."""
    if b"authorization" not in data.lower():
        return data  # most messages, and much sooner told
    return _CREDENTIALS.sub(rb"\1***", data)


def sip_call_id(data: bytes) -> str:
    """A message's Call-ID, "" where it has none."""
    # As nearly everybody writes it: looked for with every message, so soon.
    start = data.find(_USUAL_CALL_ID, 0, LONGEST_MESSAGE)
    found = _CALL_ID.search(data, start + 2 if start >= 0 else 0, LONGEST_MESSAGE)
    return found[1].decode("utf-8", "surrogateescape") if found else ""


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


def find(folder: Path, call_id: str) -> Path | None:
    """The file with the trace of a call, if one is kept in `folder`."""
    if not _ID.fullmatch(call_id):
        return None
    places = (folder / f"{call_id}.jsonl", folder / ERRORS / f"{call_id}.jsonl")
    return next((place for place in places if place.is_file()), None)


def read(path: Path) -> Iterator[Traced | str]:
    """The messages of a trace, and between them a sentence on what each attempt came to.

    Lines that are no part of a trace are passed over: the last may be half written.
    """
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                entry = json.loads(line)
                if "outcome" in entry:
                    detail = f": {entry['detail']}" if entry["detail"] else ""
                    yield f"attempt {entry['attempt']} ended as {entry['outcome']}{detail}"
                else:
                    yield Traced(**entry)
            except (ValueError, TypeError, KeyError):
                continue
