"""Calls as clients see and cancel them, and their attempts.

A call that waits is canceled at once. One that rings or plays is its dialer's: a row in
`cancel_request` asks the dispatcher to end the attempt. Settling it then makes the call final,
whatever the attempt met; one that was answered by then ends as any answered call does.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, Row, String, bindparam, select, text

from bitel.domain.attempts import Media, Outcome
from bitel.domain.calls import Call, CallStatus
from bitel.errors import NotFoundError
from bitel.store.endings import CallEnd, end_calls
from bitel.store.schema import attempt, call, cancel_request
from bitel.store.sql_batch import Statement, in_chunks, values_parameter


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
    """Cancel a call; it as it then stands.

    One that waits is final at once. One that rings or plays is final soon, when its dialer has
    ended it, and one that is final stays as it is. Raises NotFoundError.
    """
    row = conn.execute(_LOCK, {"id": call_id, "project_id": project_id}).one_or_none()
    if row is not None and row.status == CallStatus.WAITING:
        cancel_calls(conn, [row], now)
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


def cancel_calls(conn: Connection, calls: Sequence[Row[*tuple[Any, ...]]], now: float) -> None:
    """Cancel waiting calls, given as locked rows with `id` and `due_at`."""
    ends = [CallEnd(row.id, CallStatus.CANCELED) for row in calls if row.due_at is not None]
    end_calls(conn, ends, now)
    if dialled := [{"call_id": row.id} for row in calls if row.due_at is None]:
        conn.execute(_ASK, dialled)


def cancel_requested(conn: Connection, attempts: Collection[str]) -> set[str]:
    """Those of the attempts that are to be canceled."""
    return {found for ids in in_chunks(attempts) for found in conn.execute(_ASKED, ids).scalars()}


_ASK = text(
    """
    INSERT INTO cancel_request (attempt_id, dialer_id)
    SELECT id, dialer_id FROM attempt WHERE call_id = :call_id AND ended_at IS NULL
    ON CONFLICT (attempt_id) DO NOTHING
    """
)
_ASKED = select(cancel_request.c.attempt_id).where(
    cancel_request.c.attempt_id.in_(bindparam("ids", expanding=True))
)
