"""Decides when a process may take over a dialer: never from a worker that is alive.

There are two signs of life. Within one `data_dir` the worker holds a lock on a file, which the
kernel releases when the process ends, however it ends. A process that gets the lock, and finds this
`data_dir` (its installation) in the dialer's row, knows that the former worker is dead, and need
not wait. Between several installations that share a database there is only the heartbeat, `seen_at`
in that row. A standby takes over when it has seen no heartbeat for `HEARTBEAT_TIMEOUT` seconds by
its own monotonic clock, so neither the difference between two machines' clocks nor a step of one
matters. The database must have answered in time throughout, and taken writes towards the end: one
that is frozen or read-only hides the heartbeats of a worker that is alive.
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

from bitel.errors import BitelError
from bitel.store import leases
from bitel.store.database import Connection, Database
from bitel.store.leases import Holder, TakeOverTerms

POLL: Final = 2.0
"""Seconds between two looks of a standby."""

HEARTBEAT_TIMEOUT: Final = 20.0
"""Seconds without a heartbeat after which another installation's worker counts as dead. It sends
one every 5 s."""

PROBE_AFTER: Final = 12.0
"""Seconds without a heartbeat after which looks are writes."""

LONGEST_LOOK: Final = 3.0
"""Seconds that a look may take, or begin late; otherwise the measurement begins anew."""

_INSTALLATION: Final = re.compile(r"[0-9a-f]{32}")


class DialerLock:
    """An exclusive lock on a file, held until `release` or the end of the process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def acquire(self) -> bool:
        """Take the lock, unless another process has it. Raises BitelError where none can be had."""
        if self._file is not None:
            return True
        try:
            # Not inherited by child processes: a sender that outlives its parent holds no lock.
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
        """Let another process take the lock."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def installation_of(data_dir: Path) -> str:
    """The identifier of a `data_dir`, 32 hex digits; made with the first call.

    Raises BitelError where it can neither be read nor written.
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
            # Of two processes that start at once, one makes it and both read it.
            with contextlib.suppress(FileExistsError):
                os.link(made, path)
            made.unlink()
    except OSError as fault:
        raise BitelError(f"{path} can't be used: {fault.strerror}") from fault
    raise BitelError(f"{path} holds no identifier; remove it")


class HeartbeatMonitor:
    """Measures for how long a dialer's heartbeat has been missing: its row stays the same.

    Times are monotonic seconds.

    Two looks that lie further apart than `longest_gap` are not joined: in between this process may
    have been paused, and the worker with it.
    """

    def __init__(self, longest_gap: float) -> None:
        self._longest_gap = longest_gap
        self.seconds = 0.0
        """Without a heartbeat, as of the last `observe`."""
        self._holder: Holder | None = None
        self._since = 0.0
        self._last = 0.0

    def observe(self, holder: Holder, asked_at: float, answered_at: float) -> None:
        """Note what a look found that was begun and answered at these times."""
        late = answered_at - asked_at > LONGEST_LOOK or asked_at - self._last > self._longest_gap
        if late or holder != self._holder:
            self._holder, self._since = holder, answered_at
        self._last = answered_at
        # The row is known to have been the same from the first answer to the last question.
        self.seconds = max(0.0, asked_at - self._since)

    def reset(self) -> None:
        """Measure anew from the next look on."""
        self._holder, self.seconds = None, 0.0


class Standby:
    """Says when this process may take over one dialer. Made for each dialer of a process.

    `clock` gives Unix seconds, `monotonic` seconds that only move forward. Raises BitelError where
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
    ) -> None:
        self.dialer_id = dialer_id
        self.holder = Holder()
        """The dialer's row when it was last looked at."""
        self.lock = DialerLock(data_dir / f"dialer-{dialer_id}.lock")
        self._installation = installation_of(data_dir)
        self._worker = worker
        self._database = database
        self._clock = clock
        self._monotonic = monotonic
        self._heartbeat = HeartbeatMonitor(POLL + LONGEST_LOOK)

    async def look(self) -> TakeOverTerms | None:
        """The terms on which to take over now; None: wait, and look again after `POLL` seconds.

        Whether the terms are returned or not, this process keeps the lock once it has it. Raises
        UnavailableError where the database can't be read.
        """
        locked = self.lock.acquire()
        work = leases.probe if locked and self._heartbeat.seconds >= PROBE_AFTER else leases.holder
        ask = self._database.write if work is leases.probe else self._database.read
        asked_at = self._monotonic()
        try:
            row = self.holder = await ask(lambda conn: work(conn, self.dialer_id))
        except BaseException:
            self._heartbeat.reset()
            raise
        if not locked:
            # The worker runs on this machine, or is stopped and may continue at any time.
            self._heartbeat.reset()
            return None
        if row.installation is None or row.installation == self._installation:
            return TakeOverTerms(self._installation, row)
        self._heartbeat.observe(row, asked_at, self._monotonic())
        if self._heartbeat.seconds < HEARTBEAT_TIMEOUT:
            return None
        # Such a worker may be alive, cut off from the database, and still about to dial.
        # Its heartbeat was at the start of that time, or before: its clock is ahead by so much.
        ahead = row.seen_at - (self._clock() - self._heartbeat.seconds)
        return TakeOverTerms(self._installation, row, former_ended=False, former_ahead=ahead)

    def reset(self) -> None:
        """Measure the time without a heartbeat anew: a take-over has failed."""
        self._heartbeat.reset()

    async def fence(self) -> TakeOverTerms:
        """Take the lease from a worker that may be alive; the terms for when it is gone.

        It stops when it finds out, at its next write or heartbeat.
        """
        now = self._clock()

        def work(conn: Connection) -> tuple[Holder, Holder]:
            before = leases.fence(conn, self.dialer_id, self._worker, self._installation, now)
            return before, leases.holder(conn, self.dialer_id)

        self.holder, row = await self._database.write(work)
        gone = self.holder.installation in (None, self._installation)
        ahead = 0.0 if gone else self.holder.seen_at - now
        return TakeOverTerms(self._installation, row, former_ended=gone, former_ahead=ahead)
