"""Runs transactions on threads: one writer with group commit, and several readers.

A unit of work is a function of a `Connection`. The writer thread takes all units that wait, runs
them in one transaction, each in its own savepoint, and commits once: one wait for the disk for all
of them. A unit that raises is rolled back alone. Callers get their results after the commit, so a
result means that the work is durable.

On PostgreSQL the whole transaction runs again after a deadlock or a lost connection, so a unit may
run more than once and must change nothing but the database. One that catches a database error must
raise in turn, since its transaction is aborted.

A connection that could not write is closed: SQLite opens a file read-only where it may not write
it, and such a connection stays read-only. So do all connections that the process opens while one of
them is open, since they share the index of the write-ahead log; so the readers' are closed too.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeVar

from sqlalchemy import URL, Connection, Engine
from sqlalchemy.exc import DBAPIError

from bitel.store import db_errors, engines, sql_batch
from bitel.store.db_errors import Fault, StoreUnavailable

T = TypeVar("T")

MOST_UNITS: Final = 512
"""Units in one write transaction."""
MOST_READS: Final = 32
"""Reads in one transaction of one thread."""
MOST_TRIES: Final = 5
"""Runs of a transaction that meets deadlocks."""
REOPEN_TIMEOUT: Final = 0.5
"""Seconds to wait for each reader when all connections have to be closed."""
ABANDON_TIMEOUT: Final = 1.0
"""Seconds to wait for interrupted threads."""
MOST_WAITING: Final = 50_000
"""Units that may wait: limits the memory used while the database stalls."""
READERS: Final = 3
"""Reader threads."""

Counts = Counter[tuple[Literal["placed", "ended"], str]]
"""Calls placed, by priority, and ended, by status; both by their names."""

_log = logging.getLogger(__name__)


class _ThreadCounts(threading.local):
    def __init__(self) -> None:
        self.counts: Counts = Counter()


_uncommitted = _ThreadCounts()


def count_calls(what: Literal["placed", "ended"], which: str, calls: int = 1) -> None:
    """Count calls in the current unit of work, once its transaction is committed."""
    _uncommitted.counts[what, which] += calls


def _take_counts() -> Counts:
    """Returns and resets the counts of this thread."""
    counts = _uncommitted.counts
    if counts:
        _uncommitted.counts = Counter()
    return counts


@dataclass(frozen=True, slots=True)
class Stats:
    """The writer's statistics since it was opened."""

    batches: int = 0
    """Transactions committed."""
    units: int = 0
    """Units of work in them."""
    largest_batch: int = 0
    failed_batches: int = 0
    """Transactions that failed as a whole."""
    commit_seconds: float = 0.0
    """Total time spent in COMMIT."""
    calls: Counts = field(default_factory=Counter)
    """Calls placed and ended."""


class Database:
    """A database and its threads. Create it with `open`, and `close` it at the end."""

    def __init__(self, url: URL) -> None:
        self._writes = WorkQueue()
        self._reads = WorkQueue()
        self._writer = _Writer(engines.make_engine(url, "writer"), self._writes)
        reader = engines.make_engine(url, "reader")
        readers = [_Reader(reader, self._reads) for _ in range(READERS)]
        self.is_shared: Final = not engines.is_sqlite(url)
        """Whether processes on other machines may use it too."""
        if not self.is_shared:
            self._writer.shares_with = readers
        self._workers: Sequence[_Worker] = (self._writer, *readers)
        names = ("store-writer", *(f"store-reader-{n}" for n in range(READERS)))
        self._threads = [
            threading.Thread(target=worker.run, name=name, daemon=True)
            for worker, name in zip(self._workers, names, strict=True)
        ]
        for thread in self._threads:
            thread.start()

    @classmethod
    def open(cls, url: str) -> Database:
        """Open the database at `url`; a missing SQLite file is created with mode 0600.

        Connections are made with the first work; the schema must exist (`migrate.upgrade`). Raises
        SettingsError for a URL that can't be used.
        """
        parsed = engines.parse_url(url)
        if engines.is_sqlite(parsed):
            engines.prepare_file(parsed)
        return cls(parsed)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a write transaction; it is durable when this returns.

        Raises what `work` raises, then nothing of it is stored, or StoreUnavailable. Queued work is
        done even when the caller is cancelled meanwhile.
        """
        return await _submit(self._writes, work)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction that can't write. Raises as `write` does."""
        return await _submit(self._reads, work)

    def write_now(self, work: Callable[[Connection], T]) -> T:
        """As `write`, for callers without an event loop: blocks until it is durable."""
        return _submit_and_wait(self._writes, work)

    def read_now(self, work: Callable[[Connection], T]) -> T:
        """As `read`, for callers without an event loop: blocks until it is done."""
        return _submit_and_wait(self._reads, work)

    @property
    def stats(self) -> Stats:
        """The writer's statistics."""
        return self._writer.stats

    @property
    def writes_waiting(self) -> int:
        """Number of units that wait for the writer."""
        return len(self._writes)

    def close(self, timeout: float | None = None) -> bool:
        """Finish the queued work, then close all connections. A second call does nothing.

        After `timeout` seconds (None: no limit) the rest is abandoned: its callers get
        StoreUnavailable, though a COMMIT under way may still succeed, and threads that can't be
        interrupted go on until the process ends. True: all work was finished.
        """
        self._writes.close()
        self._reads.close()
        if self._join(timeout):
            return True
        for worker in self._workers:
            worker.abandon()
        for inbox in (self._writes, self._reads):
            left = inbox.take_all()
            for unit in left:
                unit.error = _closed()
            answer(left)
        if not self._join(ABANDON_TIMEOUT):
            _log.error("threads of the database hang, and are left behind")
        return False

    def _join(self, timeout: float | None) -> bool:
        """Whether all threads have ended, within `timeout` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


@dataclass(slots=True, eq=False)
class WorkItem:
    """A unit of work of one caller, with its result."""

    work: Callable[[Connection], Any]
    future: asyncio.Future[Any] | concurrent.futures.Future[Any]
    loop: asyncio.AbstractEventLoop | None = None
    """The event loop of the future; None: it belongs to a thread."""
    result: Any = None
    error: BaseException | None = None

    def run(self, connection: Connection) -> None:
        """Do the work; raises its errors."""
        self.result, self.error = None, None
        try:
            self.result = self.work(connection)
        except StopIteration as fault:
            # A future of asyncio can't hold it.
            raise RuntimeError("the work raised StopIteration") from fault

    def fail(self, error: BaseException) -> Fault:
        """Set the error that the caller gets, and log it if it is the database's."""
        fault = db_errors.classify(error)
        self.error = db_errors.for_caller(error)
        if fault is Fault.DOWN:
            _log.error("the database refused work: %s", db_errors.first_line(error))
        return fault


class WorkQueue:
    """A queue that can be closed; units queued before that are still taken."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[WorkItem | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False

    def put(self, unit: WorkItem) -> None:
        """Queue `unit`. Raises StoreUnavailable when closed, or when too much is waiting."""
        with self._lock:
            if self._closed:
                raise _closed()
            if self._queue.qsize() >= MOST_WAITING:
                raise StoreUnavailable("the database can't keep up, try again later")
            self._queue.put(unit)

    def __len__(self) -> int:
        """Roughly how many units wait."""
        return self._queue.qsize()

    def close(self) -> None:
        """Refuse further units."""
        with self._lock:
            self._closed = True
            self._queue.put(None)

    def take_all(self) -> list[WorkItem]:
        """All units that wait; for a queue that is closed."""
        units: list[WorkItem] = []
        with contextlib.suppress(queue.Empty):
            while True:
                item = self._queue.get_nowait()
                if item is not None:
                    units.append(item)
        self._queue.put(None)  # the end mark, for the other threads
        return units

    def take(self, most: int) -> list[WorkItem]:
        """Wait for a unit, and take up to `most` of those there. Empty: the queue is closed."""
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
        self._queue.put(None)  # the end mark, for the other threads
        return units


def answer(units: Iterable[WorkItem]) -> None:
    """Deliver results and errors, with one wake-up per event loop for all its units."""
    by_loop: defaultdict[asyncio.AbstractEventLoop | None, list[WorkItem]] = defaultdict(list)
    for unit in units:
        by_loop[unit.loop].append(unit)
    for loop, of_loop in by_loop.items():
        if loop is None:
            _resolve(of_loop)
        else:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(_resolve, of_loop)


def _resolve(units: Iterable[WorkItem]) -> None:
    for unit in units:
        # Done already: its caller was cancelled, or the database was closed, at which moment two
        # threads may resolve one unit.
        if unit.future.done():
            continue
        with contextlib.suppress(concurrent.futures.InvalidStateError):
            if unit.error is not None:
                unit.future.set_exception(unit.error)
            else:
                unit.future.set_result(unit.result)


async def _submit(inbox: WorkQueue, work: Callable[[Connection], T]) -> T:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    inbox.put(WorkItem(work, future, loop))
    return await future


def _submit_and_wait(inbox: WorkQueue, work: Callable[[Connection], T]) -> T:
    future: concurrent.futures.Future[T] = concurrent.futures.Future()
    inbox.put(WorkItem(work, future))
    return future.result()


def _closed() -> StoreUnavailable:
    return StoreUnavailable("the database is closed")


def _show_name() -> None:
    """Set the thread's name for `top -H`, where that is possible."""
    with contextlib.suppress(OSError):
        comm = Path(f"/proc/self/task/{threading.get_native_id()}/comm")
        comm.write_text(threading.current_thread().name[:15])


class _Worker(ABC):
    """The loop of one thread, and its connection."""

    most: int

    def __init__(self, engine: Engine, inbox: WorkQueue) -> None:
        self._engine = engine
        self._inbox = inbox
        self._kept: Connection | None = None
        self._units: Sequence[WorkItem] = ()
        self._abandoned = False
        self.at_work = threading.Lock()
        """Held while the connection is in use."""

    def run(self) -> None:
        """Process units until the inbox is closed and empty."""
        _show_name()
        while units := self._inbox.take(self.most):
            self._units = units
            try:
                if self._abandoned:
                    raise _closed()
                with self.at_work:
                    self._serve(units)
            except StoreUnavailable as error:
                self._fail(units, error)
            except Exception as error:  # its callers must get an answer
                _log.exception("the database's worker failed")
                self._fail(units, error)
            answer(units)
            self._units = ()
        self.drop()

    def abandon(self) -> None:
        """Interrupt the current work, from another thread; its callers get StoreUnavailable."""
        self._abandoned = True
        answer([replace(unit, result=None, error=_closed()) for unit in self._units])
        kept = self._kept
        if kept is not None:
            try:
                engines.interrupt(kept)
            except Exception as error:  # it may have been closed at this moment
                _log.warning("interrupting a database connection: %s", db_errors.first_line(error))

    @abstractmethod
    def _serve(self, units: Sequence[WorkItem]) -> None:
        """Process `units`, and set the result or error of each."""

    def _fail(self, units: Sequence[WorkItem], error: BaseException) -> None:
        # SQLAlchemy forgets a transaction whose COMMIT failed; closing the connection ends it.
        self.drop()
        for unit in units:
            unit.result, unit.error = None, db_errors.unavailable(error)

    def _connection(self) -> Connection:
        if self._abandoned:
            raise _closed()
        if self._kept is None:
            self._kept = self._engine.connect()
        return self._kept

    def _undo(self) -> None:
        if self._kept is None:
            return
        try:
            self._kept.rollback()
        except DBAPIError:
            self.drop()
            return
        if self._kept.invalidated or engines.is_in_transaction(self._kept):
            self.drop()

    def drop(self) -> None:
        """Close the connection: in its own thread, or while `at_work` is held."""
        kept, self._kept = self._kept, None
        if kept is not None:
            try:
                kept.close()
            except DBAPIError as error:
                _log.warning("closing a database connection: %s", db_errors.first_line(error))


class _Writer(_Worker):
    """Writes, in group commits."""

    most = MOST_UNITS

    def __init__(self, engine: Engine, inbox: WorkQueue) -> None:
        super().__init__(engine, inbox)
        self.stats = Stats()
        self._counts: Counts = Counter()
        self._doubtful = False
        """The connection failed to write something."""
        self.shares_with: Sequence[_Worker] = ()
        """Workers whose connections must be closed before a new one can write again."""

    def _serve(self, units: Sequence[WorkItem]) -> None:
        tries, reconnected = 1, False
        self._doubtful = False
        while True:
            try:
                self._run_all(units)
            except DBAPIError as error:
                self._undo()
                fault = db_errors.classify(error)
                if fault is Fault.AGAIN and tries < MOST_TRIES:
                    tries += 1
                    # The winner of the deadlock needs a moment.
                    time.sleep(0.005 * 2**tries)
                elif fault is Fault.LOST and not reconnected and not self._abandoned:
                    reconnected = True
                else:
                    self._give_up(units, error)
                    return
            else:
                break
        self._commit(units)
        if self._doubtful:
            self._reopen()

    def _run_all(self, units: Sequence[WorkItem]) -> None:
        """Run every unit, failed ones rolled back; raises when the transaction itself is broken."""
        connection = self._connection()
        self._counts.clear()
        _take_counts()
        is_shared = len(units) > 1
        for unit in units:
            if is_shared:
                sql_batch.execute(connection, "SAVEPOINT unit")
            try:
                unit.run(connection)
            except BaseException as error:
                if db_errors.classify(error) in (Fault.AGAIN, Fault.LOST):
                    raise
                self._doubtful |= unit.fail(error) is Fault.DOWN
                _take_counts()
                if is_shared:
                    self._undo_unit(connection, error)
                else:
                    self._undo()
            self._counts.update(_take_counts())
            if is_shared:
                sql_batch.execute(connection, "RELEASE SAVEPOINT unit")

    def _undo_unit(self, connection: Connection, error: BaseException) -> None:
        try:
            sql_batch.execute(connection, "ROLLBACK TO SAVEPOINT unit")
        except DBAPIError:
            # SQLite has rolled back the whole transaction already: out of space.
            if isinstance(error, DBAPIError):
                raise error from None
            raise

    def _commit(self, units: Sequence[WorkItem]) -> None:
        begun = time.perf_counter()
        try:
            if self._kept is not None:
                self._kept.commit()
        except DBAPIError as error:
            self._give_up(units, error)
            return
        self.stats = replace(
            self.stats,
            batches=self.stats.batches + 1,
            units=self.stats.units + len(units),
            largest_batch=max(self.stats.largest_batch, len(units)),
            commit_seconds=self.stats.commit_seconds + time.perf_counter() - begun,
            calls=self.stats.calls + self._counts if self._counts else self.stats.calls,
        )

    def _give_up(self, units: Sequence[WorkItem], error: DBAPIError) -> None:
        _log.error("the database stored none of %d: %s", len(units), db_errors.first_line(error))
        self._fail(units, error)
        self._reopen()
        self.stats = replace(self.stats, failed_batches=self.stats.failed_batches + 1)

    def _reopen(self) -> None:
        """Close the connection and those of `shares_with`; open one while all are closed.

        Long reads are not waited for; the next failed write tries again.
        """
        self.drop()
        if not self.shares_with or self._abandoned:
            return
        with contextlib.ExitStack() as stack:
            for worker in self.shares_with:
                if not worker.at_work.acquire(timeout=REOPEN_TIMEOUT):
                    return
                stack.callback(worker.at_work.release)
            for worker in self.shares_with:
                worker.drop()
            try:
                self._connection()
            except DBAPIError as error:
                _log.warning("opening the database again: %s", db_errors.first_line(error))


class _Reader(_Worker):
    """Reads; those that wait share one transaction."""

    most = MOST_READS

    def _serve(self, units: Sequence[WorkItem]) -> None:
        for unit in units:
            try:
                self._read(unit)
            except BaseException as error:
                fault = unit.fail(error)
                self._undo()
                if fault is Fault.DOWN:
                    self.drop()
        self._undo()  # nothing to commit

    def _read(self, unit: WorkItem) -> None:
        try:
            unit.run(self._connection())
        except DBAPIError as error:
            if db_errors.classify(error) is not Fault.LOST:
                raise
            self.drop()
            unit.run(self._connection())


__all__ = ["Connection", "Database", "Stats"]
