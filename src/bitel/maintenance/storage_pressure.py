"""Monitors the sizes of disk and database, and warns with the cause when they grow."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from bitel.errors import UnavailableError
from bitel.store.database import Database
from bitel.store.monitoring import StorageState, read_state

log = structlog.get_logger(__name__)

EVERY: Final = 10.0
"""Seconds between two checks."""
LARGE_WAL: Final = 256 * 1024 * 1024
"""Bytes of SQLite's write-ahead log from which a reader must be blocking the checkpoint, which
truncates it to 64 MiB."""
OLD_SNAPSHOT: Final = 600.0
"""Seconds for which a transaction may use one snapshot of PostgreSQL."""
MANY_DEAD_ROWS: Final = 1_000_000

_MIB: Final = 1024 * 1024


class StoragePressure:
    """The state of disk and database at the last check.

    Args:
        data_dir: the folder whose disk must have `disk_megabytes` free (MiB; 0: any).
    """

    def __init__(
        self, database: Database, data_dir: Path, disk_megabytes: Callable[[], int]
    ) -> None:
        self._database = database
        self._data_dir = data_dir
        self._disk_megabytes = disk_megabytes
        self.state = StorageState()
        self.disk_free = 0
        """Bytes."""
        self.warnings: tuple[str, ...] = ()
        """Sentences for an operator, each with its cause."""

    async def run(self) -> None:
        """Check every `EVERY` seconds, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(EVERY)

    async def look(self) -> None:
        """Check once. A figure that can't be read keeps its last value."""
        try:
            self.disk_free = (await asyncio.to_thread(shutil.disk_usage, self._data_dir)).free
            self.state = await self._database.read(read_state)
        except (OSError, UnavailableError) as fault:
            log.debug("storage_not_read", fault=str(fault))
        found = tuple(warnings(self.state, self.disk_free, self._disk_megabytes()))
        if found != self.warnings:
            for each in found:
                if not self.warnings or _kind(each) not in map(_kind, self.warnings):
                    log.warning("storage_pressure", cause=each)
            if self.warnings and not found:
                log.info("storage_pressure_over")
        self.warnings = found


def warnings(state: StorageState, disk_free: int, disk_megabytes: int) -> list[str]:
    """The warnings for an operator, in sentences that name the cause."""
    found = []
    if state.wal >= LARGE_WAL:
        found.append(
            f"SQLite's write-ahead log has {state.wal // _MIB} MiB: another program, such as a "
            "backup or a query, has been reading the database for long; end it"
        )
    if state.oldest_transaction >= OLD_SNAPSHOT:
        found.append(
            f"a transaction in PostgreSQL has been open for {state.oldest_transaction:.0f} s "
            f"(server process {state.oldest_pid}), so rows that are dead can't be removed; end it"
        )
    elif state.dead_rows >= MANY_DEAD_ROWS and state.dead_rows > state.live_rows:
        found.append(
            f"PostgreSQL keeps {state.dead_rows} dead rows: an old snapshot, such as that of a "
            "replication slot or of another role's transaction, or a stopped autovacuum"
        )
    if disk_megabytes and disk_free < disk_megabytes * _MIB:
        found.append(f"the disk of data_dir has {disk_free // _MIB} MiB left; make room")
    return found


def _kind(warning: str) -> str:
    return warning[:20]
