"""What a finished attempt leaves behind: its outcome, its call's fate, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, exists, insert, literal, select

from bitel.domain.attempts import AttemptResult, Outcome
from bitel.domain.calls import CallStatus, Lane
from bitel.domain.ids import new_ids
from bitel.domain.pricing import MOST_MONEY, NOTHING, Bill
from bitel.domain.retry import Finish, Requeue, RetryAt, RetryDecision
from bitel.store import balances, do_not_call, leases, one_time_passwords
from bitel.store.endings import (
    CallEnd,
    end_attempts,
    end_waiting,
    forget_requests,
    has_webhook,
    requeue_calls,
)
from bitel.store.leases import Lease
from bitel.store.schema import (
    ANSWERED,
    FINISHED,
    attempt,
    call,
    cancel_request,
    dialer,
    is_waiting,
    ledger_entry,
    project,
)
from bitel.store.sql_batch import Statement, values_parameter

UNWANTED = 607
"""The SIP code by which the person called says that the call is unwanted (RFC 8197)."""


class Settlement(NamedTuple):
    """A finished attempt, and what follows from it."""

    attempt_id: str
    call_id: str
    result: AttemptResult
    decision: RetryDecision
    bill: Bill = NOTHING


class Unstorable(ValueError):
    """A settlement with a time or an amount that no database can hold."""


_MOST_INTEGER = 2**31 - 1


def settle(
    conn: Connection, lease: Lease, settlements: Sequence[Settlement], now: float
) -> set[str]:
    """Write what became of attempts; returns those for which it was written.

    It is not for attempts that are settled already, or that another worker has taken over. An
    attempt with the outcome ANSWERED is billed by one ledger entry, with no more than its call had
    reserved, if it had. Whatever its verdict, an attempt that was heard never makes its call due
    again: the call then ends as UNKNOWN. Nor does one that was to be called off, or a one-time
    password that a newer one supersedes: its call ends as CANCELED. A number that
    rejected the call as unwanted (607) goes on the do-not-call list if its project is set so.
    Raises Unstorable for times and amounts out of range, and writes nothing then.
    """
    if not settlements or not leases.holds(conn, lease):
        return set()
    mine = {"dialer_id": lease.dialer_id, "epoch": lease.epoch}
    return _settle(conn, _MINE, mine, settlements, now)


def settle_journaled(
    conn: Connection, dialer_id: str, settlements: Sequence[Settlement], now: float
) -> set[str]:
    """As `settle`, for attempts of earlier workers of the dialer which are still open.

    To be called before `recovery.take_over`, which decides what remains open.
    """
    if not settlements:
        return set()
    # Each `settle` shares this lock until its commit, so that we see what it has written.
    conn.execute(select(dialer.c.epoch).where(dialer.c.id == dialer_id).with_for_update())
    return _settle(conn, _LEFT_OPEN, {"dialer_id": dialer_id}, settlements, now)


def minimal(attempt_id: str, call_id: str, result: AttemptResult, now: float) -> Settlement:
    """The settlement of an attempt whose end could not be written as it was.

    Nothing is billed and no free text is kept. Its call ends as UNKNOWN if it was answered, else as
    ERROR.
    """
    answered_at = result.answered_at
    is_answered = answered_at is not None or result.outcome in _MAY_HAVE_HEARD
    done = AttemptResult(
        Outcome.INTERRUPTED if is_answered else result.outcome,
        result.started_at if _is_number(result.started_at) else now,
        now,
        answered_at if answered_at is not None and _is_number(answered_at) else None,
    )
    decision = (
        Finish(CallStatus.UNKNOWN)
        if is_answered
        else Finish(CallStatus.ERROR, "the end of its last attempt could not be stored")
    )
    return Settlement(attempt_id, call_id, done, decision)


_MAY_HAVE_HEARD = (Outcome.ANSWERED, Outcome.INTERRUPTED)


def _settle(
    conn: Connection,
    query: Statement,
    whose: dict[str, Any],
    settlements: Iterable[Settlement],
    now: float,
) -> set[str]:
    offered = {one.attempt_id: one for one in settlements}
    for one in offered.values():
        _check_storable(one)
    rows = [
        row
        for row in query.rows(conn, {"ids": [(key,) for key in offered], **whose})
        if row.call_id == offered[row.id].call_id
    ]
    otp = [
        (row.project_id, row.e164, row.call_id)
        for row in rows
        if row.lane == Lane.OTP and not isinstance(offered[row.id].decision, Finish)
    ]
    superseded = one_time_passwords.superseded(conn, otp) if otp else set()
    accepted = [(row, _checked(offered[row.id], row, superseded)) for row in rows]
    end_attempts(conn, [_attempt_end(one) for _, one in accepted])
    forget_requests(conn, [row.id for row, _ in accepted if row.canceled])
    ends = [
        (row, _call_end(one, one.decision))
        for row, one in accepted
        if isinstance(one.decision, Finish) and row.waits
    ]
    end_waiting(conn, ends, now)
    requeue_calls(
        conn,
        [
            (one.call_id, one.decision)
            for _, one in accepted
            if not isinstance(one.decision, Finish)
        ],
    )
    _charge(conn, [(row.project_id, one) for row, one in accepted], now)
    for row, one in accepted:
        if row.unwanted_to_do_not_call and one.result.sip_code == UNWANTED:
            do_not_call.add(conn, row.project_id, row.e164)
    return {row.id for row, _ in accepted}


def _check_storable(one: Settlement) -> None:
    """Raise Unstorable for what one database would refuse, and the other store as something else.

    SQLite makes NULL of what is no number, and a call without a time is never looked at again.
    """
    done, decision, bill = one.result, one.decision, one.bill
    times = [done.started_at, done.ended_at]
    if done.answered_at is not None:
        times.append(done.answered_at)
    if not isinstance(decision, Finish):
        times.append(decision.due_at)
    if not all(map(_is_number, times)):
        raise Unstorable(f"a time of attempt {one.attempt_id} is no number")
    if isinstance(decision, RetryAt):
        for count in (decision.trouble, decision.uncertain):
            if not 0 <= count <= _MOST_INTEGER:
                raise Unstorable(f"attempt {one.attempt_id} counts {count} failures")
    if not 0 <= bill.seconds <= _MOST_INTEGER:
        raise Unstorable(f"attempt {one.attempt_id} lasted {bill.seconds} seconds")
    if not (bill.price.is_finite() and 0 <= bill.price <= MOST_MONEY):
        raise Unstorable(f"attempt {one.attempt_id} costs {bill.price}")


def _is_number(value: float) -> bool:
    return math.isfinite(value)


def _checked(one: Settlement, row: Any, superseded: Collection[str]) -> Settlement:
    if not one.result.is_billed or not isinstance(one.decision, Finish):
        one = one._replace(bill=NOTHING)
    if row.reserved and one.bill.price > row.reserved:
        note = f"{one.bill.price:f} for {one.bill.seconds} s, and no more than was reserved"
        one = one._replace(bill=Bill(one.bill.seconds, row.reserved, note))
    if isinstance(one.decision, Finish):
        return one
    if row.claim == ANSWERED:
        return one._replace(decision=Finish(CallStatus.UNKNOWN))
    if row.canceled:
        return one._replace(decision=Finish(CallStatus.CANCELED))
    if row.call_id in superseded:
        return one._replace(decision=Finish(CallStatus.CANCELED, one_time_passwords.REASON))
    return one


def _attempt_end(one: Settlement) -> tuple[str, AttemptResult]:
    done = one.result
    if isinstance(one.decision, Requeue):
        done = done._replace(outcome=Outcome.CANCELED)
    return one.attempt_id, done


def _call_end(one: Settlement, decision: Finish) -> CallEnd:
    bill = one.bill
    return CallEnd(
        one.call_id,
        decision.status,
        one.result.started_at,
        bill.seconds,
        bill.price,
        decision.reason,
    )


def _charge(conn: Connection, of_projects: Sequence[tuple[str, Settlement]], now: float) -> None:
    billed = [
        (project_id, one)
        for project_id, one in of_projects
        if one.result.is_billed and isinstance(one.decision, Finish)
    ]
    if not billed:
        return
    spent: dict[str, Decimal] = {}
    for project_id, one in billed:
        spent[project_id] = spent.get(project_id, Decimal(0)) + one.bill.price
    entries = [
        (entry_id, project_id, one.call_id, one.attempt_id, -one.bill.price, one.bill.note)
        for entry_id, (project_id, one) in zip(new_ids(now, len(billed)), billed, strict=True)
    ]
    _BILL.run(conn, {"entries": entries, "now": now})
    balances.charge(conn, spent, now)


_OFFERED = (
    select(
        attempt.c.id,
        attempt.c.call_id,
        attempt.c.claim,
        call.c.project_id,
        call.c.e164,
        call.c.lane,
        project.c.unwanted_to_do_not_call,
        call.c.reserved,
        is_waiting.label("waits"),
        has_webhook.label("has_webhook"),
        exists(select(literal(1)).where(cancel_request.c.attempt_id == attempt.c.id)).label(
            "canceled"
        ),
    )
    .join(call, call.c.id == attempt.c.call_id)
    .join(project, project.c.id == call.c.project_id)
    .where(
        attempt.c.id.in_(select(values_parameter("ids", id=attempt.c.id.type).c.id)),
        attempt.c.dialer_id == bindparam("dialer_id"),
        # Where `is_open` is said, SQLite looks for each among all the open ones.
        attempt.c.claim != FINISHED,
    )
    .order_by(attempt.c.call_id)
    # Locked, so that a client who cancels at this moment is heard, now or right after us.
    .with_for_update(key_share=True, of=call)
)
_MINE = Statement(_OFFERED.where(attempt.c.epoch == bindparam("epoch")))
_LEFT_OPEN = Statement(_OFFERED)
_entries = values_parameter(
    "entries",
    **{
        name: ledger_entry.c[name].type
        for name in ("id", "project_id", "call_id", "attempt_id", "amount", "note")
    },
)
_BILL = Statement(
    insert(ledger_entry).from_select(
        [*_entries.c.keys(), "kind", "created_at"],
        select(
            *_entries.c, literal("call"), bindparam("now", type_=ledger_entry.c.created_at.type)
        ),
    )
)
