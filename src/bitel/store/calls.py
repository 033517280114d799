"""Calls as clients place, see and cancel them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Row, String, bindparam, func, select

from bitel.domain.attempts import Media, Outcome
from bitel.domain.calls import Call, CallStatus
from bitel.errors import NotFoundError
from bitel.store import canceling
from bitel.store.placing import place, place_each, place_many, prepare
from bitel.store.schema import attempt, call
from bitel.store.sql_batch import Statement, values_parameter

__all__ = ["AttemptRow", "attempts", "cancel", "counts_by_status", "find", "place",
           "place_each", "place_many", "prepare"]  # fmt: skip


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One attempt of a call. Times are Unix seconds, None when it has not happened."""

    id: str
    number: int
    """1 is the first."""
    dialer_id: str
    claim: str
    """How far it is: held, heard or settled."""
    started_at: float
    answered_at: float | None
    ended_at: float | None
    outcome: Outcome | None
    sip_code: int | None
    q850: int | None
    ended_by: str
    detail: str
    media: Media | None
    rang_at: float | None = None
    """When the first 18x came."""


def find(conn: Connection, project_id: str, call_id: str) -> Call | None:
    """The project's call of that id, if there is one."""
    row = conn.execute(_FIND, {"id": call_id, "project_id": project_id}).one_or_none()
    return from_row(row) if row else None


def find_each(conn: Connection, asked: Sequence[tuple[str, str]]) -> list[Call | None]:
    """As `find`, for many at a time: each is asked for by its project and its id."""
    wanted = [(call_id, project_id) for project_id, call_id in set(asked)]
    found = {row.id: from_row(row) for row in _FIND_EACH.rows(conn, {"asked": wanted})}
    # Ids are unique, so what was found for one project is nobody else's.
    calls = [(found.get(call_id), project_id) for project_id, call_id in asked]
    return [one if one and one.project_id == project_id else None for one, project_id in calls]


def attempts(conn: Connection, call_id: str) -> list[AttemptRow]:
    """The attempts of a call, the first one first."""
    rows = conn.execute(_ATTEMPTS, {"call_id": call_id})
    return [_attempt(row) for row in rows]


def cancel(conn: Connection, project_id: str, call_id: str, now: float) -> Call:
    """Call off a call; it as it then stands.

    One that waits is final at once. One that rings or plays is final soon, when its dialer has
    ended it, and one that is final stays as it is. Raises NotFoundError.
    """
    row = conn.execute(_LOCK, {"id": call_id, "project_id": project_id}).one_or_none()
    if row is not None and row.status == CallStatus.WAITING:
        canceling.call_off(conn, [row], now)
    found = find(conn, project_id, call_id)
    if found is None:
        raise NotFoundError("this project has no call of that id")
    return found


def from_row(row: Any) -> Call:
    """The call that a row with the columns `SEEN` tells of."""
    # By place: names would take three times as long, and this is done for every call shown.
    values = list(row)
    values[_STATUS] = CallStatus(values[_STATUS])
    return Call(*values)


def counts_by_status(conn: Connection) -> dict[CallStatus, int]:
    """How many calls there are in each status that has any. Reads the whole table."""
    rows = conn.execute(select(call.c.status, func.count()).group_by(call.c.status))
    return {CallStatus(status): count for status, count in rows}


# In the order of the fields of `Call`.
SEEN = (
    call.c.id,
    call.c.project_id,
    call.c.campaign_id,
    call.c.phone_number,
    call.c.status,
    call.c.bill_seconds,
    call.c.requested_at,
    call.c.executed_at,
    call.c.price,
    call.c.reason,
    call.c.finished_at,
)
_STATUS: Final = SEEN.index(call.c.status)
_FIND = select(*SEEN).where(
    call.c.id == bindparam("id"), call.c.project_id == bindparam("project_id")
)
_asked = values_parameter("asked", id=String(), project_id=String())
_FIND_EACH = Statement(
    select(*SEEN).select_from(
        _asked.join(call, (call.c.id == _asked.c.id) & (call.c.project_id == _asked.c.project_id))
    )
)
_LOCK = (
    select(call.c.id, call.c.status, call.c.due_at)
    .where(call.c.id == bindparam("id"), call.c.project_id == bindparam("project_id"))
    .with_for_update(key_share=True)
)
_ATTEMPTS = (
    select(attempt).where(attempt.c.call_id == bindparam("call_id")).order_by(attempt.c.number)
)


def _attempt(row: Row[*tuple[Any, ...]]) -> AttemptRow:
    return AttemptRow(
        id=row.id,
        number=row.number,
        dialer_id=row.dialer_id,
        claim=row.claim,
        started_at=row.started_at,
        answered_at=row.answered_at,
        ended_at=row.ended_at,
        outcome=None if row.outcome is None else Outcome(row.outcome),
        sip_code=row.sip_code,
        q850=row.q850,
        ended_by=row.ended_by,
        detail=row.detail,
        media=_media(row),
        rang_at=row.rang_at,
    )


def _media(row: Row[*tuple[Any, ...]]) -> Media | None:
    if row.packets_received is None:
        return None
    return Media(
        sent=row.packets_sent,
        received=row.packets_received or 0,
        digits=row.digits or "",
        loss=row.far_loss,
        jitter_ms=row.far_jitter_ms,
    )
