"""How much waits in the database, for the metrics: found by index, however many rows there are.

Counts end at `MOST`, which then means that many or more: to count ten million rows takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, bindparam, func, literal, select, text

from bitel.store.schema import call, is_due, is_untold

MOST: Final = 10_000


@dataclass(frozen=True, slots=True)
class Queue:
    """Calls of one dialer that wait for an attempt."""

    waiting: int
    """At most `MOST`."""
    oldest_due_at: float | None
    """When the one that is due for longest became due (Unix seconds); later ones lie ahead."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits in the whole database."""

    queues: dict[str, Queue]
    """By dialer."""
    webhooks: int
    """Events that are to be delivered, now or later; at most `MOST`."""


def waiting(conn: Connection, dialer_ids: Iterable[str]) -> Waiting:
    """What waits now."""
    queues = {}
    for dialer_id in dialer_ids:
        row = conn.execute(_QUEUE, {"dialer_id": dialer_id, "most": MOST}).one()
        queues[dialer_id] = Queue(row.waiting, row.oldest)
    events: int = conn.execute(_EVENTS, {"most": MOST}).scalar_one()
    return Waiting(queues, events)


_of_dialer = (call.c.dialer_id == bindparam("dialer_id"), is_due)
_some_calls = select(literal(1).label("one")).where(*_of_dialer).limit(bindparam("most")).subquery()
_QUEUE = select(
    select(func.count()).select_from(_some_calls).scalar_subquery().label("waiting"),
    select(func.min(call.c.due_at)).where(*_of_dialer).scalar_subquery().label("oldest"),
)
_some_events = select(literal(1).label("one")).where(is_untold).limit(bindparam("most")).subquery()
_EVENTS = select(func.count()).select_from(_some_events)


def ping(conn: Connection) -> None:
    """Ask the database for nothing but an answer."""
    conn.execute(_PING)


_PING = text("SELECT 1")
