"""The log of the phone's calls, as JSON lines, each written and flushed as it happens.

Each line is an object with `at` (Unix seconds), `call` (Call-ID), `number` (as it arrived) and
`event`, then what belongs to that event:

    invite    a new call; `from`, the user part of the caller's URI, and `rule`, what it will meet
    answered  our 200 has been sent
    audio     the first RTP packet was heard
    bye       the caller hung up
    cancel    the caller gave up before the answer
    rejected  we refused; `code`
    hangup    we hung up
    end       the call is over: `packets` heard and `seconds` since the answer (0 without one)
    recorded  its WAV is on disk; `file`, its name

A call has one `invite`, first, and one `end`, which only `recorded` may follow. A call to a silent
number has nothing but its `invite`. Nothing is synced to disk: the log is meant to outlive the
caller's crash, not this machine's.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TextIO

Kind = Literal[
    "invite", "answered", "audio", "bye", "cancel", "rejected", "hangup", "end", "recorded"
]

Detail = str | int | float

_MAX_TEXT: Final = 256
"""Characters of a number or Call-ID that are logged; both are a stranger's words."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the log. `at` is in Unix seconds."""

    at: float
    call: str
    number: str
    event: Kind
    details: dict[str, Detail] = field(default_factory=dict)

    def to_json(self) -> str:
        """The entry as one line of ASCII, without its line end."""
        head = {"at": self.at, "call": self.call, "number": self.number, "event": self.event}
        return json.dumps({**head, **self.details})


class CallLog:
    """Keeps the latest `keep` entries, and writes every entry to `path` where one is given.

    `on_entry` is called with each entry. Raises OSError where `path` can't be opened.
    """

    def __init__(
        self,
        path: Path | None = None,
        *,
        keep: int = 10_000,
        on_entry: Callable[[Entry], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.entries: deque[Entry] = deque(maxlen=keep)
        self._on_entry = on_entry
        self._clock = clock
        self._file: TextIO | None = None if path is None else path.open("a", encoding="ascii")

    def write(self, call: str, number: str, event: Kind, **details: Detail) -> None:
        """Note that `event` has just happened."""
        entry = Entry(self._clock(), call[:_MAX_TEXT], number[:_MAX_TEXT], event, details)
        self.entries.append(entry)
        if self._file is not None:
            self._file.write(entry.to_json() + "\n")
            self._file.flush()
        if self._on_entry is not None:
            self._on_entry(entry)

    def close(self) -> None:
        """Close the file. Entries may be read after that, and none written."""
        if self._file is not None:
            self._file.close()
            self._file = None
