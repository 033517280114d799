"""How attempts and calls end, as rows: the one place where a call becomes final, or due again.

What ends a call also gives back what it had reserved, and leaves an event for its project's
webhook; each exactly once, since a call that is final does not end again.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from decimal import Decimal
from typing import Any, Final, NamedTuple

from sqlalchemy import (
    BindParameter,
    Connection,
    Integer,
    and_,
    bindparam,
    delete,
    exists,
    func,
    insert,
    literal,
    select,
    update,
)

from bitel.domain.attempts import AttemptResult, Media
from bitel.domain.calls import CallStatus
from bitel.domain.ids import new_ids
from bitel.domain.retry import Requeue, RetryAt
from bitel.store import balances
from bitel.store.database import count_calls
from bitel.store.schema import (
    FINISHED,
    PENDING,
    attempt,
    call,
    cancel_request,
    is_waiting,
    project,
    webhook_event,
)
from bitel.store.sql_batch import Statement, values_parameter

_NOTHING: Final = Decimal(0)
_Q850_CAUSES: Final = range(128)
_SIP_CODES: Final = range(100, 700)
_COUNTS: Final = range(2**31)


class CallEnd(NamedTuple):
    """A call that is over."""

    call_id: str
    status: CallStatus
    executed_at: float = 0.0
    bill_seconds: int = 0
    price: Decimal = Decimal(0)
    reason: str = ""


def end_attempts(conn: Connection, ends: Iterable[tuple[str, AttemptResult]]) -> None:
    """Settle attempts, given by their ids. What a far end sent out of range is not kept."""
    rows = [
        (
            attempt_id,
            end.outcome.value,
            end.started_at,
            end.ended_at,
            end.answered_at,
            # What a far end sends must not be what breaks the transaction of others.
            _within(_SIP_CODES, end.sip_code),
            _within(_Q850_CAUSES, end.q850),
            end.ended_by,
            end.detail,
            *_media_values(end.media),
            end.rang_at,
        )
        for attempt_id, end in ends
    ]
    if rows:
        _END_ATTEMPTS.run(conn, {"ended": rows})


def forget_requests(conn: Connection, attempts: Collection[str]) -> None:
    """Forget that these attempts, which are over, were to be called off."""
    if attempts:
        _FORGET_REQUESTS.run(conn, {"over": [(attempt_id,) for attempt_id in attempts]})


def _within(allowed: range, code: int | None) -> int | None:
    # None is asked for first: looking for what is no number, a range is walked through.
    return code if code is not None and code in allowed else None


def _media_values(media: Media | None) -> tuple[Any, ...]:
    if media is None:
        return (None,) * 5
    return (
        _within(_COUNTS, media.sent),
        _within(_COUNTS, media.received),
        media.digits,
        _number(media.loss),
        _number(media.jitter_ms),
    )


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def end_calls(conn: Connection, ends: Sequence[CallEnd], now: float) -> None:
    """Give calls their final status, those that have none yet."""
    by_call = {end.call_id: end for end in ends}
    if by_call:
        waiting = _TO_END.rows(conn, {"ids": [(call_id,) for call_id in by_call]})
        end_waiting(conn, [(row, by_call[row.id]) for row in waiting], now)


def end_waiting(conn: Connection, ends: Sequence[tuple[Any, CallEnd]], now: float) -> None:
    """End calls that are locked, each once, and known to have no final status.

    With each comes a row with the `project_id` of the call, what it has `reserved`, and whether
    its project `has_webhook` of its end.
    """
    if not ends:
        return
    _END_CALLS.run(conn, {"ended": [_end_values(end) for _, end in ends], "now": now})
    for status, calls in Counter(end.status for _, end in ends).items():
        count_calls("ended", status.name, calls)
    released: dict[str, Decimal] = {}
    for row, _ in ends:
        if row.reserved:
            released[row.project_id] = released.get(row.project_id, _NOTHING) - row.reserved
    balances.reserve(conn, released)
    _write_events(
        conn, [(row.project_id, end.call_id) for row, end in ends if row.has_webhook], now
    )


def requeue_calls(conn: Connection, again: Iterable[tuple[str, RetryAt | Requeue]]) -> None:
    """Make calls, given by their ids, due for another attempt."""
    same: list[tuple[str, float]] = []
    counted: list[tuple[str, float, int, int, int]] = []
    for call_id, decision in again:
        if isinstance(decision, Requeue):
            same.append((call_id, decision.due_at))
        else:
            counted.append(
                (call_id, decision.due_at, int(decision.spends_retry), decision.trouble,
                 decision.uncertain)
            )  # fmt: skip
    if same:
        _DUE_AGAIN.run(conn, {"again": same})
    if counted:
        _DUE_AGAIN_COUNTED.run(conn, {"again": counted})


def _end_values(end: CallEnd) -> tuple[Any, ...]:
    return (
        end.call_id,
        int(end.status),
        end.executed_at,
        end.bill_seconds,
        end.price,
        end.reason,
    )


def _write_events(conn: Connection, told: Sequence[tuple[str, str]], now: float) -> None:
    """Events of these calls, given with their projects."""
    if told:
        ids = new_ids(now, len(told))
        events = [(event_id, *one) for event_id, one in zip(ids, told, strict=True)]
        _TELL.run(conn, {"events": events, "now": now})


has_webhook = and_(project.c.webhook_url.is_not(None), project.c.webhook_off_reason.is_(None))
"""The project wants to hear of calls that end."""

_attempts = values_parameter(
    "ended",
    **{
        name: attempt.c[name].type
        for name in ("id", "outcome", "started_at", "ended_at", "answered_at", "sip_code", "q850",
                     "ended_by", "detail", "packets_sent", "packets_received", "digits",
                     "far_loss", "far_jitter_ms", "rang_at")
    },
)  # fmt: skip
_END_ATTEMPTS: Final = Statement(
    update(attempt)
    .where(attempt.c.id == _attempts.c.id)
    .values(
        {
            "claim": FINISHED,
            **{each.name: each for each in _attempts.c if each.name != "id"},
            # What was written while it rang stays, also where a take-over ends the attempt.
            "rang_at": func.coalesce(attempt.c.rang_at, _attempts.c.rang_at),
        }
    )
)
_FORGET_REQUESTS: Final = Statement(
    delete(cancel_request).where(
        cancel_request.c.attempt_id.in_(select(values_parameter("over", id=attempt.c.id.type).c.id))
    )
)
_TO_END: Final = Statement(
    select(call.c.id, call.c.project_id, call.c.reserved, has_webhook.label("has_webhook"))
    .join(project)
    .where(call.c.id.in_(select(values_parameter("ids", id=call.c.id.type).c.id)), is_waiting)
    .order_by(call.c.id)
    .with_for_update(key_share=True, of=call)
)
_calls = values_parameter(
    "ended",
    **{
        name: call.c[name].type
        for name in ("id", "status", "executed_at", "bill_seconds", "price", "reason")
    },
)
_END_CALLS: Final = Statement(
    update(call)
    .where(call.c.id == _calls.c.id)
    .values(
        {
            "due_at": None,
            "finished_at": bindparam("now"),
            "reserved": _NOTHING,
            **{each.name: each for each in _calls.c if each.name != "id"},
        }
    )
)
_events = values_parameter(
    "events", id=call.c.id.type, project_id=project.c.id.type, call_id=call.c.id.type
)
_now: BindParameter[float] = bindparam("now", type_=webhook_event.c.created_at.type)
_TELL: Final = Statement(
    insert(webhook_event).from_select(
        ["id", "project_id", "call_id", "created_at", "due_at", "tries", "state"],
        # A call has one event. Were there one already, to insert another would keep it from ending.
        select(*_events.c, _now, _now, literal(0), literal(PENDING)).where(
            ~exists().where(webhook_event.c.call_id == _events.c.call_id)
        ),
    )
)


_same = values_parameter("again", id=call.c.id.type, due_at=call.c.due_at.type)
_DUE_AGAIN: Final = Statement(
    update(call).where(call.c.id == _same.c.id).values(due_at=_same.c.due_at)
)
_again = values_parameter(
    "again",
    id=call.c.id.type,
    due_at=call.c.due_at.type,
    spent=Integer(),
    trouble=call.c.trouble.type,
    uncertain=call.c.uncertain.type,
)
_DUE_AGAIN_COUNTED: Final = Statement(
    update(call)
    .where(call.c.id == _again.c.id)
    .values(
        due_at=_again.c.due_at,
        retries_left=call.c.retries_left - _again.c.spent,
        trouble=_again.c.trouble,
        uncertain=_again.c.uncertain,
    )
)
