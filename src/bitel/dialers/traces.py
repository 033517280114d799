"""Keeps the SIP messages of calls in files: those of the last calls, and of those that went wrong.

Messages are held in memory while an attempt runs, and written behind it by a thread of their own.
Everything is bounded: messages of an attempt, files, and what waits to be written; beyond that
traces are lost, and calls are not.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import BoundedSemaphore
from typing import Final

import structlog

from bitel.calls.outcome import Attempted, Outcome
from bitel.dialers.tracing import ERRORS, LONGEST_MESSAGE, Direction, Traced, sip_call_id
from bitel.dialing.dialer import Order
from bitel.sip.grammar import Address

log = structlog.get_logger(__name__)

KEPT: Final = 1000
"""Calls of which a trace is kept, whatever became of them."""
KEPT_ERRORS: Final = 10_000
MOST_MESSAGES: Final = 200
"""Messages that are kept of one attempt."""
LARGEST_FILE: Final = 512 * 1024
"""Bytes beyond which nothing is added to a call's file."""
MOST_WAITING: Final = 500
"""Attempts that wait to be written."""

WENT_WRONG: Final = frozenset(
    (Outcome.BAD_NUMBER, Outcome.REFUSED, Outcome.MEDIA_MISMATCH, Outcome.TRUNK_TROUBLE)
)
"""What a call may end in ERROR for."""


@dataclass(slots=True)
class _Open:
    sip_call_ids: list[str] = field(default_factory=list)
    datagrams: list[tuple[Direction, bytes, Address, float]] = field(default_factory=list)


class Traces:
    """A Watch that writes into `folder`, which is made if need be; it is for this user alone."""

    def __init__(self, folder: Path, kept: int = KEPT, kept_errors: int = KEPT_ERRORS) -> None:
        self._folder = folder
        self._open: dict[str, _Open] = {}
        self._by_sip_call_id: dict[str, _Open] = {}
        self._writer = ThreadPoolExecutor(1, "traces")
        self._room = BoundedSemaphore(MOST_WAITING)
        self._last = _Files(folder, kept)
        self._errors = _Files(folder / ERRORS, kept_errors)
        self._writer.submit(self._prepare)

    def invited(self, order: Order, sip_call_id: str) -> None:
        """An INVITE for `order` is about to leave."""
        trace = self._open.setdefault(order.attempt_id, _Open())
        trace.sip_call_ids.append(sip_call_id)
        self._by_sip_call_id[sip_call_id] = trace

    def tap(self, direction: Direction, data: bytes, address: Address, at: float) -> None:
        """Keep the message if it is of a call that is under way."""
        if len(data) < 16:
            return  # a keep-alive
        trace = self._by_sip_call_id.get(sip_call_id(data))
        if trace is not None and len(trace.datagrams) < MOST_MESSAGES:
            trace.datagrams.append((direction, data[:LONGEST_MESSAGE], address, at))

    def over(self, order: Order, attempted: Attempted | None) -> None:
        """Have the attempt's messages written."""
        trace = self._open.pop(order.attempt_id, None)
        if trace is None:
            return
        for each in trace.sip_call_ids:
            self._by_sip_call_id.pop(each, None)
        if self._room.acquire(blocking=False):
            self._writer.submit(self._write, order, trace, attempted)

    def close(self) -> None:
        """Write what waits, and end the thread."""
        self._writer.shutdown()

    # In the thread

    def _prepare(self) -> None:
        try:
            for files in (self._last, self._errors):
                files.prepare()
        except OSError as fault:
            log.warning("traces_not_kept", fault=str(fault))

    def _write(self, order: Order, trace: _Open, attempted: Attempted | None) -> None:
        self._room.release()
        wrong = attempted is None or attempted.outcome in WENT_WRONG
        ending = {
            "attempt": order.attempt_id,
            "outcome": attempted.outcome.value if attempted else "a fault inside the dialer",
            "detail": attempted.detail if attempted else "",
        }
        messages = [Traced.of(*datagram).to_json() for datagram in trace.datagrams]
        lines = [*messages, json.dumps(ending, ensure_ascii=False)]
        text = "".join(f"{line}\n" for line in lines)
        try:
            if wrong:
                self._errors.take_from(self._last, order.call_id)
            files = self._errors if wrong or order.call_id in self._errors else self._last
            files.append(order.call_id, text)
        except OSError as fault:
            log.warning("trace_not_kept", call=order.call_id, fault=str(fault))


class _Files:
    """At most `kept` files in `folder`, named after calls; the oldest goes first."""

    def __init__(self, folder: Path, kept: int) -> None:
        self._folder = folder
        self._kept = kept
        self._names: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, call_id: str) -> bool:
        return call_id in self._names

    def prepare(self) -> None:
        """Make the folder, and take note of what earlier runs left in it."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = [entry for entry in os.scandir(self._folder) if entry.name.endswith(".jsonl")]
        found.sort(key=lambda entry: entry.stat().st_mtime)
        self._names.update((entry.name.removesuffix(".jsonl"), None) for entry in found)

    def append(self, call_id: str, text: str) -> None:
        """Add to a call's file, and remove the oldest where there are too many."""
        descriptor = os.open(self._path(call_id), os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
        with open(descriptor, "a", encoding="utf-8") as file:
            if file.tell() + len(text) <= LARGEST_FILE:
                file.write(text)
        self._names[call_id] = None
        self._names.move_to_end(call_id)
        while len(self._names) > self._kept:
            oldest, _ = self._names.popitem(last=False)
            self._path(oldest).unlink(missing_ok=True)

    def take_from(self, other: _Files, call_id: str) -> None:
        """Move a call's file here, if the other has one: an earlier attempt of the same call."""
        if call_id in other._names:
            del other._names[call_id]
            if other._path(call_id).exists():
                other._path(call_id).replace(self._path(call_id))
                self._names[call_id] = None

    def _path(self, call_id: str) -> Path:
        return self._folder / f"{call_id}.jsonl"
