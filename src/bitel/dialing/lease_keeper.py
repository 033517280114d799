"""Keeps a worker's lease: renews it, notices its end, and ends the leases of dead workers.

Workers that share a database see each other's heartbeats, `seen_at` in the table `worker`. Clocks
of machines differ, so each worker measures by its own monotonic clock for how long another's row
has not changed. After `DEAD_AFTER` seconds it removes the row, and with it the lease, and recovers
the attempts. A worker that could not renew its own lease for `LAPSES_AFTER` seconds, which is less,
regards it as lapsed: it sends no INVITE any more and cancels what rings, until a renewal succeeds.
So when others end its lease, none of its phones begins to ring any more.

A worker also keeps a mark, a file in data_dir with the id of the newest attempt that it has begun.
It is compared with the dialer's rows at the next start. A database without that attempt was
restored from a backup, and dialling with it would repeat the calls made since.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog
from sqlalchemy import Connection

from bitel.dialing.standby import LONGEST_LOOK, HeartbeatMonitor
from bitel.errors import UnavailableError
from bitel.store import leases, recovery
from bitel.store.database import Database
from bitel.store.leases import Lease, LostLease, Worker, WorkerState
from bitel.store.recovery import FormerWorker, Recovered

log = structlog.get_logger(__name__)

RENEW_ALONE: Final = 5.0
"""Seconds between two renewals of a worker that has its database for itself."""
RENEW_SHARED: Final = 1.0
"""The same where other workers may use the database."""
LAPSES_AFTER: Final = 5.0
"""Seconds without a renewal after which a worker stops using its lease."""
DEAD_AFTER: Final = 7.0
"""Seconds without a heartbeat after which others end the lease."""

_AFTER_FAULT: Final = 0.25
_AFTER_BUG: Final = 1.0
_WATCH: Final = 0.25
_CONFIRM: Final = 3.0
"""Seconds in which the database must confirm the lease."""
_ID: Final = re.compile(rb"[0-9a-f]{32}")


class LeaseKeeper:
    """Keeps one lease; `run` it in a task.

    Args:
        state: what is reported with each renewal.
        redial_after, last_invite: as in `recovery.recover`, for attempts of dead workers.
        on_lapse: called when the lease has lapsed.
        on_drain: called when the operator has asked the worker to stop.
        on_recovered: called after attempts of a dead worker were recovered.
    """

    def __init__(
        self,
        database: Database,
        lease: Lease,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        state: Callable[[], WorkerState],
        redial_after: float,
        last_invite: float,
        on_lapse: Callable[[], None],
        on_drain: Callable[[], None],
        on_recovered: Callable[[], None],
    ) -> None:
        self.workers: list[Worker] = []
        """The workers of the dialer, as of the last renewal."""
        self._database = database
        self._lease = lease
        self._clock = clock
        self._monotonic = monotonic
        self._state = state
        self._redial_after = redial_after
        self._last_invite = last_invite
        self._on_lapse = on_lapse
        self._on_drain = on_drain
        self._on_recovered = on_recovered
        self.every = RENEW_SHARED if database.is_shared else RENEW_ALONE
        """Seconds between two renewals."""
        self._renewed_at = monotonic()
        self.lost: LostLease | None = None
        """Why the lease is lost; None: it is not known to be."""
        self._lost_event = asyncio.Event()
        self._has_lapsed = False
        self._monitors: dict[int, HeartbeatMonitor] = {}

    @property
    def is_valid(self) -> bool:
        """Whether calls may begin: the lease is not lost, and has not lapsed.

        A worker that has its database for itself need not fear that others dial as well.
        """
        if self.lost is not None:
            return False
        since = self._monotonic() - self._renewed_at
        return not self._database.is_shared or since < LAPSES_AFTER

    @property
    def is_first(self) -> bool:
        """Whether no other worker of the dialer is older, those that stop not counted.

        False before the first renewal, where there may be others.
        """
        if not self._database.is_shared:
            return True
        going_on = [each for each in self.workers if not (each.fenced or each.draining)]
        return bool(going_on) and going_on[0].epoch == self._lease.epoch

    async def run(self) -> None:
        """Renew the lease until it is lost. Raises LostLease then."""
        watching = asyncio.create_task(self._watch())
        try:
            await self._renew_repeatedly()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def confirm(self) -> bool:
        """Renew the lease now; False if it is lost or the database does not answer within 3 s."""
        try:
            async with asyncio.timeout(_CONFIRM):
                await self._renew()
        except (UnavailableError, TimeoutError) as fault:
            log.warning(
                "lease_not_confirmed", dialer=self._lease.dialer_id, fault=str(fault) or "late"
            )
            return False
        except LostLease as lost:
            self._lose(lost)
            return False
        return True

    def _lose(self, lost: LostLease) -> None:
        self.lost = lost
        self._lost_event.set()

    async def _renew_repeatedly(self) -> None:
        pause = self.every
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._lost_event.wait()
            if self.lost is not None:
                raise self.lost
            try:
                dead = await self._renew()
                pause = self.every
                for each in dead:
                    await self._bury(each)
            except UnavailableError as fault:
                if pause == self.every:
                    log.warning("lease_not_renewed", dialer=self._lease.dialer_id, fault=str(fault))
                pause = _AFTER_FAULT
            except LostLease as lost:
                self._lose(lost)
            except Exception:
                log.exception("lease_renewal_broke", dialer=self._lease.dialer_id)
                pause = _AFTER_BUG

    async def _renew(self) -> list[Worker]:
        """Renew the lease; returns the workers that are dead. Raises LostLease."""
        asked_at, state, now = self._monotonic(), self._state(), self._clock()
        self.workers = await self._database.write(
            lambda conn: leases.renew(conn, self._lease, now, state)
        )
        answered_at = self._monotonic()
        mine = next((each for each in self.workers if each.epoch == self._lease.epoch), None)
        dialer_id = self._lease.dialer_id
        if mine is None and self.workers:
            raise LostLease(f"other workers of the dialer {dialer_id!r} ended its lease")
        if mine is None or mine.fenced:
            raise LostLease(f"another process took over the dialer {dialer_id!r}", is_fenced=True)
        self._renewed_at = max(self._renewed_at, asked_at)
        if self._has_lapsed:
            self._has_lapsed = False
            log.warning("lease_valid_again", dialer=dialer_id)
        if mine.draining:
            self._on_drain()
        return [each for each in self.workers if self._is_dead(each, asked_at, answered_at)]

    def _is_dead(self, other: Worker, asked_at: float, answered_at: float) -> bool:
        if other.epoch == self._lease.epoch:
            known = {each.epoch for each in self.workers}
            for epoch in self._monitors.keys() - known:
                del self._monitors[epoch]
            return False
        monitor = self._monitors.get(other.epoch)
        if monitor is None:
            monitor = self._monitors[other.epoch] = HeartbeatMonitor(self.every + LONGEST_LOOK)
        monitor.observe(other.seen_at, asked_at, answered_at)
        return monitor.seconds >= DEAD_AFTER

    async def _bury(self, dead: Worker) -> None:
        """End the lease of a dead worker, and recover its attempts."""
        monitor = self._monitors[dead.epoch]

        def work(conn: Connection) -> Recovered | None:
            if not leases.holds(conn, self._lease) or not leases.remove_dead(conn, dead):
                return None
            now = self._clock()
            # Its last heartbeat was before the measured time, which bounds its clock.
            ahead = dead.seen_at - (now - monitor.seconds)
            former = FormerWorker(has_ended=False, has_lapsed=True, ahead=ahead)
            return recovery.recover(
                conn, dead.dialer_id, now, self._redial_after, self._last_invite, former
            )

        recovered = await self._database.write(work)
        if recovered is None:
            return
        log.warning(
            "worker_dead",
            dialer=dead.dialer_id,
            worker=dead.name,
            unanswered=recovered.redialled,
            unknown=recovered.unknown,
        )
        self._on_recovered()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH)
            if self.lost is None and not self.is_valid and not self._has_lapsed:
                self._has_lapsed = True
                log.warning("lease_lapsed", dialer=self._lease.dialer_id)
                self._on_lapse()


class ClaimMark:
    """The mark of one dialer. A missing or damaged file counts as no mark."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = -1
        self._newest = ""

    def read(self) -> str:
        """The id; empty if there is none."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return ""
        except OSError as fault:
            log.error("claim_mark_not_read", path=str(self._path), fault=str(fault))
            return ""
        found = _ID.match(content)
        return found[0].decode() if found else ""

    def note(self, attempt_id: str) -> None:
        """Write the id of an attempt whose claim is durable, before its INVITE is sent.

        Does not wait for the disk: after a power loss the mark may be older than the database,
        which is harmless.
        """
        if attempt_id <= self._newest:
            return
        self._newest = attempt_id
        try:
            if self._file < 0:
                flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
                self._file = os.open(self._path, flags, 0o600)
            os.pwrite(self._file, f"{attempt_id}\n".encode(), 0)
        except OSError as fault:
            log.error("claim_mark_not_written", path=str(self._path), fault=str(fault))

    def sync(self) -> None:
        """Block until the mark is on the disk."""
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.fdatasync(self._file)

    def close(self) -> None:
        """Close the file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
