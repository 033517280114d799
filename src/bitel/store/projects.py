"""Projects: the clients of the service, with their settings, limits and balances."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final, TypedDict, Unpack

from sqlalchemy import Connection, Row, bindparam, func, insert, or_, select, update
from sqlalchemy.exc import IntegrityError

from bitel.domain.calling_hours import CallingWindow
from bitel.domain.ids import is_id, new_id
from bitel.domain.number_policy import check_prefixes
from bitel.domain.pricing import DEFAULT_HOLD, LONGEST_HOLD, check_amount
from bitel.domain.webhooks import check_events
from bitel.errors import ConflictError, InvalidRequestError, NotFoundError
from bitel.store.balances import write_top_up
from bitel.store.schema import ledger_entry, project

LONGEST_NAME: Final = 64
"""Characters."""

_HIGHEST_RATE: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Project:
    """A client of the service, and what it may do. A limit that is None does not apply."""

    id: str
    name: str
    created_at: float
    balance: Decimal | None = None
    default_dialer: str | None = None
    disabled: bool = False
    webhook_url: str | None = None
    """URL that events are posted to; None: no events."""
    webhook_secret: str | None = field(default=None, repr=False)
    webhook_off_reason: str | None = None
    """Why no events are posted although there is a URL."""
    webhook_events: tuple[str, ...] | None = None
    """Types of events that are posted besides the end of each call; None: no others."""
    reserved: Decimal = Decimal(0)
    """The amount of the balance that its waiting calls reserve."""
    daily_spend: Decimal | None = None
    """The most it may spend on a day (UTC)."""
    requests_per_minute: int | None = None
    calls_per_minute: int | None = None
    allowed_prefixes: tuple[str, ...] | None = None
    """Prefixes of numbers it may call; None: those of the service's own country."""
    forbidden_prefixes: tuple[str, ...] = ()
    window: str | None = None
    """When its calls may ring, as `CallingWindow.parse` reads it; None: always."""
    dialers: tuple[str, ...] | None = None
    """Dialers that it may use; None: all."""
    one_call_per_number: bool = True
    """Whether a number is dialled by one attempt of the project at a time."""
    unwanted_to_do_not_call: bool = False
    """Whether a 607 (Unwanted, RFC 8197) puts the number on the do-not-call list."""
    hold_seconds: int = DEFAULT_HOLD
    """Total seconds for which the callee may hold a call."""
    max_calls_per_number_per_day: int | None = None
    """Calls that it may place to one number in 24 hours."""


class ProjectChanges(TypedDict, total=False):
    """The fields that `change` accepts, as in `Project`."""

    default_dialer: str | None
    disabled: bool
    webhook_url: str | None
    webhook_secret: str | None
    webhook_events: tuple[str, ...] | None
    daily_spend: Decimal | None
    requests_per_minute: int | None
    calls_per_minute: int | None
    allowed_prefixes: tuple[str, ...] | None
    forbidden_prefixes: tuple[str, ...]
    window: str | None
    dialers: tuple[str, ...] | None
    one_call_per_number: bool
    unwanted_to_do_not_call: bool
    hold_seconds: int
    max_calls_per_number_per_day: int | None


def create(conn: Connection, name: str, now: float) -> Project:
    """Create a project, with no limit on its balance.

    Raises InvalidRequestError for an invalid name, ConflictError for one that is taken.
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


# The columns of the day's spending belong to `balances`.
PROJECT_COLUMNS = [
    column for column in project.c if column.name not in ("spent_today", "spent_on", "deleted_at")
]
# The row of a deleted project stays, since other rows may refer to it.
_exists = project.c.deleted_at.is_(None)
_BY_ID = select(*PROJECT_COLUMNS).where(project.c.id == bindparam("id"), _exists)


def by_id(conn: Connection, project_id: str) -> Project | None:
    """The project of that id, if there is one."""
    row = conn.execute(_BY_ID, {"id": project_id}).one_or_none()
    return _project(row) if row else None


def find(conn: Connection, name_or_id: str) -> Project | None:
    """The project of that name or id, if there is one."""
    either = or_(project.c.id == name_or_id, project.c.name == name_or_id)
    row = conn.execute(select(*PROJECT_COLUMNS).where(either, _exists)).one_or_none()
    return _project(row) if row else None


def listing(conn: Connection) -> list[Project]:
    """All projects, by name."""
    rows = conn.execute(select(*PROJECT_COLUMNS).where(_exists).order_by(project.c.name))
    return [_project(row) for row in rows]


def with_balance_below(conn: Connection, limit: Decimal, most: int = 1000) -> list[Project]:
    """Enabled projects whose balance is below `limit`, the lowest first; at most `most`."""
    low = project.c.balance < limit
    rows = conn.execute(
        select(*PROJECT_COLUMNS)
        .where(low, project.c.disabled.is_(False))
        .order_by(project.c.balance, project.c.id)
        .limit(most)
    )
    return [_project(row) for row in rows]


def change(conn: Connection, project_id: str, **changes: Unpack[ProjectChanges]) -> Project:
    """Change the given fields; returns the project.

    Setting a webhook's URL, even to the same value, turns it on again. Raises NotFoundError for an
    unknown project, and InvalidRequestError for an invalid value.
    """
    _check(changes)
    if changes.get("webhook_events") == ():
        changes["webhook_events"] = None
    values: dict[str, Any] = {**changes}
    if "webhook_url" in changes:
        values["webhook_off_reason"] = None
    if values:
        conn.execute(update(project).where(project.c.id == project_id).values(values))
    changed = by_id(conn, project_id)
    if changed is None:
        raise NotFoundError(f"there is no project {project_id}")
    if changed.webhook_url is not None and changed.webhook_secret is None:
        raise InvalidRequestError("a webhook's URL needs a secret to sign its events with")
    return changed


def _check(changes: ProjectChanges) -> None:
    window = changes.get("window")
    if window is not None:
        CallingWindow.parse(window)
    check_prefixes(changes.get("allowed_prefixes") or ())
    check_prefixes(changes.get("forbidden_prefixes") or ())
    for limit in (changes.get("requests_per_minute"), changes.get("calls_per_minute")):
        if limit is not None and not 1 <= limit <= _HIGHEST_RATE:
            raise InvalidRequestError(f"a rate is a whole number a minute, 1 to {_HIGHEST_RATE}")
    spend = changes.get("daily_spend")
    if spend is not None:
        check_amount(spend, "daily_spend")
        if spend < 0:
            raise InvalidRequestError("daily_spend is zero or more")
    check_events(changes.get("webhook_events") or (), "webhook_events")
    hold = changes.get("hold_seconds")
    if hold is not None and not 0 <= hold <= LONGEST_HOLD:
        raise InvalidRequestError(f"hold_seconds is a whole number, 0 to {LONGEST_HOLD}")
    most = changes.get("max_calls_per_number_per_day")
    if most is not None and not 1 <= most <= _HIGHEST_RATE:
        raise InvalidRequestError(
            f"max_calls_per_number_per_day is a whole number, 1 to {_HIGHEST_RATE}"
        )


def set_balance(conn: Connection, project_id: str, amount: Decimal | None, now: float) -> None:
    """Set a project's balance; None: no limit.

    The difference becomes a ledger entry, so that a balance is always the sum of its entries.
    Raises NotFoundError for an unknown project.
    """
    if amount is not None:
        check_amount(amount, "balance")
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
        write_top_up(conn, project_id, amount - old, now)


def _spent_so_far(conn: Connection, project_id: str) -> Decimal:
    # Calls of an unlimited project have entries too, which the new balance must offset.
    total = select(func.sum(ledger_entry.c.amount, type_=ledger_entry.c.amount.type))
    sum_ = conn.execute(total.where(ledger_entry.c.project_id == project_id)).scalar_one()
    return Decimal(0) if sum_ is None else sum_


def _project(row: Row[*tuple[Any, ...]]) -> Project:
    return Project(**row._mapping)
