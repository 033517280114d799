"""What a dispatcher makes durable about its attempts, and how long it tries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeVar

import structlog

from bitel.dialing.batcher import Batcher
from bitel.errors import UnavailableError
from bitel.store import claims, settling
from bitel.store.database import Database
from bitel.store.leases import Lease
from bitel.store.settling import Settlement

Item = TypeVar("Item")

log = structlog.get_logger(__name__)

ANSWER_PATIENCE = 3.0
"""Seconds that somebody who has answered is kept waiting for the database, in silence."""

ANSWERS_REST = 0.01
"""Seconds from one write of answers to the next: so long somebody may wait in silence."""
ENDS_REST = 0.04
"""Seconds from one write of ends to the next; a channel is taken so much longer."""

_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0


class Records:
    """Writes answers and ends of attempts under one lease, many per transaction."""

    def __init__(self, database: Database, lease: Lease, clock: Callable[[], float]) -> None:
        self._database = database
        self._lease = lease
        self._clock = clock
        self._answers = Batcher(self._write_answers, ANSWERS_REST)
        self._ends = Batcher(self._write_ends, ENDS_REST)

    async def heard(self, attempt_id: str, answered_at: float) -> bool:
        """Make durable that the person called was there to hear us; False: don't let them.

        False when the claim is lost, and when the database can't say within `ANSWER_PATIENCE`.
        """
        try:
            async with asyncio.timeout(ANSWER_PATIENCE):
                return await self._until_written(self._answers, (attempt_id, answered_at))
        except TimeoutError:
            log.error("answer_not_recorded", attempt=attempt_id)
            return False

    async def settle(self, settlement: Settlement) -> bool:
        """Make an attempt's end durable, however long the database takes; False: claim lost."""
        return await self._until_written(self._ends, settlement)

    async def _until_written(self, batcher: Batcher[Item], item: Item) -> bool:
        pause = _FIRST_PAUSE
        while True:
            try:
                return await batcher.put(item)
            except UnavailableError as fault:
                log.warning("write_retried", fault=str(fault), again_in=pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _write_answers(self, answers: Sequence[tuple[str, float]]) -> Sequence[bool]:
        answered_at = dict(answers)
        taken = await self._database.write(
            lambda conn: claims.heard(conn, self._lease, answered_at)
        )
        return [attempt_id in taken for attempt_id, _ in answers]

    async def _write_ends(self, settlements: Sequence[Settlement]) -> Sequence[bool]:
        now = self._clock()
        taken = await self._database.write(
            lambda conn: settling.settle(conn, self._lease, settlements, now)
        )
        return [settlement.attempt_id in taken for settlement in settlements]
