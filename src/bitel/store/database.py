"""Transactions as plain functions: many writers share one commit, readers wait for none of them.

A unit of work is a function of a `Connection`, run whole on a thread. One thread writes: it takes
all units that wait, runs them in one transaction, each in a savepoint of its own, and commits
once: one wait for the disk for all of them. A unit that raises is undone alone. Nobody is answered
before the commit, so an answer means that it is durable.

On PostgreSQL a deadlock or a lost connection makes the whole transaction run again, so a unit may
run more than once: it must change nothing but the database. One that catches a database error must
raise in turn, since its transaction is broken by then.

A connection that could not write is not used again: SQLite opens a file read-only where it may not
write it, and such a connection stays read-only for good. So do all that the process opens while one
of them is open, since they share the index of the write-ahead log; so the readers' are closed too.
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
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar

from sqlalchemy import URL, Connection, Engine
from sqlalchemy.exc import DBAPIError

from bitel.store import db_errors, engines, sql_batch
from bitel.store.db_errors import Fault, StoreUnavailable

T = TypeVar("T")

MOST_UNITS: Final = 512
"""Units in one write transaction."""
MOST_READS: Final = 32
"""Reads that one thread does between two looks at the queue, in one transaction."""
MOST_TRIES: Final = 5
"""Times that a transaction is run which meets deadlocks."""
REOPEN_TIMEOUT: Final = 0.5
"""Seconds for which a reader may be waited for, when all connections have to be closed."""
ABANDON_TIMEOUT: Final = 1.0
"""Seconds that threads get to end once what they do was interrupted."""
MOST_WAITING: Final = 50_000
"""Units that may wait; past that a database that has stalled would eat the memory too."""
READERS: Final = 3
"""Reader threads; they are for waiting on the database, not for speed."""

Counts = Counter[tuple[Literal["placed", "ended"], str]]
"""Calls placed, by priority, and ended, by status; both by their names."""

_log = logging.getLogger(__name__)


class _ThreadCounts(threading.local):
    def __init__(self) -> None:
        self.counts: Counts = Counter()


_uncommitted = _ThreadCounts()


def count_calls(what: Literal["placed", "ended"], which: str, calls: int = 1) -> None:
    """Count calls in the present unit of work.

    They count once its transaction is committed: what is undone or runs again counts once or not at
    all.
    """
    _uncommitted.counts[what, which] += calls


def _take_counts() -> Counts:
    """What this thread has counted since the last time."""
    counts = _uncommitted.counts
    if counts:
        _uncommitted.counts = Counter()
    return counts


@dataclass(frozen=True, slots=True)
class Stats:
    """What the writer has done since it was opened."""

    batches: int = 0
    """Transactions committed."""
    units: int = 0
    """Units of work in them."""
    largest_batch: int = 0
    failed_batches: int = 0
    """Transactions that could not be stored."""
    commit_seconds: float = 0.0
    """Time spent in COMMIT, all together."""
    calls: Counts = field(default_factory=Counter)
    """Calls that were placed and ended."""


class Database:
    """A database, and the threads that work on it. Open one with `open`, then `close` it."""

    def __init__(self, url: URL) -> None:
        self._writes = WorkQueue()
        self._reads = WorkQueue()
        self._writer = _Writer(engines.make_engine(url, "writer"), self._writes)
        reader = engines.make_engine(url, "reader")
        self._workers: list[_Worker] = [self._writer]
        threads = [threading.Thread(target=self._writer.run, name="store-writer", daemon=True)]
        for n in range(READERS):
            worker = _Reader(reader, self._reads)
            self._workers.append(worker)
            threads.append(
                threading.Thread(target=worker.run, name=f"store-reader-{n}", daemon=True)
            )
        if engines.is_sqlite(url):
            self._writer.shares_with = tuple(self._workers[1:])
        self._threads = threads
        for thread in threads:
            thread.start()

    @classmethod
    def open(cls, url: str) -> Database:
        """Open the database at `url`; a SQLite file is made where there is none, mode 0600.

        Connections are made with the first work, and the schema is `migrate.upgrade`'s business.
        Raises SettingsError for a URL that can't be used.
        """
        parsed = engines.parse_url(url)
        if engines.is_sqlite(parsed):
            engines.prepare_file(parsed)
        return cls(parsed)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a write transaction; when this returns, it is durable.

        Raises what `work` raises (then nothing of it is stored), or StoreUnavailable. Work once
        queued is done even when the caller is cancelled meanwhile.
        """
        return await _ask(self._writes, work)

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction that can't write. Raises as `write` does."""
        return await _ask(self._reads, work)

    def write_now(self, work: Callable[[Connection], T]) -> T:
        """As `write`, for callers without an event loop: blocks until it is durable."""
        return _ask_now(self._writes, work)

    def read_now(self, work: Callable[[Connection], T]) -> T:
        """As `read`, for callers without an event loop: blocks until it is done."""
        return _ask_now(self._reads, work)

    @property
    def stats(self) -> Stats:
        """What the writer has done so far."""
        return self._writer.stats

    @property
    def writes_waiting(self) -> int:
        """Units of work that wait for the writer."""
        return len(self._writes)

    def close(self, timeout: float | None = None) -> bool:
        """Finish what is queued, then release everything. Closing twice is one close.

        What takes longer than `timeout` seconds (None: however long) is given up: those who wait
        for it get StoreUnavailable, though a COMMIT under way may still be carried out, and threads
        that can't be woken are left to the end of the process. True: all of it was finished.
        """
        self._writes.close()
        self._reads.close()
        if self._join(timeout):
            return True
        for worker in self._workers:
            worker.abandon()
        for box in (self._writes, self._reads):
            left = box.take_all()
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


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


async def _ask(inbox: WorkQueue, work: Callable[[Connection], T]) -> T:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()
    inbox.put(WorkItem(work, (loop, future)))
    return await future


def _ask_now(inbox: WorkQueue, work: Callable[[Connection], T]) -> T:
    future: concurrent.futures.Future[T] = concurrent.futures.Future()
    inbox.put(WorkItem(work, future))
    return future.result()


def _closed() -> StoreUnavailable:
    return StoreUnavailable("the database is closed")


def _log_fault(error: BaseException) -> None:
    """Log why the database could not: the caller only learns that it can't."""
    if db_errors.sort(error) is Fault.DOWN:
        _log.error("the database refused work: %s", db_errors.first_line(error))


def _show_name() -> None:
    """Have `top -H` show the thread's name, where that can be done."""
    with contextlib.suppress(OSError):
        comm = Path(f"/proc/self/task/{threading.get_native_id()}/comm")
        comm.write_text(threading.current_thread().name[:15])


class _Worker(ABC):
    """A thread's loop, and the one connection that it keeps."""

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
        """Work until the inbox is closed and empty."""
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
            except Exception as error:  # whatever it is, its callers must hear of it
                _log.exception("the database's worker failed")
                self._fail(units, error)
            answer(units)
            self._units = ()
        self.drop()

    def abandon(self) -> None:
        """Give up what is being done, from another thread: its callers get StoreUnavailable."""
        self._abandoned = True
        answer([WorkItem(one.work, one.reply, error=_closed()) for one in self._units])
        kept = self._kept
        if kept is not None:
            try:
                engines.interrupt(kept)
            except Exception as error:  # it may be closed at this moment
                _log.warning("interrupting a database connection: %s", db_errors.first_line(error))

    @abstractmethod
    def _serve(self, units: Sequence[WorkItem]) -> None:
        """Do all of `units`, and put into each what became of it."""

    def _fail(self, units: Sequence[WorkItem], error: BaseException) -> None:
        # SQLAlchemy forgets a transaction whose COMMIT failed; only with its connection does it
        # surely end, and not within the next one's.
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
        """Close the connection, in its thread or while that is not at work."""
        kept, self._kept = self._kept, None
        if kept is not None:
            try:
                kept.close()
            except DBAPIError as error:
                _log.warning("closing a database connection: %s", db_errors.first_line(error))


class _Writer(_Worker):
    """Group commit."""

    most = MOST_UNITS

    def __init__(self, engine: Engine, inbox: WorkQueue) -> None:
        super().__init__(engine, inbox)
        self.stats = Stats()
        self._counts: Counts = Counter()
        self._doubtful = False
        """Something could not be written by the connection."""
        self.shares_with: Sequence[_Worker] = ()
        """Whose connections must be closed too before one that is opened anew may write again."""

    def _serve(self, units: Sequence[WorkItem]) -> None:
        tries, reconnected = 1, False
        self._doubtful = False
        while True:
            try:
                self._run_all(units)
            except DBAPIError as error:
                self._undo()
                fault = db_errors.sort(error)
                if fault is Fault.AGAIN and tries < MOST_TRIES:
                    tries += 1
                    # Who won the deadlock needs a moment, and no event loop waits here.
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
        """Run every unit, the failed ones undone; raises when the transaction itself is broken."""
        connection = self._connection()
        self._counts.clear()
        _take_counts()
        if len(units) == 1:
            self._run_alone(connection, units[0])
            return
        for unit in units:
            sql_batch.execute(connection, "SAVEPOINT unit")
            try:
                unit.run(connection)
            except BaseException as error:
                if db_errors.sort(error) in (Fault.AGAIN, Fault.LOST):
                    raise
                unit.error = db_errors.for_caller(error)
                _log_fault(error)
                _take_counts()
                self._undo_unit(connection, error)
                self._doubtful |= db_errors.sort(error) is Fault.DOWN
            self._counts.update(_take_counts())
            sql_batch.execute(connection, "RELEASE SAVEPOINT unit")

    def _undo_unit(self, connection: Connection, error: BaseException) -> None:
        try:
            sql_batch.execute(connection, "ROLLBACK TO SAVEPOINT unit")
        except DBAPIError:
            # SQLite, out of space, has undone the whole transaction already.
            if isinstance(error, DBAPIError):
                raise error from None
            raise

    def _run_alone(self, connection: Connection, unit: WorkItem) -> None:
        try:
            unit.run(connection)
        except BaseException as error:
            if db_errors.sort(error) in (Fault.AGAIN, Fault.LOST):
                raise
            unit.error = db_errors.for_caller(error)
            _log_fault(error)
            _take_counts()
            self._undo()
            self._doubtful |= db_errors.sort(error) is Fault.DOWN
        self._counts.update(_take_counts())

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
        """Close the connection and those that share its fate; open another while all are closed.

        Reads that take long are not waited for; the next write that fails tries again.
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
    """Reads, several in one transaction when several wait."""

    most = MOST_READS

    def _serve(self, units: Sequence[WorkItem]) -> None:
        for unit in units:
            try:
                self._read(unit)
            except BaseException as error:
                unit.error = db_errors.for_caller(error)
                _log_fault(error)
                self._undo()
                if db_errors.sort(error) is Fault.DOWN:
                    self.drop()
        self._undo()  # there is nothing to commit

    def _read(self, unit: WorkItem) -> None:
        try:
            unit.run(self._connection())
        except DBAPIError as error:
            if db_errors.sort(error) is not Fault.LOST:
                raise
            self.drop()
            unit.run(self._connection())


__all__ = ["Connection", "Database", "Stats"]
