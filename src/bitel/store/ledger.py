"""The ledger: every amount by which a project's balance moved, and why."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import Connection, bindparam, insert, select, update

from bitel.calls.ids import new_id
from bitel.errors import ConflictError, NotFoundError
from bitel.store.schema import ledger_entry, project


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """An amount of the currency, negative when it was spent."""

    id: str
    project_id: str
    call_id: str | None
    attempt_id: str | None
    kind: str
    """call or top-up."""
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


_AFTER_ALL: Final = "g"  # identifiers are hex
_ENTRIES = (
    select(ledger_entry)
    .where(ledger_entry.c.project_id == bindparam("project_id"))
    .where(ledger_entry.c.id < bindparam("before"))
    .order_by(ledger_entry.c.id.desc())
    .limit(bindparam("most"))
)
_TOP_UP = (
    update(project)
    .where(project.c.id == bindparam("the_project"), project.c.balance.is_not(None))
    .values(balance=project.c.balance + bindparam("amount", type_=project.c.balance.type))
    .returning(project.c.balance)
)
