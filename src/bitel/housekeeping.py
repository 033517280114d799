"""What has to be done now and then, whoever else is at work: by each process, in small pieces."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection

import structlog
from sqlalchemy import Connection

from bitel.errors import UnavailableError
from bitel.store import housekeeping, idempotency
from bitel.store.database import Database

log = structlog.get_logger(__name__)

EVERY = 10.0
"""Seconds between two rounds."""

AFTER_FAULT = 1.0
"""Seconds to the next round where the database could not be used."""

MOST = 1000
"""Rows that one round touches of each kind."""


async def keep_house(
    database: Database, dialer_ids: Collection[str], clock: Callable[[], float]
) -> None:
    """Expire calls that no dialer will ever claim, forget old idempotency keys; until cancelled."""

    def round_of_work(conn: Connection) -> int:
        now = clock()
        idempotency.forget_old(conn, now, MOST)
        return housekeeping.expire_orphans(conn, dialer_ids, now)

    while True:
        try:
            expired = await database.write(round_of_work)
            if expired:
                log.warning("expired_without_dialer", calls=expired)
        except UnavailableError as fault:
            log.warning("housekeeping_failed", fault=str(fault))
            await asyncio.sleep(AFTER_FAULT)
        except Exception:
            log.exception("housekeeping_broke")  # of no consequence to what is at work beside it
            await asyncio.sleep(EVERY)
        else:
            await asyncio.sleep(EVERY)
