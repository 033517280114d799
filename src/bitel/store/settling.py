"""Settlement of finished attempts: result, final status or retry of the call, and its price."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from decimal import Decimal
from typing import Final, NamedTuple, Protocol

import sqlalchemy as sa
from sqlalchemy import Connection

from bitel.domain.attempts import AttemptResult, Media, Outcome
from bitel.domain.calls import CallStatus, Lane
from bitel.domain.ids import new_ids
from bitel.domain.pricing import MOST_MONEY, NOTHING, Bill
from bitel.domain.retry import Finish, Requeue, RetryAt, RetryDecision
from bitel.domain.webhooks import CALL_COMPLETED
from bitel.store import (
    balances,
    call_events,
    do_not_call,
    event_rows,
    leases,
    one_time_passwords,
)
from bitel.store.call_events import CallEvent
from bitel.store.endings import (
    CallEnd,
    OpenCall,
    cancel_requested,
    end_attempts,
    end_waiting,
    forget_requests,
    may_ask_for_events,
    requeue_calls,
)
from bitel.store.event_rows import has_webhook, project_events
from bitel.store.leases import Lease
from bitel.store.schema import (
    ANSWERED,
    FINISHED,
    attempt,
    call,
    dialer,
    is_waiting,
    ledger_entry,
    project,
)
from bitel.store.sql_batch import Statement, insert_rows, is_among, matches, values_parameter

UNWANTED: Final = 607
"""The SIP code by which the callee rejects the call as unwanted (RFC 8197)."""

_MOST_INTEGER: Final = 2**31 - 1


class Settlement(NamedTuple):
    """A finished attempt, the decision on its call, and the bill."""

    attempt_id: str
    call_id: str
    result: AttemptResult
    decision: RetryDecision
    bill: Bill = NOTHING


class Unstorable(ValueError):
    """A settlement with a time or an amount that no database can hold."""


class _OpenAttempt(OpenCall, Protocol):
    """The row of an attempt that may be settled."""

    id: str
    call_id: str
    claim: str
    e164: str
    lane: int
    unwanted_to_do_not_call: bool
    waits: bool
    """The call is not final."""


_OPEN = (
    sa.select(
        *attempt.c["id", "call_id", "claim"],
        *call.c["project_id", "campaign_id", "e164", "lane", "reserved", "webhook_id"],
        project.c.unwanted_to_do_not_call,
        is_waiting.label("waits"),
        has_webhook.label("has_webhook"),
        project_events,
    )
    .join(call, call.c.id == attempt.c.call_id)
    .join(project, project.c.id == call.c.project_id)
    .where(
        is_among(attempt.c.id, "ids"),
        *matches(attempt.c.dialer_id),
        # With `is_open` SQLite would search all open attempts for each.
        attempt.c.claim != FINISHED,
    )
    .order_by(attempt.c.call_id)
    # Locked: a client that cancels meanwhile takes effect either now or right after us.
    .with_for_update(key_share=True, of=call)
)
_MINE: Final = Statement(_OPEN.where(*matches(attempt.c.epoch)))
_LEFT_OPEN: Final = Statement(_OPEN)


def settle(
    conn: Connection, lease: Lease, settlements: Sequence[Settlement], now: float
) -> set[str]:
    """Write the results of attempts; returns the ids of those for which it was written.

    Attempts that are settled already, or taken over by another worker, are left out. An attempt
    with the outcome ANSWERED is billed by one ledger entry, at most by the amount that its call had
    reserved, if it had. Whatever the decision, an attempt whose answer is stored never makes its
    call due again: the call ends as UNKNOWN. If a cancel was requested, or a newer one-time
    password supersedes the call, it ends as CANCELED instead of being due again. The
    do-not-call list gets the numbers whose callees opted out by a key; and, if the project is set
    so, those that rejected the call as unwanted (607).

    Raises Unstorable for times and amounts out of range, and writes nothing then.
    """
    if not settlements:
        return set()
    _keep_opt_outs(conn, settlements)
    if not leases.holds(conn, lease):
        return set()
    offered = _by_attempt(settlements)
    mine = {"ids": [(key,) for key in offered], "dialer_id": lease.dialer_id, "epoch": lease.epoch}
    return _settle(conn, _MINE.rows(conn, mine), offered, now)


def settle_journaled(
    conn: Connection, dialer_id: str, settlements: Sequence[Settlement], now: float
) -> set[str]:
    """As `settle`, for attempts of earlier workers of the dialer which are still open.

    To be called before `recovery.take_over`, which decides on the attempts that remain open.
    """
    if not settlements:
        return set()
    _keep_opt_outs(conn, settlements)
    # Each `settle` shares this lock until its commit, so that we see what it has written.
    conn.execute(sa.select(dialer.c.epoch).where(dialer.c.id == dialer_id).with_for_update())
    offered = _by_attempt(settlements)
    left_open = {"ids": [(key,) for key in offered], "dialer_id": dialer_id}
    return _settle(conn, _LEFT_OPEN.rows(conn, left_open), offered, now)


def minimal(attempt_id: str, call_id: str, result: AttemptResult, now: float) -> Settlement:
    """The settlement of an attempt whose own settlement could not be stored.

    Nothing is billed and no free text is kept. Its call ends as UNKNOWN if it was answered, else as
    ERROR.
    """
    answered_at = result.answered_at
    is_answered = answered_at is not None or result.outcome in (
        Outcome.ANSWERED,
        Outcome.INTERRUPTED,
    )
    reduced = AttemptResult(
        Outcome.INTERRUPTED if is_answered else result.outcome,
        result.started_at if math.isfinite(result.started_at) else now,
        now,
        answered_at if answered_at is not None and math.isfinite(answered_at) else None,
        media=Media(None, opted_out=True) if _has_opted_out(result) else None,
    )
    decision = (
        Finish(CallStatus.UNKNOWN)
        if is_answered
        else Finish(CallStatus.ERROR, "the end of its last attempt could not be stored")
    )
    return Settlement(attempt_id, call_id, reduced, decision)


_NUMBERS: Final = Statement(
    sa.select(*call.c["project_id", "e164"]).where(
        is_among(call.c.id, "calls"), call.c.e164 != sa.literal_column("''")
    )
)


def _has_opted_out(result: AttemptResult) -> bool:
    return result.media is not None and result.media.opted_out


def _keep_opt_outs(conn: Connection, settlements: Iterable[Settlement]) -> None:
    """Put the numbers of keyed opt-outs on the do-not-call list.

    Whether or not the attempt is still the worker's: what the callee wants counts in any case.
    """
    calls = [(one.call_id,) for one in settlements if _has_opted_out(one.result)]
    if calls:
        for row in _NUMBERS.rows(conn, {"calls": calls}):
            do_not_call.add(conn, row.project_id, row.e164)


def _by_attempt(settlements: Iterable[Settlement]) -> dict[str, Settlement]:
    offered = {one.attempt_id: one for one in settlements}
    for one in offered.values():
        _check_storable(one)
    return offered


def _settle(
    conn: Connection, found: Iterable[_OpenAttempt], offered: dict[str, Settlement], now: float
) -> set[str]:
    rows = [row for row in found if row.call_id == offered[row.id].call_id]
    otp = [
        (row.project_id, row.e164, row.call_id)
        for row in rows
        if row.lane == Lane.OTP and not isinstance(offered[row.id].decision, Finish)
    ]
    superseded = one_time_passwords.superseded(conn, otp) if otp else set()
    # Read when the calls are locked: a query sees no request that was committed while it waited.
    canceled = cancel_requested(conn, [row.id for row in rows])
    results: list[tuple[str, AttemptResult]] = []
    ends: list[tuple[OpenCall, CallEnd]] = []
    again: list[tuple[str, RetryAt | Requeue]] = []
    billed: list[tuple[str, Settlement]] = []
    for row in rows:
        one = _checked(offered[row.id], row, superseded, canceled)
        result, decision, bill = one.result, one.decision, one.bill
        if isinstance(decision, Requeue):
            result = result._replace(outcome=Outcome.CANCELED)
        results.append((row.id, result))
        if not isinstance(decision, Finish):
            again.append((row.call_id, decision))
            continue
        if row.waits:
            end = CallEnd(
                row.call_id,
                decision.status,
                result.started_at,
                bill.seconds,
                bill.price,
                decision.reason,
                is_answered=result.answered_at is not None,
                keys=result.media.digits if result.media is not None else "",
                reports=result.media.reports if result.media is not None else (),
                machine=None if result.media is None else result.media.machine,
            )
            ends.append((row, end))
        if result.is_billed:
            billed.append((row.project_id, one))
    end_attempts(conn, results)
    forget_requests(conn, canceled)
    end_waiting(conn, ends, now)
    requeue_calls(conn, again)
    _charge(conn, billed, now)
    asking = [row for row in rows if may_ask_for_events(row)]
    if asking:
        own = event_rows.own_types(conn, asking)
        completed = [
            CallEvent(CALL_COMPLETED, row.call_id, row.project_id, row.webhook_id, now)
            for row in asking
            if CALL_COMPLETED in event_rows.types_of(row, own)
        ]
        call_events.write(conn, completed)
    for row in rows:
        if row.unwanted_to_do_not_call and offered[row.id].result.sip_code == UNWANTED:
            do_not_call.add(conn, row.project_id, row.e164)
    return {row.id for row in rows}


def _check_storable(one: Settlement) -> None:
    """Raise Unstorable for values that one database would refuse, and the other store changed.

    SQLite makes NULL of NaN, and a waiting call without a due time is never dialled.
    """
    result, decision, bill = one.result, one.decision, one.bill
    times = [result.started_at, result.ended_at]
    if result.answered_at is not None:
        times.append(result.answered_at)
    if not isinstance(decision, Finish):
        times.append(decision.due_at)
    if not all(map(math.isfinite, times)):
        raise Unstorable(f"a time of attempt {one.attempt_id} is no number")
    if isinstance(decision, RetryAt):
        for count in (decision.trouble, decision.uncertain):
            if not 0 <= count <= _MOST_INTEGER:
                raise Unstorable(f"attempt {one.attempt_id} counts {count} failures")
    if not 0 <= bill.seconds <= _MOST_INTEGER:
        raise Unstorable(f"attempt {one.attempt_id} lasted {bill.seconds} seconds")
    if not (bill.price.is_finite() and 0 <= bill.price <= MOST_MONEY):
        raise Unstorable(f"attempt {one.attempt_id} costs {bill.price}")


def _checked(
    one: Settlement, row: _OpenAttempt, superseded: Collection[str], canceled: Collection[str]
) -> Settlement:
    if not one.result.is_billed or not isinstance(one.decision, Finish):
        one = one._replace(bill=NOTHING)
    if row.reserved and one.bill.price > row.reserved:
        note = f"{one.bill.price:f} for {one.bill.seconds} s, and no more than was reserved"
        one = one._replace(bill=Bill(one.bill.seconds, row.reserved, note))
    if isinstance(one.decision, Finish):
        return one
    if row.claim == ANSWERED:
        return one._replace(decision=Finish(CallStatus.UNKNOWN))
    if row.id in canceled:
        return one._replace(decision=Finish(CallStatus.CANCELED))
    if row.call_id in superseded:
        return one._replace(decision=Finish(CallStatus.CANCELED, one_time_passwords.REASON))
    return one


_BILL: Final = insert_rows(
    values_parameter(
        "entries", *ledger_entry.c["id", "project_id", "call_id", "attempt_id", "amount", "note"]
    ),
    ledger_entry,
    kind=sa.literal("call"),
    created_at=sa.bindparam("now", type_=ledger_entry.c.created_at.type),
)


def _charge(conn: Connection, billed: Sequence[tuple[str, Settlement]], now: float) -> None:
    if not billed:
        return
    spent: defaultdict[str, Decimal] = defaultdict(Decimal)
    for project_id, one in billed:
        spent[project_id] += one.bill.price
    entries = [
        (entry_id, project_id, one.call_id, one.attempt_id, -one.bill.price, one.bill.note)
        for entry_id, (project_id, one) in zip(new_ids(now, len(billed)), billed, strict=True)
    ]
    _BILL.run(conn, {"entries": entries, "now": now})
    balances.charge(conn, spent, now)
