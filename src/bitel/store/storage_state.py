"""How large the database is, and what keeps it from shrinking: a reader's snapshot that is old."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, text


@dataclass(frozen=True, slots=True)
class StorageState:
    """Sizes in bytes; 0 for what the kind of database does not have."""

    database: int = 0
    wal: int = 0
    """SQLite's write-ahead log. It can't be written back beyond what the oldest reader needs."""
    dead_rows: int = 0
    """Of PostgreSQL's largest tables, as its statistics say."""
    live_rows: int = 0
    oldest_transaction: float = 0.0
    """Seconds for which the oldest snapshot of PostgreSQL has been used, as far as we may see."""
    oldest_pid: int = 0
    """The server process that has it."""


def read_state(conn: Connection) -> StorageState:
    """The state as it is now."""
    if conn.dialect.name == "sqlite":
        return _sqlite(conn)
    row = conn.execute(_POSTGRESQL).one()
    oldest = conn.execute(_OLDEST).one_or_none()
    return StorageState(
        database=row.database,
        dead_rows=row.dead or 0,
        live_rows=row.live or 0,
        oldest_transaction=float(oldest.seconds) if oldest else 0.0,
        oldest_pid=oldest.pid if oldest else 0,
    )


def _sqlite(conn: Connection) -> StorageState:
    path = conn.exec_driver_sql("PRAGMA database_list").one()[2]
    return StorageState(database=_size(path), wal=_size(f"{path}-wal"))


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


_POSTGRESQL: Final = text(
    """
    SELECT pg_database_size(current_database()) AS database,
        sum(n_dead_tup) AS dead, sum(n_live_tup) AS live
    FROM pg_stat_user_tables
    """
)
# What other roles do is hidden from an ordinary one: then the columns are NULL.
_OLDEST: Final = text(
    """
    SELECT pid, extract(epoch FROM clock_timestamp() - xact_start) AS seconds
    FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
        AND backend_xmin IS NOT NULL AND xact_start IS NOT NULL
    ORDER BY xact_start
    LIMIT 1
    """
)
