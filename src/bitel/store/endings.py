"""How attempts and calls end, as rows: the one place where a call becomes final, or due again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from sqlalchemy import Connection, bindparam, update

from bitel.calls.call import CallStatus
from bitel.calls.outcome import Outcome
from bitel.store.schema import SETTLED, attempt, call

_HIGHEST_Q850: Final = 127
_SIP_CODES: Final = range(100, 700)


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


def end_calls(conn: Connection, ends: Sequence[CallEnd]) -> None:
    """Give calls their final status."""
    rows = [
        {
            "the_call": end.call_id,
            "status": int(end.status),
            "executed_at": end.executed_at,
            "bill_seconds": end.bill_seconds,
            "price": end.price,
            "reason": end.reason,
        }
        for end in ends
    ]
    if rows:
        conn.execute(_END_CALL, rows)


def call_again(conn: Connection, again: Sequence[CallAgain]) -> None:
    """Make calls due for another attempt."""
    same = [one for one in again if one.trouble is None]
    counted = [one for one in again if one.trouble is not None]
    if same:
        conn.execute(_DUE_AGAIN, [_again_row(one) for one in same])
    if counted:
        rows = [{**_again_row(one), "trouble": one.trouble} for one in counted]
        conn.execute(_DUE_AGAIN_COUNTED, rows)


def _again_row(one: CallAgain) -> dict[str, object]:
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
_END_CALL = (
    update(call)
    .where(call.c.id == bindparam("the_call"))
    .values(
        due_at=None,
        status=bindparam("status"),
        executed_at=bindparam("executed_at"),
        bill_seconds=bindparam("bill_seconds"),
        price=bindparam("price"),
        reason=bindparam("reason"),
    )
)
_DUE_AGAIN = (
    update(call)
    .where(call.c.id == bindparam("the_call"))
    .values(due_at=bindparam("due"), retries_left=call.c.retries_left - bindparam("spent"))
)
_DUE_AGAIN_COUNTED = _DUE_AGAIN.values(trouble=bindparam("trouble"))
