"""What nobody else comes by to do: calls of dialers that are no longer configured."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from sqlalchemy import Connection, Double, bindparam, cast, func, select

from bitel.store import claims, leases
from bitel.store.leases import Holder, TakeOverTerms
from bitel.store.schema import attempt, call, is_due, is_open
from bitel.store.sql_batch import loose_index_scan

REDIAL_AFTER: Final = 600.0
"""Seconds until a call of such a dialer is due again: more than any dialer's ring time needs."""


def database_time(conn: Connection) -> float | None:
    """The time by the database server's clock (Unix seconds); None where there is no server."""
    if conn.dialect.name != "postgresql":
        return None
    now: float = conn.execute(_DATABASE_TIME).scalar_one()
    return now


def left_open(conn: Connection, known_dialers: Collection[str]) -> dict[str, Holder]:
    """The dialers that are not known and have attempts under way, with their rows."""
    rows = conn.execute(_LEFT_OPEN, {"known": list(known_dialers), "after": ""})
    return {row.value: leases.holder(conn, row.value) for row in rows.all()}


def give_up(conn: Connection, dialer_id: str, seen: Holder, now: float) -> None:
    """Deal with what a dialer's worker left behind, as after any crash.

    Raises LostLease where its row is no longer what was `seen`.
    """
    terms = TakeOverTerms(former=seen)
    leases.take_over(conn, dialer_id, "housekeeping", now, REDIAL_AFTER, terms=terms)


def expire_orphans(
    conn: Connection, known_dialers: Collection[str], now: float, limit: int = 1000
) -> int:
    """End up to `limit` calls, of dialers that are not known, whose time to live ran out.

    How many calls expired is returned.
    """
    known = {"known": list(known_dialers), "after": ""}
    ended = 0
    for dialer_id in conn.execute(_ORPHANED, known).scalars().all():
        ended += claims.expire(conn, dialer_id, now, limit - ended)
        if ended >= limit:
            break
    return ended


_DATABASE_TIME = select(cast(func.extract("epoch", func.clock_timestamp()), Double))
_open = loose_index_scan(attempt.c.dialer_id, is_open)
_LEFT_OPEN = select(_open.c.value).where(
    _open.c.value.is_not(None),
    _open.c.value.not_in(bindparam("known", expanding=True)),
)
_waiting = loose_index_scan(call.c.dialer_id, is_due)
_ORPHANED = select(_waiting.c.value).where(
    _waiting.c.value.is_not(None),
    _waiting.c.value.not_in(bindparam("known", expanding=True)),
)
