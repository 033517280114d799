"""Calls as clients see and cancel them, their attempts, and their call detail records (CDR).

A call that waits is canceled at once. For one that rings or plays, a row in `cancel_request` asks
its dialer to end the attempt. Settling the attempt then makes the call final; one that was answered
by then ends like any answered call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from sqlalchemy import Connection, Row, bindparam, select, text

from bitel.domain.attempts import Media, Outcome
from bitel.domain.calls import Call, CallStatus
from bitel.errors import NotFoundError
from bitel.store.endings import CallEnd, end_calls
from bitel.store.schema import attempt, call, ledger_entry
from bitel.store.sql_batch import Statement, in_chunks, matches, values_parameter


@dataclass(frozen=True, slots=True)
class AttemptRow:
    """One attempt of a call. Times are Unix seconds, None when it has not happened."""

    id: str
    number: int
    """1 is the first."""
    dialer_id: str
    claim: str
    """Its progress: CLAIMED, ANSWERED or FINISHED."""
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


@dataclass(frozen=True, slots=True)
class Cdr:
    """A call, and the id of the ledger entry that billed it; None where there is none."""

    call: Call
    transaction_id: str | None


# In the order of the fields of `Call`.
CALL_COLUMNS: Final = tuple(
    call.c[
        "id", "project_id", "campaign_id", "phone_number", "status", "bill_seconds",
        "requested_at", "executed_at", "price", "reason", "finished_at",
    ]
)  # fmt: skip
_STATUS: Final = CALL_COLUMNS.index(call.c.status)
_is_call = matches(call.c.id, call.c.project_id)
_FIND: Final = select(*CALL_COLUMNS).where(*_is_call)
_asked = values_parameter("asked", call.c.id, call.c.project_id)
_FIND_EACH: Final = Statement(
    select(*CALL_COLUMNS).select_from(
        _asked.join(call, (call.c.id == _asked.c.id) & (call.c.project_id == _asked.c.project_id))
    )
)


def from_row(row: Sequence[Any]) -> Call:
    """The call of a row with the columns `CALL_COLUMNS`."""
    # By position, which is three times as fast as by name.
    values = list(row)
    values[_STATUS] = CallStatus(values[_STATUS])
    return Call(*values)


def find(conn: Connection, project_id: str, call_id: str) -> Call | None:
    """The project's call of that id, if there is one."""
    row = conn.execute(_FIND, {"id": call_id, "project_id": project_id}).one_or_none()
    return from_row(row) if row else None


def find_each(conn: Connection, asked: Sequence[tuple[str, str]]) -> list[Call | None]:
    """As `find`, for many pairs of a project and a call id."""
    wanted = [(call_id, project_id) for project_id, call_id in set(asked)]
    found = {
        (row.project_id, row.id): from_row(row) for row in _FIND_EACH.rows(conn, {"asked": wanted})
    }
    return [found.get(pair) for pair in asked]


_ATTEMPTS: Final = select(attempt).where(*matches(attempt.c.call_id)).order_by(attempt.c.number)


def attempts(conn: Connection, call_id: str) -> list[AttemptRow]:
    """The attempts of a call, the first one first."""
    return [_attempt(row) for row in conn.execute(_ATTEMPTS, {"call_id": call_id})]


def _attempt(row: Row[*tuple[Any, ...]]) -> AttemptRow:
    media = None
    if row.packets_received is not None:
        media = Media(row.packets_sent, row.packets_received, row.digits or "", row.far_loss,
                      row.far_jitter_ms)  # fmt: skip
    return AttemptRow(
        row.id,
        row.number,
        row.dialer_id,
        row.claim,
        row.started_at,
        row.answered_at,
        row.ended_at,
        outcome=None if row.outcome is None else Outcome(row.outcome),
        sip_code=row.sip_code,
        q850=row.q850,
        ended_by=row.ended_by,
        detail=row.detail,
        media=media,
        rang_at=row.rang_at,
    )


# By way of the attempts: the ledger has no index by call.
_BILLED: Final = (
    select(attempt.c.call_id, ledger_entry.c.id)
    .join_from(attempt, ledger_entry, ledger_entry.c.attempt_id == attempt.c.id)
    .where(attempt.c.call_id.in_(bindparam("ids", expanding=True)))
)


def cdrs(conn: Connection, calls: Sequence[Call]) -> list[Cdr]:
    """The detail records of these calls."""
    billed = {
        row.call_id: row.id
        for ids in in_chunks([one.id for one in calls])
        for row in conn.execute(_BILLED, ids)
    }
    return [Cdr(one, billed.get(one.id)) for one in calls]


def find_cdr(conn: Connection, project_id: str, call_id: str) -> Cdr | None:
    """The detail record of the project's call of that id, if there is one."""
    found = find(conn, project_id, call_id)
    return cdrs(conn, [found])[0] if found else None


class LockedCall(Protocol):
    """A locked row of a call that is not final."""

    id: str
    due_at: float | None
    """None: an attempt is under way."""


_LOCK: Final = (
    select(call.c.id, call.c.status, call.c.due_at).where(*_is_call).with_for_update(key_share=True)
)
_REQUEST_CANCEL: Final = text(
    """
    INSERT INTO cancel_request (attempt_id, dialer_id)
    SELECT id, dialer_id FROM attempt WHERE call_id = :call_id AND ended_at IS NULL
    ON CONFLICT (attempt_id) DO NOTHING
    """
)


def cancel(conn: Connection, project_id: str, call_id: str, now: float) -> Call:
    """Cancel a call, and return it.

    One that waits is final at once. One that rings or plays is final when its dialer has ended it,
    and one that is final stays as it is. Raises NotFoundError.
    """
    row = conn.execute(_LOCK, {"id": call_id, "project_id": project_id}).one_or_none()
    if row is not None and row.status == CallStatus.WAITING:
        cancel_calls(conn, [row], now)
    found = find(conn, project_id, call_id)
    if found is None:
        raise NotFoundError("this project has no call of that id")
    return found


def cancel_calls(conn: Connection, calls: Sequence[LockedCall], now: float) -> None:
    """Cancel calls that are not final."""
    ends = [CallEnd(row.id, CallStatus.CANCELED) for row in calls if row.due_at is not None]
    end_calls(conn, ends, now)
    if dialled := [{"call_id": row.id} for row in calls if row.due_at is None]:
        conn.execute(_REQUEST_CANCEL, dialled)
