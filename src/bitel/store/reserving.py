"""A project's budget in the database: reserved when calls are placed, settled when they end."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from decimal import Decimal

from sqlalchemy import Connection, String, bindparam, case, or_, select, update

from bitel.domain.budget import Budget, day_of
from bitel.store.schema import project
from bitel.store.sql_batch import Statement, values_parameter

UNLIMITED = Budget()


def open_budgets(conn: Connection, projects: Collection[str], now: float) -> dict[str, Budget]:
    """The projects' budgets, which nobody else can change before the transaction ends."""
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


def reserve(conn: Connection, amounts: Mapping[str, Decimal]) -> None:
    """Keep these amounts back, by project; negative ones are given back."""
    # In one order everywhere, so that two processes can't block each other.
    rows = [{"the_project": key, "amount": amounts[key]} for key in sorted(amounts) if amounts[key]]
    if rows:
        conn.execute(_RESERVE, rows)


def charge(conn: Connection, amounts: Mapping[str, Decimal], now: float) -> None:
    """Take these amounts, by project, from balances and from what may be spent today."""
    rows = [
        {"the_project": key, "amount": amounts[key], "today": day_of(now)}
        for key in sorted(amounts)
        if amounts[key]
    ]
    if rows:
        conn.execute(_CHARGE, rows)


_asked = values_parameter("asked", id=String())
_LIMITED = Statement(
    select(
        project.c.id,
        project.c.balance,
        project.c.daily_spend,
        project.c.reserved,
        project.c.spent_today,
        project.c.spent_on,
    )
    .where(
        project.c.id.in_(select(_asked.c.id)),
        or_(project.c.balance.is_not(None), project.c.daily_spend.is_not(None)),
    )
    .order_by(project.c.id)
    .with_for_update(key_share=True)
)
_the_project = project.c.id == bindparam("the_project")
_amount = bindparam("amount", type_=project.c.reserved.type)
_RESERVE = update(project).where(_the_project).values(reserved=project.c.reserved + _amount)
_today = bindparam("today", type_=project.c.spent_on.type)
# A worker whose clock is a little late at midnight must not begin the old day anew.
_is_new_day = project.c.spent_on < _today
_CHARGE = (
    update(project)
    .where(_the_project)
    .values(
        balance=project.c.balance - _amount,  # NULL, which is no limit, stays NULL
        spent_today=case((_is_new_day, _amount), else_=project.c.spent_today + _amount),
        spent_on=case((_is_new_day, _today), else_=project.c.spent_on),
    )
)
