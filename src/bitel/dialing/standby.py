"""Decides when a process may begin to work for a dialer: once its slot is free.

A slot is the place of one worker in a `data_dir`. Its worker holds a lock on a file, which the
kernel releases when the process ends. A process that gets the lock knows that the former worker of
the slot is dead, and begins at once; one that does not is a standby.

Processes with other data_dirs have slots of their own, on this or other machines. With PostgreSQL
they work for the dialer at the same time. With SQLite a dialer has one worker, and so it has in the
version before this one. A process then begins when that has released the dialer, or has sent no
heartbeat for `HEARTBEAT_TIMEOUT` seconds by this process's monotonic clock, so neither clock
differences between machines nor steps of a clock matter. During that time the database must have
answered promptly, and taken writes towards the end: a frozen or read-only database would hide the
heartbeats.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from sqlalchemy import Connection

from bitel.errors import BitelError
from bitel.store import leases
from bitel.store.database import Database
from bitel.store.leases import Holder, Slot
from bitel.store.recovery import FormerWorker

POLL: Final = 2.0
"""Seconds between two checks by a standby."""

HEARTBEAT_TIMEOUT: Final = 20.0
"""Seconds without a heartbeat after which another installation's worker counts as dead. It sends
one every 5 s."""

PROBE_AFTER: Final = 12.0
"""Seconds without a heartbeat after which checks are writes."""

LONGEST_LOOK: Final = 3.0
"""Seconds that a check may take, or start late; beyond, the measurement starts again."""

_INSTALLATION: Final = re.compile(r"[0-9a-f]{32}")


class DialerLock:
    """An exclusive lock on a file, held until `release` or the end of the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def acquire(self) -> bool:
        """Take the lock; False if another process has it. Raises BitelError if the file can't be
        locked."""
        if self._file is not None:
            return True
        try:
            # O_CLOEXEC: an RTP sender that outlives its parent must not hold the lock.
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BaseException:
                os.close(file)
                raise
        except BlockingIOError:
            return False
        except OSError as fault:
            raise BitelError(f"{self.path} can't be locked: {fault.strerror}") from fault
        self._file = file
        return True

    def release(self) -> None:
        """Release the lock."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def installation_of(data_dir: Path) -> str:
    """The identifier of a `data_dir`, 32 hex digits; created on the first call.

    Raises BitelError if it can neither be read nor written.
    """
    path = data_dir / "installation"
    made = data_dir / f"installation.{os.getpid()}"
    try:
        for _ in range(3):
            with contextlib.suppress(FileNotFoundError):
                found = path.read_text().strip()
                if _INSTALLATION.fullmatch(found):
                    return found
                path.unlink()  # cut short by a crash
            made.write_text(secrets.token_hex(16) + "\n")
            # If two processes start at once, one creates it and both read it.
            with contextlib.suppress(FileExistsError):
                os.link(made, path)
            made.unlink()
    except OSError as fault:
        raise BitelError(f"{path} can't be used: {fault.strerror}") from fault
    raise BitelError(f"{path} holds no identifier; remove it")


class HeartbeatMonitor:
    """Measures for how long a row has shown no new heartbeat. Times are monotonic seconds.

    A gap of more than `longest_gap` between two checks restarts the measurement: this process may
    have been suspended, and the worker with it.
    """

    def __init__(self, longest_gap: float) -> None:
        self._longest_gap = longest_gap
        self.seconds = 0.0
        """Without a heartbeat, as of the last `observe`."""
        self._seen: object = None
        self._since = 0.0
        self._last = 0.0

    def observe(self, seen: object, asked_at: float, answered_at: float) -> None:
        """Record the row that a query found, which was sent and answered at these times.

        `seen` is what changes in it with each heartbeat.
        """
        late = answered_at - asked_at > LONGEST_LOOK or asked_at - self._last > self._longest_gap
        if late or seen != self._seen:
            self._seen, self._since = seen, answered_at
        self._last = answered_at
        # The row is known to be unchanged from the first answer to the last query.
        self.seconds = max(0.0, asked_at - self._since)

    def reset(self) -> None:
        """Start the measurement again with the next `observe`."""
        self._seen, self.seconds = None, 0.0


class Standby:
    """Decides when this process may work for one dialer, in its slot.

    `clock` gives Unix seconds, `monotonic` those of a monotonic clock. Raises BitelError if
    `data_dir` can't be used.
    """

    def __init__(
        self,
        dialer_id: str,
        worker: str,
        database: Database,
        data_dir: Path,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        number: int = 1,
    ) -> None:
        self.slot = Slot(dialer_id, installation_of(data_dir), number)
        self.waits_for = ""
        """The worker that had the slot or the dialer at the last check, if it is known."""
        suffix = "" if number == 1 else f"-{number}"
        self.lock = DialerLock(data_dir / f"dialer-{dialer_id}{suffix}.lock")
        self._worker = worker
        self._database = database
        self._clock = clock
        self._monotonic = monotonic
        self._heartbeat = HeartbeatMonitor(POLL + LONGEST_LOOK)

    async def look(self) -> FormerWorker | None:
        """Check once: what is known of the former worker, if this one may begin now.

        None: check again after `POLL` seconds. The lock is kept once it is taken, also if None is
        returned. Raises UnavailableError if the database can't be read.
        """
        locked = self.lock.acquire()
        is_probe = locked and self._heartbeat.seconds >= PROBE_AFTER
        query = leases.probe if is_probe else leases.blocking_holder
        run = self._database.write if is_probe else self._database.read
        dialer_id, installation, _ = self.slot
        asked_at = self._monotonic()
        try:
            row = await run(lambda conn: query(conn, dialer_id))
            if not locked:
                self.waits_for = await self._worker_of_slot()
        except BaseException:
            self._heartbeat.reset()
            raise
        if not locked:
            # The worker runs on this machine, or is suspended and may continue at any time.
            self._heartbeat.reset()
            return None
        if row is None or row.installation == installation:
            return FormerWorker(row)
        self.waits_for = row.worker
        self._heartbeat.observe(row, asked_at, self._monotonic())
        if self._heartbeat.seconds < HEARTBEAT_TIMEOUT:
            return None
        # The worker may be alive, cut off from the database, and still about to dial. Its last
        # heartbeat was before the measured time, which bounds how far its clock is ahead.
        ahead = row.seen_at - (self._clock() - self._heartbeat.seconds)
        return FormerWorker(row, has_ended=False, ahead=ahead)

    def reset(self) -> None:
        """Restart the measurement of the heartbeat, after a take-over that failed."""
        self._heartbeat.reset()

    async def fence(self) -> FormerWorker:
        """End the writes of workers that may be alive, which this one replaces.

        They stop at their next write or renewal. Returns what is known of them, for a take-over
        after their end.
        """
        now = self._clock()

        def work(conn: Connection) -> tuple[Holder, Holder | None]:
            before = leases.fence(conn, self.slot, self._worker, now)
            return before, leases.blocking_holder(conn, self.slot.dialer_id)

        before, row = await self._database.write(work)
        self.waits_for = before.worker
        gone = row is None or before.installation in (None, self.slot.installation)
        return FormerWorker(row, has_ended=gone, ahead=0.0 if gone else before.seen_at - now)

    async def _worker_of_slot(self) -> str:
        dialer_id, installation, number = self.slot
        found = await self._database.read(lambda conn: leases.workers(conn, dialer_id))
        own = [e.name for e in found if (e.installation, e.slot) == (installation, number)]
        return own[0] if own else ""
