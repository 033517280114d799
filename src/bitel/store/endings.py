"""How attempts and calls end, as rows: the one place where a call becomes final, or due again.

What ends a call also gives back what it had reserved, and leaves an event for its project's
webhook; each exactly once, since a call that is final does not end again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import Connection, Row, and_, bindparam, delete, insert, select, update

from bitel.calls.call import CallStatus
from bitel.calls.ids import new_ids
from bitel.calls.outcome import Outcome
from bitel.store import reserving
from bitel.store.chunks import in_chunks
from bitel.store.schema import (
    PENDING,
    SETTLED,
    attempt,
    call,
    cancel_request,
    is_waiting,
    project,
    webhook_event,
)

_HIGHEST_Q850: Final = 127
_SIP_CODES: Final = range(100, 700)
_WORTH_A_STATEMENT: Final = 10


@dataclass(frozen=True, slots=True)
class AttemptEnd:
    """An attempt that is over. `sip_code` and `q850` outside their ranges are not kept."""

    attempt_id: str
    outcome: Outcome
    started_at: float
    ended_at: float
    answered_at: float | None
    sip_code: int | None = None
    q850: int | None = None
    ended_by: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class CallEnd:
    """A call that is over."""

    call_id: str
    status: CallStatus
    executed_at: float = 0.0
    bill_seconds: int = 0
    price: Decimal = Decimal(0)
    reason: str = ""


@dataclass(frozen=True, slots=True)
class CallAgain:
    """A call that waits for another attempt. `trouble` None leaves its count as it was."""

    call_id: str
    due_at: float
    spends_retry: bool
    trouble: int | None


def end_attempts(conn: Connection, ends: Sequence[AttemptEnd]) -> None:
    """Settle attempts."""
    rows = [
        {
            "the_attempt": end.attempt_id,
            "outcome": end.outcome.value,
            "started_at": end.started_at,
            "ended_at": end.ended_at,
            "answered_at": end.answered_at,
            # What a far end sends must not be what breaks the transaction of others.
            "sip_code": end.sip_code if end.sip_code in _SIP_CODES else None,
            "q850": end.q850 if end.q850 in range(_HIGHEST_Q850 + 1) else None,
            "ended_by": end.ended_by,
            "detail": end.detail,
        }
        for end in ends
    ]
    if rows:
        conn.execute(_END_ATTEMPT, rows)
        for ids in in_chunks([end.attempt_id for end in ends]):
            conn.execute(_FORGET_REQUESTS, ids)


def end_calls(conn: Connection, ends: Sequence[CallEnd], now: float) -> None:
    """Give calls their final status, those that have none yet."""
    by_call = {end.call_id: end for end in ends}
    waiting = [row for ids in in_chunks(list(by_call)) for row in conn.execute(_TO_END, ids)]
    if not waiting:
        return
    _write_ends(conn, [by_call[row.id] for row in waiting], now)
    released: dict[str, Decimal] = {}
    for row in waiting:
        released[row.project_id] = released.get(row.project_id, Decimal(0)) - row.reserved
    reserving.reserve(conn, released)
    _write_events(conn, [row for row in waiting if row.is_told], now)


def call_again(conn: Connection, again: Sequence[CallAgain]) -> None:
    """Make calls due for another attempt."""
    same = [one for one in again if one.trouble is None]
    counted = [one for one in again if one.trouble is not None]
    if same:
        conn.execute(_DUE_AGAIN, [_again_row(one) for one in same])
    if counted:
        rows = [{**_again_row(one), "trouble": one.trouble} for one in counted]
        conn.execute(_DUE_AGAIN_COUNTED, rows)


def _write_ends(conn: Connection, ends: Sequence[CallEnd], now: float) -> None:
    """Those that end alike, as many do that expire or are canceled, in one statement."""
    alike: dict[CallEnd, list[str]] = {}
    for end in ends:
        alike.setdefault(replace(end, call_id=""), []).append(end.call_id)
    for end, call_ids in alike.items():
        if len(call_ids) >= _WORTH_A_STATEMENT:
            for ids in in_chunks(call_ids):
                conn.execute(_END_CALLS, {**ids, **_end_values(end, now)})
    rows = [
        {"the_call": call_id, **_end_values(end, now)}
        for end, call_ids in alike.items()
        if len(call_ids) < _WORTH_A_STATEMENT
        for call_id in call_ids
    ]
    if rows:
        conn.execute(_END_CALL, rows)


def _end_values(end: CallEnd, now: float) -> dict[str, Any]:
    return {
        "status": int(end.status),
        "executed_at": end.executed_at,
        "bill_seconds": end.bill_seconds,
        "price": end.price,
        "reason": end.reason,
        "finished_at": now,
    }


def _write_events(conn: Connection, told: Sequence[Row[*tuple[Any, ...]]], now: float) -> None:
    events = [
        {"id": event_id, "project_id": row.project_id, "call_id": row.id,
         "created_at": now, "due_at": now, "tries": 0, "state": PENDING}
        for event_id, row in zip(new_ids(now, len(told)), told, strict=True)
    ]  # fmt: skip
    if events:
        conn.execute(insert(webhook_event), events)


def _again_row(one: CallAgain) -> dict[str, Any]:
    return {"the_call": one.call_id, "due": one.due_at, "spent": int(one.spends_retry)}


_END_ATTEMPT = (
    update(attempt)
    .where(attempt.c.id == bindparam("the_attempt"))
    .values(
        claim=SETTLED,
        outcome=bindparam("outcome"),
        started_at=bindparam("started_at"),
        ended_at=bindparam("ended_at"),
        answered_at=bindparam("answered_at"),
        sip_code=bindparam("sip_code"),
        q850=bindparam("q850"),
        ended_by=bindparam("ended_by"),
        detail=bindparam("detail"),
    )
)
_FORGET_REQUESTS = delete(cancel_request).where(
    cancel_request.c.attempt_id.in_(bindparam("ids", expanding=True))
)
_TO_END = (
    select(
        call.c.id,
        call.c.project_id,
        call.c.reserved,
        and_(project.c.webhook_url.is_not(None), project.c.webhook_off_reason.is_(None)).label(
            "is_told"
        ),
    )
    .join(project)
    .where(call.c.id.in_(bindparam("ids", expanding=True)), is_waiting)
    .order_by(call.c.id)
    .with_for_update(key_share=True, of=call)
)
_END = update(call).values(
    due_at=None,
    status=bindparam("status"),
    executed_at=bindparam("executed_at"),
    bill_seconds=bindparam("bill_seconds"),
    price=bindparam("price"),
    reason=bindparam("reason"),
    finished_at=bindparam("finished_at"),
    reserved=Decimal(0),
)
_END_CALL = _END.where(call.c.id == bindparam("the_call"))
_END_CALLS = _END.where(call.c.id.in_(bindparam("ids", expanding=True)))
_DUE_AGAIN = (
    update(call)
    .where(call.c.id == bindparam("the_call"))
    .values(due_at=bindparam("due"), retries_left=call.c.retries_left - bindparam("spent"))
)
_DUE_AGAIN_COUNTED = _DUE_AGAIN.values(trouble=bindparam("trouble"))
