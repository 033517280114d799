"""Units of work on their way from callers to the threads that run them, and the answers back."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection

from bitel.store.db_errors import StoreUnavailable

MOST_WAITING: Final = 50_000
"""Units that may wait; past that a database that has stalled would eat the memory too."""

AsyncReply = tuple[asyncio.AbstractEventLoop, asyncio.Future[Any]]
SyncReply = concurrent.futures.Future[Any]


@dataclass(slots=True, eq=False)
class WorkItem:
    """One caller's work, and what came of it."""

    work: Callable[[Connection], Any]
    reply: AsyncReply | SyncReply
    result: Any = None
    error: BaseException | None = None

    def run(self, connection: Connection) -> None:
        """Do the work; raises what the work raises."""
        self.result, self.error = None, None
        try:
            self.result = self.work(connection)
        except StopIteration as fault:
            # asyncio refuses it as the outcome of a future.
            raise RuntimeError("the work raised StopIteration") from fault


class WorkQueue:
    """A queue that can be closed: what is in it by then still comes out."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[WorkItem | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False

    def put(self, unit: WorkItem) -> None:
        """Queue `unit`. Raises StoreUnavailable when closed, or when too much is waiting."""
        with self._lock:
            if self._closed:
                raise StoreUnavailable("the database is closed")
            if self._queue.qsize() >= MOST_WAITING:
                raise StoreUnavailable("the database can't keep up, try again later")
            self._queue.put(unit)

    def __len__(self) -> int:
        """How many units wait, about."""
        return self._queue.qsize()

    def close(self) -> None:
        """Take nothing more."""
        with self._lock:
            self._closed = True
            self._queue.put(None)

    def take_all(self) -> list[WorkItem]:
        """All that waits, without waiting for more; meant for an inbox that is closed."""
        units: list[WorkItem] = []
        with contextlib.suppress(queue.Empty):
            while True:
                item = self._queue.get_nowait()
                if item is not None:
                    units.append(item)
        self._queue.put(None)  # the end mark, for every thread that takes from here
        return units

    def take(self, most: int) -> list[WorkItem]:
        """Wait for a unit, and take what else is there, up to `most`. Empty: closed and done."""
        units: list[WorkItem] = []
        try:
            item = self._queue.get()
            while item is not None:
                units.append(item)
                if len(units) == most:
                    return units
                item = self._queue.get_nowait()
        except queue.Empty:
            return units
        self._queue.put(None)  # the end mark, for every thread that takes from here
        return units


def answer(units: Iterable[WorkItem]) -> None:
    """Hand out results and errors: one wake-up per event loop, however many units."""
    by_loop: defaultdict[asyncio.AbstractEventLoop, list[WorkItem]] = defaultdict(list)
    for unit in units:
        if isinstance(unit.reply, tuple):
            by_loop[unit.reply[0]].append(unit)
        else:
            _resolve(unit.reply, unit)
    for loop, theirs in by_loop.items():
        # RuntimeError: the loop is closed, and nobody waits there any more.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_resolve_all, theirs)


def _resolve_all(units: list[WorkItem]) -> None:
    for unit in units:
        assert isinstance(unit.reply, tuple)
        _resolve(unit.reply[1], unit)


def _resolve(future: asyncio.Future[Any] | SyncReply, unit: WorkItem) -> None:
    if future.done():
        return  # its caller was cancelled, or was answered when the database was closed
    # Two threads may answer one unit when the database is closed.
    with contextlib.suppress(concurrent.futures.InvalidStateError):
        if unit.error is not None:
            future.set_exception(unit.error)
        else:
            future.set_result(unit.result)
