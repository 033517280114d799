"""Statistics of the database for metrics and warnings: queues, sizes, old transactions.

Counts are capped at `MOST`, since counting ten million rows takes seconds.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    Double,
    ScalarSelect,
    bindparam,
    cast,
    func,
    literal,
    literal_column,
    select,
    text,
)

from bitel.store.schema import (
    call,
    campaign,
    is_due_alone,
    is_due_in_campaign,
    is_undelivered,
    is_unfinished,
)

MOST: Final = 10_000


@dataclass(frozen=True, slots=True)
class Queue:
    """The calls of one dialer that wait for an attempt."""

    waiting: int
    """At most `MOST`."""
    oldest_due_at: float | None
    """The earliest due time (Unix seconds); it may be in the future."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """The queues of the whole database."""

    queues: dict[str, Queue]
    """By dialer."""
    webhooks: int
    """Undelivered events, due or not; at most `MOST`."""


_alone = (call.c.dialer_id == bindparam("dialer_id"), is_due_alone)
_in_campaigns = (
    campaign.c.dialer_id == bindparam("dialer_id"),
    is_unfinished,
    call.c.campaign_id == campaign.c.id,
    is_due_in_campaign,
)
_first_due = (
    select(call.c.due_at)
    .where(call.c.campaign_id == campaign.c.id, is_due_in_campaign)
    .order_by(call.c.due_at)
    .limit(literal_column("1"))
    .scalar_subquery()
)


def _count(*conditions: ColumnElement[bool]) -> ScalarSelect[int]:
    some = select(literal(1).label("one")).where(*conditions).limit(bindparam("most")).subquery()
    return select(func.count()).select_from(some).scalar_subquery()


_QUEUE = select(
    _count(*_alone).label("alone"),
    _count(*_in_campaigns).label("in_campaigns"),
    select(func.min(call.c.due_at)).where(*_alone).scalar_subquery().label("oldest_alone"),
    select(func.min(_first_due))
    .where(campaign.c.dialer_id == bindparam("dialer_id"), is_unfinished)
    .scalar_subquery()
    .label("oldest_in_campaigns"),
)
_some_events = (
    select(literal(1).label("one")).where(is_undelivered).limit(bindparam("most")).subquery()
)
_EVENTS = select(func.count()).select_from(_some_events)


def waiting(conn: Connection, dialer_ids: Iterable[str]) -> Waiting:
    """Count waiting calls and events."""
    queues = {}
    for dialer_id in dialer_ids:
        row = conn.execute(_QUEUE, {"dialer_id": dialer_id, "most": MOST}).one()
        oldest = (row.oldest_alone, row.oldest_in_campaigns)
        queues[dialer_id] = Queue(
            min(row.alone + row.in_campaigns, MOST),
            min((at for at in oldest if at is not None), default=None),
        )
    events: int = conn.execute(_EVENTS, {"most": MOST}).scalar_one()
    return Waiting(queues, events)


def ping(conn: Connection) -> None:
    """Check that the database answers."""
    conn.execute(text("SELECT 1"))


@dataclass(frozen=True, slots=True)
class StorageState:
    """Sizes in bytes; 0 where the kind of database has none."""

    database: int = 0
    wal: int = 0
    """SQLite's write-ahead log. It can't be written back beyond what the oldest reader needs."""
    dead_rows: int = 0
    """Of PostgreSQL's largest tables, as its statistics say."""
    live_rows: int = 0
    oldest_transaction: float = 0.0
    """Age in seconds of the oldest visible PostgreSQL transaction with a snapshot."""
    oldest_pid: int = 0
    """The server process that has it."""


_POSTGRESQL: Final = text(
    """
    SELECT pg_database_size(current_database()) AS database,
        sum(n_dead_tup) AS dead, sum(n_live_tup) AS live
    FROM pg_stat_user_tables
    """
)
# The columns are NULL for transactions of other roles, unless our role may see them.
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


def read_state(conn: Connection) -> StorageState:
    """Read the current state."""
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


def database_time(conn: Connection) -> float | None:
    """The time by the database server's clock (Unix seconds); None where there is no server."""
    if conn.dialect.name != "postgresql":
        return None
    now = select(cast(func.extract("epoch", func.clock_timestamp()), Double))
    seconds: float = conn.execute(now).scalar_one()
    return seconds
