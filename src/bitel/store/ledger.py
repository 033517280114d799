"""The ledger: every amount by which a project's balance moved, and why."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import Connection, bindparam, delete, insert, select, text, update

from bitel.domain.ids import first_id_at, new_id
from bitel.errors import ConflictError, NotFoundError
from bitel.store.schema import attempt, ledger_entry, project
from bitel.store.sql_batch import in_equal_chunks

DAY: Final = 86_400.0

CARRIED: Final = "calls"
"""The kind of an entry that is the sum of a day's entries whose calls were deleted."""


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """An amount of the currency, negative when it was spent."""

    id: str
    project_id: str
    call_id: str | None
    attempt_id: str | None
    kind: str
    """call, top-up, or calls: those of a day that are not kept any more."""
    amount: Decimal
    created_at: float
    note: str = ""
    """Why a call's length and price do not agree; empty where they do."""


def entries(
    conn: Connection, project_id: str, limit: int = 100, before: str | None = None
) -> list[LedgerEntry]:
    """The project's last `limit` entries, the newest first; `before` is the id to go on from."""
    wanted = {"project_id": project_id, "before": before or _AFTER_ALL, "most": limit}
    return [LedgerEntry(**row._mapping) for row in conn.execute(_ENTRIES, wanted)]


def top_up(conn: Connection, project_id: str, amount: Decimal, now: float) -> Decimal:
    """Add `amount`, which may be negative, to a project's balance; the new balance.

    Raises NotFoundError for an unknown project, ConflictError for one without a limit.
    """
    row = conn.execute(_TOP_UP, {"the_project": project_id, "amount": amount}).one_or_none()
    if row is None:
        if conn.execute(select(project.c.id).where(project.c.id == project_id)).first():
            raise ConflictError("the project spends without a limit; set its balance first")
        raise NotFoundError(f"there is no project {project_id}")
    write_top_up(conn, project_id, amount, now)
    balance: Decimal = row.balance
    return balance


def write_top_up(conn: Connection, project_id: str, amount: Decimal, now: float) -> None:
    """Write the entry of a balance that was moved by hand."""
    entry: dict[str, Any] = {"id": new_id(now), "project_id": project_id, "kind": "top-up",
                             "amount": amount, "created_at": now}  # fmt: skip
    conn.execute(insert(ledger_entry).values(entry))


def carry_over(conn: Connection, calls: dict[str, list[str]]) -> None:
    """Put the entries of calls that are deleted together: one for each project and day.

    `calls` holds their ids, as the parameter `ids`. The sum of a project's entries stays the same.
    """
    rows = conn.execute(_OF_CALLS, calls).all()
    sums: dict[tuple[str, int], Decimal] = {}
    for row in rows:
        key = (row.project_id, int(row.created_at // DAY))
        sums[key] = sums.get(key, Decimal(0)) + row.amount
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


_AFTER_ALL: Final = "g"  # identifiers are hex
_ENTRIES = (
    select(ledger_entry)
    .where(ledger_entry.c.project_id == bindparam("project_id"))
    .where(ledger_entry.c.id < bindparam("before"))
    .order_by(ledger_entry.c.id.desc())
    .limit(bindparam("most"))
)
_OF_CALLS = select(
    ledger_entry.c.id, ledger_entry.c.project_id, ledger_entry.c.amount, ledger_entry.c.created_at
).where(
    ledger_entry.c.attempt_id.in_(
        select(attempt.c.id).where(attempt.c.call_id.in_(bindparam("ids", expanding=True)))
    )
)
_CARRY = text(
    """
    INSERT INTO ledger_entry (id, project_id, kind, amount, created_at)
    VALUES (:id, :project_id, :kind, :amount, :at)
    ON CONFLICT (id) DO UPDATE SET amount = ledger_entry.amount + excluded.amount
    """
).bindparams(bindparam("amount", type_=ledger_entry.c.amount.type))
_DELETE = delete(ledger_entry).where(ledger_entry.c.id.in_(bindparam("ids", expanding=True)))
_TOP_UP = (
    update(project)
    .where(project.c.id == bindparam("the_project"), project.c.balance.is_not(None))
    .values(balance=project.c.balance + bindparam("amount", type_=project.c.balance.type))
    .returning(project.c.balance)
)
