"""Balances of projects and the ledger: reservations for placed calls, charges for ended ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection

from bitel.domain.ids import first_id_at, new_id
from bitel.domain.pricing import Budget, day_of
from bitel.store.schema import attempt, ledger_entry, project
from bitel.store.sql_batch import Statement, in_equal_chunks, is_among, matches

UNLIMITED = Budget()
_LIMITED = Statement(
    sa.select(*project.c["id", "balance", "daily_spend", "reserved", "spent_today", "spent_on"])
    .where(
        is_among(project.c.id, "asked"),
        sa.or_(project.c.balance.is_not(None), project.c.daily_spend.is_not(None)),
    )
    .order_by(project.c.id)
    .with_for_update(key_share=True)
)


def open_budgets(conn: Connection, projects: Collection[str], now: float) -> dict[str, Budget]:
    """The projects' budgets, locked until the transaction ends."""
    limited = {
        row.id: Budget(
            balance=row.balance,
            daily_spend=row.daily_spend,
            reserved=row.reserved,
            spent_today=row.spent_today if row.spent_on >= day_of(now) else Decimal(0),
        )
        for row in _LIMITED.rows(conn, {"asked": [(project_id,) for project_id in projects]})
    }
    return {project_id: limited.get(project_id, UNLIMITED) for project_id in projects}


_the_project = project.c.id == sa.bindparam("the_project")
_amount = sa.bindparam("amount", type_=project.c.reserved.type)
_RESERVE = sa.update(project).where(_the_project).values(reserved=project.c.reserved + _amount)


def reserve(conn: Connection, amounts: Mapping[str, Decimal]) -> None:
    """Reserve these amounts, by project; negative ones are released."""
    # In the same order everywhere, to avoid deadlocks.
    rows = [{"the_project": key, "amount": amounts[key]} for key in sorted(amounts) if amounts[key]]
    if rows:
        conn.execute(_RESERVE, rows)


_today = sa.bindparam("today", type_=project.c.spent_on.type)
# A worker whose clock is slightly behind at midnight must not reset the new day.
_is_new_day = project.c.spent_on < _today
_CHARGE = (
    sa.update(project)
    .where(_the_project)
    .values(
        balance=project.c.balance - _amount,  # NULL, which is no limit, stays NULL
        spent_today=sa.case((_is_new_day, _amount), else_=project.c.spent_today + _amount),
        spent_on=sa.case((_is_new_day, _today), else_=project.c.spent_on),
    )
)


def charge(conn: Connection, amounts: Mapping[str, Decimal], now: float) -> None:
    """Subtract these amounts, by project, from balances, and add them to the spending of today."""
    rows = [
        {"the_project": key, "amount": amounts[key], "today": day_of(now)}
        for key in sorted(amounts)
        if amounts[key]
    ]
    if rows:
        conn.execute(_CHARGE, rows)


DAY: Final = 86_400.0

CARRIED: Final = "calls"
"""The kind of an entry that sums up a day's deleted calls."""


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """An amount of the currency, negative when it was spent."""

    id: str
    project_id: str
    call_id: str | None
    attempt_id: str | None
    kind: str
    """`call`, `top-up`, or `calls`: the deleted calls of a day."""
    amount: Decimal
    created_at: float
    note: str = ""
    """Why a call's length and price do not agree; empty where they do."""


_AFTER_ALL: Final = "g"  # identifiers are hex
_ENTRIES = (
    sa.select(ledger_entry)
    .where(*matches(ledger_entry.c.project_id), ledger_entry.c.id < sa.bindparam("before"))
    .order_by(ledger_entry.c.id.desc())
    .limit(sa.bindparam("most"))
)


def entries(
    conn: Connection, project_id: str, limit: int = 100, before: str | None = None
) -> list[LedgerEntry]:
    """The project's last `limit` entries, the newest first; `before` is the id to go on from."""
    wanted = {"project_id": project_id, "before": before or _AFTER_ALL, "most": limit}
    return [LedgerEntry(**row._mapping) for row in conn.execute(_ENTRIES, wanted)]


def write_top_up(conn: Connection, project_id: str, amount: Decimal, now: float) -> None:
    """Add the entry of a balance that an operator changed."""
    entry: dict[str, Any] = {"id": new_id(now), "project_id": project_id, "kind": "top-up",
                             "amount": amount, "created_at": now}  # fmt: skip
    conn.execute(sa.insert(ledger_entry).values(entry))


_OF_CALLS = sa.select(*ledger_entry.c["id", "project_id", "amount", "created_at"]).where(
    ledger_entry.c.attempt_id.in_(
        sa.select(attempt.c.id).where(attempt.c.call_id.in_(sa.bindparam("ids", expanding=True)))
    )
)
_CARRY = sa.text(
    """
    INSERT INTO ledger_entry (id, project_id, kind, amount, created_at)
    VALUES (:id, :project_id, :kind, :amount, :at)
    ON CONFLICT (id) DO UPDATE SET amount = ledger_entry.amount + excluded.amount
    """
).bindparams(sa.bindparam("amount", type_=ledger_entry.c.amount.type))
_DELETE = sa.delete(ledger_entry).where(ledger_entry.c.id.in_(sa.bindparam("ids", expanding=True)))


def carry_over(conn: Connection, calls: dict[str, list[str]]) -> None:
    """Merge the entries of calls that are deleted: one for each project and day.

    `calls` holds their ids, as the parameter `ids`. The sum of a project's entries stays the same.
    """
    rows = conn.execute(_OF_CALLS, calls).all()
    sums: defaultdict[tuple[str, int], Decimal] = defaultdict(Decimal)
    for row in rows:
        sums[row.project_id, int(row.created_at // DAY)] += row.amount
    for some in in_equal_chunks([row.id for row in rows], len(calls["ids"])):
        conn.execute(_DELETE, some)
    for (project_id, day), amount in sums.items():
        entry = {
            # The id of a day and a project is the same each time.
            "id": first_id_at(day * DAY)[:12] + project_id[12:],
            "project_id": project_id,
            "kind": CARRIED,
            "amount": amount,
            "at": day * DAY,
        }
        conn.execute(_CARRY, entry)
