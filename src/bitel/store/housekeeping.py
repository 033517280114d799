"""What nobody else comes by to do: calls of dialers that are no longer configured."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from sqlalchemy import Connection, bindparam, select

from bitel.store import claims, leases, loose
from bitel.store.schema import attempt, call, dialer, is_due, is_open

ABANDONED_AFTER: Final = 600.0
"""Seconds without a sign of a dialer's worker after which its attempts are given up."""


def expire_orphans(
    conn: Connection, known_dialers: Collection[str], now: float, limit: int = 1000
) -> int:
    """End up to `limit` calls, of dialers that are not known, whose time to live ran out.

    What such a dialer was dialling when it was last heard of is dealt with as after any crash.
    How many calls expired is returned.
    """
    known = {"known": list(known_dialers), "after": ""}
    silent = {**known, "before": now - ABANDONED_AFTER}
    for dialer_id in conn.execute(_ABANDONED, silent).scalars().all():
        leases.take_over(conn, dialer_id, "housekeeping", now, redial_after=ABANDONED_AFTER)
    ended = 0
    for dialer_id in conn.execute(_ORPHANED, known).scalars().all():
        ended += claims.expire(conn, dialer_id, now, limit - ended)
        if ended >= limit:
            break
    return ended


_open = loose.distinct(attempt.c.dialer_id, is_open)
_ABANDONED = (
    select(_open.c.value)
    .join(dialer, dialer.c.id == _open.c.value)
    .where(
        _open.c.value.not_in(bindparam("known", expanding=True)),
        dialer.c.seen_at < bindparam("before"),
    )
)
_waiting = loose.distinct(call.c.dialer_id, is_due)
_ORPHANED = select(_waiting.c.value).where(
    _waiting.c.value.is_not(None),
    _waiting.c.value.not_in(bindparam("known", expanding=True)),
)
