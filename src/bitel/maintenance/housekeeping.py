"""Periodic work: expires orphaned calls, ends abandoned attempts, deletes old keys and the rest of
unfinished batches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from typing import Final

import structlog
from sqlalchemy import Connection

from bitel.dialing.standby import LONGEST_LOOK, HeartbeatMonitor
from bitel.errors import UnavailableError
from bitel.store import (
    call_frequency,
    idempotency,
    large_batches,
    monitoring,
    number_exclusion,
    recovery,
    trace_requests,
)
from bitel.store.database import Database
from bitel.store.recovery import Orphan

log = structlog.get_logger(__name__)

EVERY = 10.0
"""Seconds between two rounds."""

AFTER_FAULT = 1.0
"""Seconds to the next round after the database could not be used."""

MOST = 1000
"""Rows of each kind per round."""

MOST_NUMBERS: Final = 5000
"""The same for the counts of calls by number, since a batch adds many at once."""

ABANDONED_AFTER: Final = 600.0
"""Seconds without a heartbeat after which a worker's attempts are given up, if its dialer is not in
the settings, or belongs to a group."""

CLOCKS_DIFFER: Final = 2.0
"""Seconds of difference between this clock and the database server's from which a warning is
logged: machines that share a database exchange due times."""


class Housekeeper:
    """Expires calls that no dialer will claim, and deletes old idempotency keys and counts.

    It also gives up the attempts of dialers that are not in the settings (`dialer_ids`), once their
    workers have sent no heartbeat for `ABANDONED_AFTER`; and those of dialers that belong to groups
    (`grouped_ids`), with their shares in limits, since the others of the group dial on. `clock`
    gives Unix seconds. `save_clock` is called in every round, on a thread.
    """

    def __init__(
        self,
        database: Database,
        dialer_ids: Collection[str],
        clock: Callable[[], float],
        monotonic: Callable[[], float] = time.monotonic,
        save_clock: Callable[[], None] = lambda: None,
        grouped_ids: Collection[str] = (),
    ) -> None:
        self._database = database
        self._save_clock = save_clock
        self._dialer_ids = dialer_ids
        self._grouped_ids = grouped_ids
        self._clock = clock
        self._monotonic = monotonic
        self._monitors: dict[str, HeartbeatMonitor] = {}
        self._clocks_differ = False

    async def run(self) -> None:
        """Do a round every `EVERY` seconds, until cancelled."""
        while True:
            pause = EVERY
            try:
                await asyncio.to_thread(self._save_clock)
                await self.round()
            except UnavailableError as fault:
                log.warning("housekeeping_failed", fault=str(fault))
                self._monitors.clear()
                pause = AFTER_FAULT
            except Exception:
                log.exception("housekeeping_broke")  # the next round may succeed
            await asyncio.sleep(pause)

    async def round(self) -> None:
        """One round. Raises UnavailableError."""
        asked_at = self._monotonic()
        expired, left_open, database_time = await self._database.write(self._work)
        if database_time is not None:
            self._compare_clocks(self._clock() - database_time)
        if expired:
            log.warning("expired_without_dialer", calls=expired)
        answered_at = self._monotonic()
        # As in a standby, measured so that clock differences and database outages do not matter.
        for dialer_id in self._monitors.keys() - left_open.keys():
            del self._monitors[dialer_id]
        for dialer_id, seen in left_open.items():
            monitor = self._monitors.setdefault(dialer_id, HeartbeatMonitor(EVERY + LONGEST_LOOK))
            monitor.observe(seen, asked_at, answered_at)
            if monitor.seconds >= ABANDONED_AFTER:
                await self._give_up(dialer_id, seen)

    def _compare_clocks(self, ahead: float) -> None:
        differ = abs(ahead) >= CLOCKS_DIFFER
        if differ and not self._clocks_differ:
            log.warning("clocks_differ", ahead=round(ahead, 1))
        self._clocks_differ = differ

    def _work(self, conn: Connection) -> tuple[int, dict[str, Orphan], float | None]:
        now = self._clock()
        idempotency.forget_old(conn, now, MOST)
        trace_requests.forget(conn, now)
        large_batches.discard_abandoned(conn, now)
        number_exclusion.forget_may_ring(conn, now, MOST)
        call_frequency.forget_old(conn, now, MOST_NUMBERS)
        expired = recovery.expire_orphans(conn, self._dialer_ids, now)
        left_open = recovery.orphaned(conn, self._dialer_ids, self._grouped_ids)
        return expired, left_open, monitoring.database_time(conn)

    async def _give_up(self, dialer_id: str, seen: Orphan) -> None:
        is_abandoned = await self._database.write(
            lambda conn: recovery.give_up(conn, dialer_id, seen, self._clock())
        )
        if is_abandoned:
            log.warning("abandoned", dialer=dialer_id, worker=seen[0].worker)
