"""Projects: who places calls, and what they have left to spend."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from bitel.calls.ids import is_id, new_id
from bitel.errors import ConflictError, InvalidRequestError, NotFoundError
from bitel.store.schema import ledger_entry, project

LONGEST_NAME: Final = 64
"""Characters."""


@dataclass(frozen=True, slots=True)
class Project:
    """A client of the service. `balance` None means that nothing limits what it spends."""

    id: str
    name: str
    created_at: float
    balance: Decimal | None = None
    default_dialer: str | None = None
    disabled: bool = False


def create(conn: Connection, name: str, now: float) -> Project:
    """A new project, with no limit on its balance.

    Raises InvalidRequestError for a name that can't be one, ConflictError for one that is taken.
    """
    if not 0 < len(name) <= LONGEST_NAME or not name.isprintable() or is_id(name):
        raise InvalidRequestError(
            f"a project's name has 1 to {LONGEST_NAME} printable characters and is no identifier"
        )
    made = Project(new_id(now), name, now)
    values = {"id": made.id, "name": name, "created_at": now, "disabled": False}
    try:
        conn.execute(insert(project).values(values))
    except IntegrityError:
        raise ConflictError(f"a project named {name!r} exists already") from None
    return made


def by_id(conn: Connection, project_id: str) -> Project | None:
    """The project of that id, if there is one."""
    row = conn.execute(_BY_ID, {"id": project_id}).one_or_none()
    return _project(row) if row else None


def find(conn: Connection, name_or_id: str) -> Project | None:
    """The project of that name or id, if there is one."""
    either = or_(project.c.id == name_or_id, project.c.name == name_or_id)
    row = conn.execute(select(project).where(either)).one_or_none()
    return _project(row) if row else None


def listing(conn: Connection) -> list[Project]:
    """All projects, by name."""
    return [_project(row) for row in conn.execute(select(project).order_by(project.c.name))]


def set_balance(conn: Connection, project_id: str, amount: Decimal | None, now: float) -> None:
    """Let a project spend `amount` from here on, or without limit when None.

    The difference becomes a ledger entry, so that a balance is always the sum of its entries.
    Raises NotFoundError for an unknown project.
    """
    before = conn.execute(
        select(project.c.balance).where(project.c.id == project_id).with_for_update()
    ).one_or_none()
    if before is None:
        raise NotFoundError(f"there is no project {project_id}")
    conn.execute(update(project).where(project.c.id == project_id).values(balance=amount))
    if amount is None:
        return
    old = _spent_so_far(conn, project_id) if before.balance is None else before.balance
    if amount != old:
        entry = {"id": new_id(now), "project_id": project_id, "kind": "top-up",
                 "amount": amount - old, "created_at": now}  # fmt: skip
        conn.execute(insert(ledger_entry).values(entry))


def _spent_so_far(conn: Connection, project_id: str) -> Decimal:
    # Calls of an unlimited project leave entries too, which its new balance has to outweigh.
    total = select(func.sum(ledger_entry.c.amount, type_=ledger_entry.c.amount.type))
    sum_ = conn.execute(total.where(ledger_entry.c.project_id == project_id)).scalar_one()
    return Decimal(0) if sum_ is None else sum_


_BY_ID = select(project).where(project.c.id == bindparam("id"))


def _project(row: Row[*tuple[Any, ...]]) -> Project:
    return Project(**row._mapping)
