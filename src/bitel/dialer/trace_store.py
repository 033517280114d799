"""Keeps the SIP messages of calls in files: those of the last calls, and of those that went wrong.

Messages are held in memory while an attempt runs, and written behind it, a few times a second, by a
thread of their own. Everything is bounded: messages of an attempt, what waits to be written, and
the files by number, size and age. Beyond that traces are lost, and calls are not.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from bitel.dialer.trace_files import Share, TraceFiles
from bitel.dialer.trace_format import ERRORS, Direction, Entry, sip_call_id
from bitel.dialer.trunk import shown
from bitel.domain.attempts import AttemptResult, DialRequest, Outcome
from bitel.sip.grammar import Address

log = structlog.get_logger(__name__)

MOST_MESSAGES: Final = 200
"""Messages that are kept of one attempt."""
MOST_BYTES: Final = 512 * 1024
"""Bytes of one attempt's messages."""
MOST_WAITING: Final = 2000
"""Attempts that wait to be written; with more the oldest are lost."""
PAUSE: Final = 0.25
"""Seconds between two writes."""
A_FEW: Final = 100
"""Attempts; where more than that wait after a pause, there is a burst."""
LONG_PAUSE: Final = 15.0
"""Seconds between two writes in a burst. To write an attempt down takes as much CPU as a good part
of its call, and in a burst most would soon be pushed out by the next: those are never written."""
MANY_WRONG: Final = MOST_WAITING // 4
"""Attempts that ended in ERROR; where as many wait, no pause is that long, lest any be lost."""
LOOK_AGAIN: Final = 3600.0
"""Seconds between two looks at what has become too old, where nothing is written."""

WENT_WRONG: Final = frozenset(
    (Outcome.BAD_NUMBER, Outcome.REFUSED, Outcome.MEDIA_MISMATCH, Outcome.REFUSED_FOR_GOOD)
)
"""What a call ends in ERROR for."""


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
class _Open:
    sip_call_ids: list[bytes] = field(default_factory=list)
    datagrams: list[tuple[float, Direction, Address, bytes]] = field(default_factory=list)
    room: int = MOST_BYTES


class _Over(NamedTuple):
    order: DialRequest
    attempted: AttemptResult | None
    trace: _Open

    @property
    def wrong(self) -> bool:
        """Whether the call ended in ERROR, or for a fault of our own."""
        return self.attempted is None or self.attempted.outcome in WENT_WRONG

    def encode(self) -> tuple[str, bytes]:
        """The call, and the attempt's entry."""
        attempted = self.attempted
        entry = Entry(
            self.order.call_id,
            self.order.attempt_id,
            attempted.outcome.value if attempted else "a fault inside the dialer",
            attempted.detail if attempted else "",
            [(at, way, shown(address), data) for at, way, address, data in self.trace.datagrams],
        )
        return self.order.call_id, entry.encode()


class Traces:
    """A Watch that writes into `folder`, which is made if need be; it is for this user alone."""

    def __init__(
        self, folder: Path, keep: Keep | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        keep = keep or Keep()
        self._open: dict[str, _Open] = {}
        self._by_sip_call_id: dict[bytes, _Open] = {}
        self._over: deque[_Over] = deque(maxlen=min(keep.attempts, MOST_WAITING))
        self._wrong: deque[_Over] = deque(maxlen=MOST_WAITING)
        self._last = TraceFiles(folder, Share(keep.attempts, keep.size // 2, keep.days), clock)
        self._errors = TraceFiles(
            folder / ERRORS, Share(keep.errors, keep.size // 2, keep.days), clock
        )
        self._keeps = keep.attempts > 0, keep.errors > 0
        self._bell = threading.Event()
        self._closing = threading.Event()
        self._writer = threading.Thread(target=self._run, name="traces", daemon=True)
        self._writer.start()

    def invited(self, order: DialRequest, sip_call_id: str) -> None:
        """An INVITE for `order` is about to leave."""
        trace = self._open.get(order.attempt_id)
        if trace is None:
            trace = self._open[order.attempt_id] = _Open()
        call_id = sip_call_id.encode()
        trace.sip_call_ids.append(call_id)
        self._by_sip_call_id[call_id] = trace

    def tap(self, direction: Direction, data: bytes, address: Address, at: float) -> None:
        """Keep the message if it is of a call that is under way."""
        trace = self._by_sip_call_id.get(sip_call_id(data))
        if trace is None or trace.room < len(data) or len(trace.datagrams) == MOST_MESSAGES:
            return
        # Not cut yet: it is masked first, lest half a header be taken for none.
        trace.datagrams.append((at, direction, address, data))
        trace.room -= len(data)

    def over(self, order: DialRequest, attempted: AttemptResult | None) -> None:
        """Have the attempt's messages written; without any, what it ended in ERROR for."""
        trace = self._open.pop(order.attempt_id, None)
        over = _Over(order, attempted, trace or _Open())
        if trace is None and not over.wrong:
            return
        for each in over.trace.sip_call_ids:
            self._by_sip_call_id.pop(each, None)
        keeps_any, keeps_errors = self._keeps
        if over.wrong and keeps_errors:
            self._wrong.append(over)
        elif keeps_any:
            self._over.append(over)
        else:
            return
        if not self._bell.is_set():
            self._bell.set()

    def close(self) -> None:
        """Write what waits, and end the thread."""
        self._closing.set()
        self._bell.set()
        self._writer.join()

    # In the thread

    def _run(self) -> None:
        self._do(self._prepare)
        while not self._closing.is_set():
            if not self._bell.wait(LOOK_AGAIN):
                self._do(self._forget)
            self._closing.wait(PAUSE)
            if len(self._over) + len(self._wrong) > A_FEW:
                self._rest()
            self._bell.clear()
            self._do(self._write)
        self._do(self._write)

    def _rest(self) -> None:
        end = time.monotonic() + LONG_PAUSE
        while time.monotonic() < end and len(self._wrong) < MANY_WRONG:
            if self._closing.wait(PAUSE):
                return

    def _do(self, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as fault:
            log.warning("traces_not_kept", fault=str(fault))

    def _prepare(self) -> None:
        self._last.prepare()
        self._errors.prepare()

    def _forget(self) -> None:
        self._last.forget()
        self._errors.forget()

    def _write(self) -> None:
        well, wrong = _drained(self._over), _drained(self._wrong)
        if well:
            self._last.add([each.encode() for each in well])
        if wrong:
            # A call that has gone wrong takes its earlier attempts along.
            earlier = self._last.of_calls({each.order.call_id for each in wrong})
            self._errors.add([*earlier, *(each.encode() for each in wrong)])


def _drained(waiting: deque[_Over]) -> list[_Over]:
    """What waits, the oldest first; the other thread may add to it meanwhile."""
    return [waiting.popleft() for _ in range(len(waiting))]
