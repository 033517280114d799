"""What a finished attempt leaves behind: its outcome, its call's fate, and what it cost."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import Connection, bindparam, exists, insert, literal, select

from bitel.calls.call import CallStatus, Lane
from bitel.calls.ids import new_ids
from bitel.calls.outcome import Attempted, Outcome
from bitel.calls.retry import Again, Final, Verdict
from bitel.calls.tariff import NOTHING, Bill
from bitel.store import do_not_call, leases, one_time_passwords, reserving
from bitel.store.bulk import Change, Query, given
from bitel.store.endings import (
    CallAgain,
    CallEnd,
    call_again,
    end_attempts,
    end_waiting,
    forget_requests,
    is_told,
)
from bitel.store.leases import Lease
from bitel.store.schema import (
    HEARD,
    SETTLED,
    attempt,
    call,
    cancel_request,
    is_waiting,
    ledger_entry,
    project,
)

UNWANTED = 607
"""The SIP code by which the person called says that the call is unwanted (RFC 8197)."""


@dataclass(frozen=True, slots=True)
class HandBack:
    """The attempt was given up for our own reasons: its call is due at `due_at`, as before."""

    due_at: float


class Settlement(NamedTuple):
    """A finished attempt, and what follows from it."""

    attempt_id: str
    call_id: str
    attempted: Attempted
    verdict: Verdict | HandBack
    bill: Bill = NOTHING


def settle(
    conn: Connection, lease: Lease, settlements: Sequence[Settlement], now: float
) -> set[str]:
    """Write what became of attempts; returns those for which it was written.

    It is not for attempts that are settled already, or that another worker has taken over. An
    answered attempt is billed by one ledger entry, with no more than its call had reserved, if it
    had. Whatever its verdict, an attempt that was heard never makes its call due again: the call
    then ends as UNKNOWN. Nor does one that was to be called off, or a one-time password that a
    newer one supersedes: its call ends as CANCELED. A number whose person did not want the call
    (607) goes on the do-not-call list of a project that asks for it.
    """
    if not settlements or not leases.holds(conn, lease):
        return set()
    offered = {one.attempt_id: one for one in settlements}
    mine = {"dialer_id": lease.dialer_id, "epoch": lease.epoch}
    rows = [
        row
        for row in _MINE.rows(conn, {"ids": [(key,) for key in offered], **mine})
        if row.call_id == offered[row.id].call_id
    ]
    superseded = one_time_passwords.superseded(
        conn,
        [
            (row.project_id, row.e164, row.call_id)
            for row in rows
            if row.lane == Lane.OTP and not isinstance(offered[row.id].verdict, Final)
        ],
    )
    accepted = [(row, _checked(offered[row.id], row, superseded)) for row in rows]
    end_attempts(conn, [_attempt_end(one) for _, one in accepted])
    forget_requests(conn, [row.id for row, _ in accepted if row.canceled])
    ends = [
        (row, _call_end(one, one.verdict))
        for row, one in accepted
        if isinstance(one.verdict, Final) and row.waits
    ]
    end_waiting(conn, ends, now)
    call_again(
        conn, [_call_again(one) for _, one in accepted if not isinstance(one.verdict, Final)]
    )
    _charge(conn, [(row.project_id, one) for row, one in accepted], now)
    for row, one in accepted:
        if row.unwanted_to_do_not_call and one.attempted.sip_code == UNWANTED:
            do_not_call.add(conn, row.project_id, row.e164)
    return {row.id for row, _ in accepted}


def _checked(one: Settlement, row: Any, superseded: Collection[str]) -> Settlement:
    if row.reserved and one.bill.price > row.reserved:
        one = one._replace(bill=Bill(one.bill.seconds, row.reserved))
    if isinstance(one.verdict, Final):
        return one
    if row.claim == HEARD:
        return one._replace(verdict=Final(CallStatus.UNKNOWN))
    if row.canceled:
        return one._replace(verdict=Final(CallStatus.CANCELED))
    if row.call_id in superseded:
        return one._replace(verdict=Final(CallStatus.CANCELED, one_time_passwords.REASON))
    return one


def _attempt_end(one: Settlement) -> tuple[str, Attempted]:
    done = one.attempted
    if isinstance(one.verdict, HandBack):
        done = done._replace(outcome=Outcome.CALLED_OFF)
    return one.attempt_id, done


def _call_end(one: Settlement, verdict: Final) -> CallEnd:
    bill = one.bill
    return CallEnd(
        one.call_id,
        verdict.status,
        one.attempted.started_at,
        bill.seconds,
        bill.price,
        verdict.reason,
    )


def _call_again(one: Settlement) -> CallAgain:
    verdict = one.verdict
    if isinstance(verdict, Again):
        return CallAgain(
            one.call_id,
            verdict.due_at,
            verdict.spends_retry,
            verdict.trouble,
            verdict.uncertain,
        )
    assert isinstance(verdict, HandBack)
    return CallAgain(one.call_id, verdict.due_at, spends_retry=False, trouble=None)


def _charge(conn: Connection, of_projects: Sequence[tuple[str, Settlement]], now: float) -> None:
    answered = [each for each in of_projects if each[1].attempted.answered_at is not None]
    if not answered:
        return
    spent: dict[str, Decimal] = {}
    for project_id, one in answered:
        spent[project_id] = spent.get(project_id, Decimal(0)) + one.bill.price
    entries = [
        (entry_id, project_id, one.call_id, one.attempt_id, -one.bill.price)
        for entry_id, (project_id, one) in zip(new_ids(now, len(answered)), answered, strict=True)
    ]
    _BILL.run(conn, {"entries": entries, "now": now})
    reserving.charge(conn, spent, now)


_MINE = Query(
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
        is_told.label("is_told"),
        exists(select(literal(1)).where(cancel_request.c.attempt_id == attempt.c.id)).label(
            "canceled"
        ),
    )
    .join(call, call.c.id == attempt.c.call_id)
    .join(project, project.c.id == call.c.project_id)
    .where(
        attempt.c.id.in_(select(given("ids", id=attempt.c.id.type).c.id)),
        attempt.c.dialer_id == bindparam("dialer_id"),
        attempt.c.epoch == bindparam("epoch"),
        # Where `is_open` is said, SQLite looks for each among all the open ones.
        attempt.c.claim != SETTLED,
    )
    .order_by(attempt.c.call_id)
    # Locked, so that a client who cancels at this moment is heard, now or right after us.
    .with_for_update(key_share=True, of=call)
)
_entries = given(
    "entries",
    **{
        name: ledger_entry.c[name].type
        for name in ("id", "project_id", "call_id", "attempt_id", "amount")
    },
)
_BILL = Change(
    insert(ledger_entry).from_select(
        [*_entries.c.keys(), "kind", "created_at"],
        select(
            *_entries.c, literal("call"), bindparam("now", type_=ledger_entry.c.created_at.type)
        ),
    )
)
