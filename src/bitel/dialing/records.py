"""What a dispatcher makes durable about its attempts, and how long it tries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import NamedTuple

import structlog
from sqlalchemy import Connection

from bitel.dialing.batcher import Batcher
from bitel.dialing.patience import Patience
from bitel.store import claims, settling
from bitel.store.database import Database
from bitel.store.leases import Lease
from bitel.store.settling import Settlement

log = structlog.get_logger(__name__)

ANSWER_PATIENCE = 3.0
"""Seconds that somebody who has answered is kept waiting for the database, in silence."""

REST = 0.04
"""Seconds from one write to the next: so long somebody who has answered may wait in silence, and
an attempt that is over keeps its channel. A transaction costs as much CPU as a few calls do."""


class _Heard(NamedTuple):
    attempt_id: str
    answered_at: float


class Records:
    """Writes answers and ends of attempts under one lease, many per transaction."""

    def __init__(self, database: Database, lease: Lease, clock: Callable[[], float]) -> None:
        self._database = database
        self._lease = lease
        self._clock = clock
        self._batcher: Batcher[_Heard | Settlement] = Batcher(self._write, REST)
        self._patience = Patience(ANSWER_PATIENCE, _keep_waiting_no_longer)

    def heard(self, attempt_id: str, answered_at: float) -> asyncio.Future[bool]:
        """Make durable that the person called was there to hear us; False: don't let them.

        False when the claim is lost, and when the database can't say within `ANSWER_PATIENCE`.
        """
        written = self._batcher.put(_Heard(attempt_id, answered_at))
        self._patience.begin(attempt_id, written)
        return written

    def settle(self, settlement: Settlement) -> asyncio.Future[bool]:
        """Make an attempt's end durable, however long the database takes; False: claim lost."""
        return self._batcher.put(settlement)

    async def _write(self, items: Sequence[_Heard | Settlement]) -> Sequence[bool]:
        answered_at = {one.attempt_id: one.answered_at for one in items if isinstance(one, _Heard)}
        settlements = [one for one in items if isinstance(one, Settlement)]
        now = self._clock()

        def write(conn: Connection) -> tuple[set[str], set[str]]:
            heard = claims.heard(conn, self._lease, answered_at) if answered_at else set()
            return heard, settling.settle(conn, self._lease, settlements, now)

        heard, settled = await self._database.write(write)
        return [one.attempt_id in (heard if isinstance(one, _Heard) else settled) for one in items]


def _keep_waiting_no_longer(attempt_id: str, written: asyncio.Future[bool]) -> None:
    log.error("answer_not_recorded", attempt=attempt_id)
    written.set_result(False)
