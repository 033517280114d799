"""Calls with their attempts, as clients see them in answers, webhooks and exports."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, select

from bitel.domain.attempts import Outcome
from bitel.domain.call_json import AttemptDetails, CallDetails
from bitel.store.calls import CALL_COLUMNS, from_row
from bitel.store.schema import attempt, call, in_campaign
from bitel.store.sql_batch import in_chunks, matches

_ids: Final[Any] = bindparam("ids", expanding=True)
_CALLS: Final = select(*CALL_COLUMNS, call.c.reference).where(call.c.id.in_(_ids))
_FIND: Final = _CALLS.where(*matches(call.c.project_id))
_PAGE: Final = (
    select(*CALL_COLUMNS, call.c.reference)
    .where(call.c.campaign_id == bindparam("campaign_id"), in_campaign)
    .where(call.c.id > bindparam("after"))
    .order_by(call.c.id)
    .limit(bindparam("most"))
)
_ATTEMPTS: Final = (
    select(attempt).where(attempt.c.call_id.in_(_ids)).order_by(attempt.c.call_id, attempt.c.number)
)


def find(conn: Connection, project_id: str, call_id: str) -> CallDetails | None:
    """The project's call of that id, if there is one."""
    rows = conn.execute(_FIND, {"ids": [call_id], "project_id": project_id}).all()
    found = _with_attempts(conn, rows)
    return found[0] if found else None


def find_many(conn: Connection, call_ids: Collection[str]) -> dict[str, CallDetails]:
    """The calls of these ids, of any project, by id."""
    rows = [row for ids in in_chunks(call_ids) for row in conn.execute(_CALLS, ids)]
    return {each.call.id: each for each in _with_attempts(conn, rows)}


def page_of_campaign(
    conn: Connection, campaign_id: str, after: str, limit: int
) -> list[CallDetails]:
    """Up to `limit` calls of a campaign, by id; `after` is the last id of the page before, or "".

    The caller has checked that the campaign may be seen. For an export of all calls each page is a
    read of its own: a transaction that is open while a client takes a million of them would keep
    SQLite from truncating its log, and PostgreSQL from removing dead rows.
    """
    wanted = {"campaign_id": campaign_id, "after": after, "most": limit}
    return _with_attempts(conn, conn.execute(_PAGE, wanted).all())


def _with_attempts(conn: Connection, rows: Sequence[Row[*tuple[Any, ...]]]) -> list[CallDetails]:
    attempts: dict[str, list[AttemptDetails]] = {row.id: [] for row in rows}
    for ids in in_chunks(attempts):
        for row in conn.execute(_ATTEMPTS, ids):
            attempts[row.call_id].append(_attempt(row))
    return [CallDetails(from_row(row[:-1]), row.reference, attempts[row.id]) for row in rows]


def _attempt(row: Row[*tuple[Any, ...]]) -> AttemptDetails:
    return AttemptDetails(
        row.number,
        row.started_at,
        row.rang_at,
        row.answered_at,
        row.ended_at,
        None if row.outcome is None else Outcome(row.outcome),
        row.sip_code,
        row.q850,
        row.ended_by,
        row.caller_id,
        row.digits or "",
        row.far_loss,
        row.far_jitter_ms,
        row.machine,
        row.reports or (),
    )
