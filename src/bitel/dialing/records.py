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


RINGING_DELAY = 0.2
"""Seconds until ringing is written, so that a call answered at once costs no write for it."""


class _Heard(NamedTuple):
    attempt_id: str
    answered_at: float


class _Ringing(NamedTuple):
    rang_at: dict[str, float]


_Item = _Heard | _Ringing | Settlement


class Records:
    """Writes ringing, answers and ends of attempts under one lease, many per transaction."""

    def __init__(self, database: Database, lease: Lease, clock: Callable[[], float]) -> None:
        self._database = database
        self._lease = lease
        self._clock = clock
        self._batcher: Batcher[_Item] = Batcher(self._write, REST)
        self._patience = Patience(ANSWER_PATIENCE, _keep_waiting_no_longer)
        # Attempts that ring, unwritten: by attempt when that was reported (loop time), and rang_at.
        self._ringing: dict[str, tuple[float, float]] = {}
        self._ringing_timer: asyncio.TimerHandle | None = None

    def rang(self, attempt_id: str, rang_at: float) -> None:
        """Make durable that an attempt rings, within about twice `RINGING_DELAY`.

        Nothing waits for it: an answer or an end that comes first is written in its place.
        """
        loop = asyncio.get_running_loop()
        self._ringing[attempt_id] = loop.time(), rang_at
        if self._ringing_timer is None:
            self._ringing_timer = loop.call_later(RINGING_DELAY, self._write_ringing)

    def _write_ringing(self) -> None:
        loop = asyncio.get_running_loop()
        before = loop.time() - RINGING_DELAY
        ripe: dict[str, float] = {}
        for attempt_id, (reported, rang_at) in self._ringing.items():
            if reported > before:
                break  # the rest was reported later
            ripe[attempt_id] = rang_at
        for attempt_id in ripe:
            del self._ringing[attempt_id]
        if ripe:
            self._batcher.put(_Ringing(ripe)).add_done_callback(_log_unwritten)
        self._ringing_timer = (
            loop.call_later(RINGING_DELAY, self._write_ringing) if self._ringing else None
        )

    def heard(self, attempt_id: str, answered_at: float) -> asyncio.Future[bool]:
        """Make durable that the person called was there to hear us; False: don't let them.

        False when the claim is lost, and when the database can't say within `ANSWER_PATIENCE`.
        """
        self._ringing.pop(attempt_id, None)
        written = self._batcher.put(_Heard(attempt_id, answered_at))
        self._patience.begin(attempt_id, written)
        return written

    def settle(self, settlement: Settlement) -> asyncio.Future[bool]:
        """Make an attempt's end durable, however long the database takes; False: claim lost."""
        self._ringing.pop(settlement.attempt_id, None)
        return self._batcher.put(settlement)

    async def _write(self, items: Sequence[_Item]) -> Sequence[bool]:
        answered_at = {one.attempt_id: one.answered_at for one in items if isinstance(one, _Heard)}
        rang_at = {
            key: at for one in items if isinstance(one, _Ringing) for key, at in one.rang_at.items()
        }
        settlements = [one for one in items if isinstance(one, Settlement)]
        now = self._clock()

        def write(conn: Connection) -> tuple[set[str], set[str]]:
            if rang_at:
                claims.rang(conn, self._lease, rang_at)
            heard = claims.heard(conn, self._lease, answered_at) if answered_at else set()
            return heard, settling.settle(conn, self._lease, settlements, now)

        heard, settled = await self._database.write(write)
        return [
            isinstance(one, _Ringing)
            or one.attempt_id in (heard if isinstance(one, _Heard) else settled)
            for one in items
        ]


def _log_unwritten(written: asyncio.Future[bool]) -> None:
    if not written.cancelled() and (fault := written.exception()) is not None:
        log.error("ringing_not_recorded", exc_info=fault)


def _keep_waiting_no_longer(attempt_id: str, written: asyncio.Future[bool]) -> None:
    log.error("answer_not_recorded", attempt=attempt_id)
    written.set_result(False)
