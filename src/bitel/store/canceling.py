"""Calling calls off, whether they wait, ring or play.

A call that waits is over at once. One that rings or plays is its dialer's: a row asks the
dispatcher to end the attempt. Settling it then makes the call final, whatever the attempt met; one
that was answered by then ends as any answered call does.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, Row, bindparam, select, text

from bitel.domain.calls import CallStatus
from bitel.store.endings import CallEnd, end_calls
from bitel.store.schema import attempt, cancel_request, is_open
from bitel.store.sql_batch import in_chunks


def call_off(conn: Connection, calls: Sequence[Row[*tuple[Any, ...]]], now: float) -> None:
    """Call off waiting calls, given as locked rows with `id` and `due_at`."""
    ends = [CallEnd(row.id, CallStatus.CANCELED) for row in calls if row.due_at is not None]
    end_calls(conn, ends, now)
    if dialled := [{"call_id": row.id} for row in calls if row.due_at is None]:
        conn.execute(_ASK, dialled)


def requests(conn: Connection, dialer_id: str) -> list[str]:
    """The attempts of the dialer that are to be called off and are not over yet."""
    return list(conn.execute(_REQUESTS, {"dialer_id": dialer_id}).scalars())


def asked(conn: Connection, attempts: Collection[str]) -> set[str]:
    """Those of the attempts that were asked to be called off."""
    return {found for ids in in_chunks(attempts) for found in conn.execute(_ASKED, ids).scalars()}


_ASK = text(
    """
    INSERT INTO cancel_request (attempt_id, dialer_id)
    SELECT id, dialer_id FROM attempt WHERE call_id = :call_id AND ended_at IS NULL
    ON CONFLICT (attempt_id) DO NOTHING
    """
)
_REQUESTS = (
    select(cancel_request.c.attempt_id)
    .join(attempt, attempt.c.id == cancel_request.c.attempt_id)
    .where(cancel_request.c.dialer_id == bindparam("dialer_id"), is_open)
)
_ASKED = select(cancel_request.c.attempt_id).where(
    cancel_request.c.attempt_id.in_(bindparam("ids", expanding=True))
)
