"""Calls as clients place and see them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, func, insert, select

from bitel.calls.call import Call, CallStatus, NewCall
from bitel.calls.outcome import Outcome
from bitel.store.schema import attempt, call

_CHUNK: Final = 1000
"""Identifiers in one IN list."""


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One attempt of a call. Times are Unix seconds, None when it has not happened."""

    id: str
    number: int
    """1 is the first."""
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


def place(conn: Connection, calls: Sequence[NewCall]) -> None:
    """Queue calls; each is due at once. Their recordings and projects must exist."""
    if calls:
        conn.execute(_PLACE, [_row(new) for new in calls])


def find(conn: Connection, project_id: str, call_id: str) -> Call | None:
    """The project's call of that id, if there is one."""
    row = conn.execute(_FIND, {"id": call_id, "project_id": project_id}).one_or_none()
    return _call(row) if row else None


def find_many(conn: Connection, project_id: str, ids: Sequence[str]) -> list[Call]:
    """Those of the project's calls, in the order of `ids`; unknown ones are left out."""
    found: dict[str, Call] = {}
    for chunk in _chunks(ids):
        for row in conn.execute(_FIND_MANY, {"ids": chunk, "project_id": project_id}):
            found[row.id] = _call(row)
    return [found[call_id] for call_id in ids if call_id in found]


def attempts(conn: Connection, call_id: str) -> list[AttemptRow]:
    """The attempts of a call, the first one first."""
    rows = conn.execute(_ATTEMPTS, {"call_id": call_id})
    return [_attempt(row) for row in rows]


def counts_by_status(conn: Connection) -> dict[CallStatus, int]:
    """How many calls there are in each status that has any. Reads the whole table."""
    rows = conn.execute(select(call.c.status, func.count()).group_by(call.c.status))
    return {CallStatus(status): count for status, count in rows}


_PLACE = insert(call)

_SEEN = (
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
)
_FIND = select(*_SEEN).where(
    call.c.id == bindparam("id"), call.c.project_id == bindparam("project_id")
)
_FIND_MANY = select(*_SEEN).where(
    call.c.id.in_(bindparam("ids", expanding=True)), call.c.project_id == bindparam("project_id")
)
_ATTEMPTS = (
    select(attempt).where(attempt.c.call_id == bindparam("call_id")).order_by(attempt.c.number)
)


def _row(new: NewCall) -> dict[str, Any]:
    return {
        "id": new.id,
        "project_id": new.project_id,
        "campaign_id": new.campaign_id,
        "dialer_id": new.dialer_id,
        "phone_number": new.phone_number,
        "e164": new.e164,
        "recording_id": new.recording_id,
        "lane": int(new.lane),
        "status": int(CallStatus.WAITING),
        "retry_count": new.retry_count,
        "retries_left": new.retry_count,
        "retry_interval": new.retry_interval,
        "requested_at": new.requested_at,
        "expires_at": new.expires_at,
        "due_at": new.requested_at,
        "trouble": 0,
        "attempts": 0,
        "executed_at": 0.0,
        "bill_seconds": 0,
        "price": Decimal(0),
        "reason": "",
    }


def _call(row: Row[*tuple[Any, ...]]) -> Call:
    return Call(**{**row._mapping, "status": CallStatus(row.status)})


def _attempt(row: Row[*tuple[Any, ...]]) -> AttemptRow:
    return AttemptRow(
        id=row.id,
        number=row.number,
        claim=row.claim,
        started_at=row.started_at,
        answered_at=row.answered_at,
        ended_at=row.ended_at,
        outcome=None if row.outcome is None else Outcome(row.outcome),
        sip_code=row.sip_code,
        q850=row.q850,
        ended_by=row.ended_by,
        detail=row.detail,
    )


def _chunks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), _CHUNK):
        yield ids[start : start + _CHUNK]
