"""The outbox of webhook events: one per finished call, kept until it is delivered or given up.

`endings.end_calls` writes an event in the transaction that ends its call. A deliverer takes events
on lease: while one is in flight its `due_at` is when another deliverer may try it, so that a crash
delays an event and loses none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Final

from sqlalchemy import (
    CTE,
    BindParameter,
    ColumnElement,
    Connection,
    FromClause,
    Select,
    and_,
    bindparam,
    func,
    insert,
    literal_column,
    null,
    or_,
    select,
    true,
    update,
)

from bitel.domain.calls import CallStatus
from bitel.domain.ids import new_id
from bitel.store.schema import (
    DELIVERED,
    GIVEN_UP,
    PENDING,
    call,
    is_untold,
    project,
    webhook_event,
    webhook_try,
)
from bitel.store.sql_batch import Statement, in_chunks, loose_index_scan, values_parameter

LEASE: Final = 60.0
"""Seconds after which an event whose delivery was begun may be tried by another deliverer."""

CHUNK: Final = 1000
"""Events of one project in one claim, at most."""

_NOBODY: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event that its deliverer may try now, and nobody else until the lease is over."""

    event_id: str
    project_id: str
    url: str
    secret: str
    tries: int
    """1 is the first: how many tries were begun, this one included."""
    call_id: str
    campaign_id: str | None
    status: CallStatus
    bill_seconds: int
    phone_number: str
    requested_at: float
    price: Decimal


@dataclass(frozen=True, slots=True)
class DeliveryAttempt:
    """One try to deliver an event, and what follows. `at` in Unix seconds, `seconds` it took."""

    event_id: str
    at: float
    seconds: float
    delivered: bool
    status_code: int | None = None
    error: str = ""
    """What failed, in a few words; empty where there was an answer."""
    next_due: float | None = None
    """When to try again; None gives the event up, unless it was delivered."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event and all that was tried for it, the first try first."""

    id: str
    project_id: str
    call_id: str
    created_at: float
    due_at: float | None
    """When it is tried next; None when it no longer is."""
    tries: int
    """How many were begun; of one that a crash cut off, `tried` holds nothing."""
    state: str
    """pending, delivered or given up."""
    tried: tuple[DeliveryAttempt, ...] = ()


def claim_due(
    conn: Connection,
    now: float,
    limit_per_project: int,
    limit: int,
    *,
    lease: float = LEASE,
    in_flight: Mapping[str, int] = _NOBODY,
    after_project: str = "",
) -> list[Delivery]:
    """Up to `limit` events to try now, the longest due of each project first.

    Projects take turns, beginning after `after_project`; the next claim begins after the project
    of the last delivery. None gets more than `limit_per_project`, what it has `in_flight` already
    included. Projects whose URL is off have no turn.
    """
    full = [key for key, count in in_flight.items() if count >= limit_per_project]
    may_have = {
        project_id: limit_per_project - in_flight.get(project_id, 0)
        for project_id in _turns(conn, now, limit, after_project, full)
    }
    claimed: list[Delivery] = []
    while may_have and len(claimed) < limit:
        # What a project leaves of its room is for those that follow, in the next round.
        shares = _shares(may_have, limit - len(claimed))
        due = _due(conn, now, shares)
        if due:
            leased = [(one.event_id,) for one in due]
            _LEASE.run(conn, {"leased": leased, "until": now + lease})
        claimed += due
        got = Counter(one.project_id for one in due)
        for project_id, share in shares.items():
            may_have[project_id] -= share
            if got[project_id] < share or not may_have[project_id]:
                del may_have[project_id]
    return claimed


def _shares(may_have: Mapping[str, int], room: int) -> dict[str, int]:
    """What those whose turn it is may have of the room, the first all that they may have at all."""
    shares: dict[str, int] = {}
    for project_id, most in may_have.items():
        if room <= 0:
            break
        shares[project_id] = min(most, room)
        room -= shares[project_id]
    return shares


def record(conn: Connection, tried: Sequence[DeliveryAttempt]) -> None:
    """Write what came of tries. A try that failed changes nothing of an event already delivered."""
    if not tried:
        return
    tries = [
        (new_id(one.at), one.event_id, one.at, one.status_code, one.error, one.seconds)
        for one in tried
    ]
    _WRITE_TRIES.run(conn, {"tries": tries})
    if delivered := [(one.event_id,) for one in tried if one.delivered]:
        _DELIVERED.run(conn, {"delivered": delivered})
    failed = [one for one in tried if not one.delivered]
    if again := [(one.event_id, one.next_due) for one in failed if one.next_due]:
        _AGAIN.run(conn, {"again": again})
    if given_up := [(one.event_id,) for one in failed if not one.next_due]:
        _GIVE_UP.run(conn, {"given_up": given_up})


def turn_off(conn: Connection, project_id: str, url: str, reason: str) -> bool:
    """Send a project no more events, until its URL is set anew. False: it has another by now."""
    is_it = (project.c.id == project_id) & (project.c.webhook_url == url)
    turned = conn.execute(update(project).where(is_it).values(webhook_off_reason=reason))
    return turned.rowcount == 1


def redeliver(conn: Connection, project_id: str | None, which: str, now: float) -> bool:
    """Try the event of that id, or of the call of that id, from the start again; at once.

    `project_id` None looks in all projects. False: there is no such event.
    """
    found = conn.execute(
        update(webhook_event)
        .where(
            or_(webhook_event.c.id == which, webhook_event.c.call_id == which),
            true() if project_id is None else webhook_event.c.project_id == project_id,
        )
        .values(state=PENDING, due_at=now, tries=0)
    )
    return found.rowcount == 1


def history(
    conn: Connection, project_id: str | None = None, call_id: str | None = None, limit: int = 100
) -> list[Event]:
    """The last `limit` events, the newest first, with what was tried for each."""
    wanted = select(webhook_event).order_by(webhook_event.c.id.desc()).limit(limit)
    if project_id is not None:
        wanted = wanted.where(webhook_event.c.project_id == project_id)
    if call_id is not None:
        wanted = wanted.where(webhook_event.c.call_id == call_id)
    events = conn.execute(wanted).all()
    tried: dict[str, list[DeliveryAttempt]] = {row.id: [] for row in events}
    rows = [row for ids in in_chunks(tried) for row in conn.execute(_TRIES, ids)]
    for row in rows:
        tried[row.event_id].append(
            DeliveryAttempt(
                event_id=row.event_id,
                at=row.at,
                seconds=row.seconds,
                delivered=row.status_code is not None and row.status_code // 100 == 2,
                status_code=row.status_code,
                error=row.error,
            )
        )
    return [Event(**row._mapping, tried=tuple(tried[row.id])) for row in events]


def backlog(conn: Connection) -> int:
    """How many events are still to be delivered, those of projects whose URL is off included."""
    count: int = conn.execute(_BACKLOG).scalar_one()
    return count


def _turns(conn: Connection, now: float, most: int, after: str, full: Sequence[str]) -> list[str]:
    """Projects with due events that have their turn, at most so many, in its order."""
    with_due = _WITH_DUE[conn.dialect.name]
    wanted = {"now": now, "most": most, "full": [(one,) for one in full]}
    turns = [row.value for row in with_due.rows(conn, {**wanted, "after": after})]
    if after and len(turns) < most:
        first = [row.value for row in with_due.rows(conn, {**wanted, "after": ""})]
        turns += [project_id for project_id in first if project_id <= after]
    return turns[:most]


def _due(conn: Connection, now: float, shares: Mapping[str, int]) -> list[Delivery]:
    """The events of these projects that are due longest, at most each one's share, in order."""
    asked = [(project_id,) for project_id in shares]
    wanted = {"now": now, "asked": asked, "most": max(shares.values())}
    found: dict[str, list[Any]] = {project_id: [] for project_id in shares}
    for row in _DUE[conn.dialect.name].rows(conn, wanted):
        if row.event_id is not None:
            found[row.project_id].append(row)
    for rows in found.values():
        rows.sort(key=lambda row: (row.due_at, row.event_id))  # neither database promises one
    return [_delivery(row) for key, rows in found.items() for row in rows[: shares[key]]]


def _delivery(row: Any) -> Delivery:
    return Delivery(
        event_id=row.event_id,
        project_id=row.project_id,
        url=row.webhook_url,
        secret=row.webhook_secret,
        tries=row.tries + 1,
        call_id=row.call_id,
        campaign_id=row.campaign_id,
        status=CallStatus(row.status),
        bill_seconds=row.bill_seconds,
        phone_number=row.phone_number,
        requested_at=row.requested_at,
        price=row.price,
    )


_Id: Final = webhook_event.c.id.type
_now: BindParameter[float] = bindparam("now", type_=webhook_event.c.due_at.type)
_is_on = and_(
    project.c.webhook_url.is_not(None),
    project.c.webhook_secret.is_not(None),
    project.c.webhook_off_reason.is_(None),
)


def _with_due_in_sqlite() -> Statement:
    waiting = loose_index_scan(webhook_event.c.project_id, is_untold)
    first_due = (
        select(func.min(webhook_event.c.due_at))
        .where(webhook_event.c.project_id == waiting.c.value, is_untold)
        .scalar_subquery()
    )
    return _of_projects(waiting, first_due <= _now)


def _with_due_in_postgresql() -> Statement:
    # As `turns` has it: a project's first due time comes with the look that finds the project.
    found = select(_first_after(bindparam("after")).subquery()).cte("found", recursive=True)
    following = _first_after(found.c.value).lateral("following")
    found = found.union_all(select(following).select_from(found.join(following, true())))
    return _of_projects(found, found.c.due_at <= _now)


def _first_after(project_id: ColumnElement[Any]) -> Select[Any]:
    return (
        select(webhook_event.c.project_id.label("value"), webhook_event.c.due_at)
        .where(is_untold, webhook_event.c.project_id > project_id)
        .order_by(webhook_event.c.project_id, webhook_event.c.due_at)
        .limit(literal_column("1"))
    )


def _of_projects(found: CTE, is_due: ColumnElement[bool]) -> Statement:
    """Those of the projects found that have their turn."""
    full = select(values_parameter("full", id=_Id).c.id)
    is_on: Select[Any] = select(literal_column("1")).where(project.c.id == found.c.value, _is_on)
    return Statement(
        select(found.c.value)
        .where(is_due, found.c.value.not_in(full), is_on.scalar_subquery().is_not(None))
        .limit(bindparam("most"))
    )


_asked = values_parameter("asked", id=_Id)
_event_columns = (
    webhook_event.c.id.label("event_id"),
    webhook_event.c.project_id,
    webhook_event.c.due_at,
    webhook_event.c.tries,
    webhook_event.c.call_id,
)
_other_columns = (
    project.c.webhook_url,
    project.c.webhook_secret,
    call.c.campaign_id,
    call.c.status,
    call.c.bill_seconds,
    call.c.phone_number,
    call.c.requested_at,
    call.c.price,
)


def _longest_due(events: FromClause) -> Select[Any]:
    return (
        select()
        .where(events.c.project_id == _asked.c.id, events.c.due_at <= _now)
        .order_by(events.c.due_at, events.c.id)
        .correlate(_asked)
    )


def _due_in_sqlite() -> Statement:
    # SQLite begins an outer join on its left, always: with the projects, and not with all events.
    events = webhook_event.alias("one")
    rowids = _longest_due(events).add_columns(literal_column("one.rowid")).limit(bindparam("most"))
    of_projects = (
        _asked.join(project, project.c.id == _asked.c.id)
        .outerjoin(webhook_event, literal_column("webhook_event.rowid").in_(rowids))
        .outerjoin(call, call.c.id == webhook_event.c.call_id)
    )
    return Statement(select(*_event_columns, *_other_columns).select_from(of_projects))


def _due_in_postgresql() -> Statement:
    # The constant tells PostgreSQL to follow the index, as in `turns`.
    few = (
        _longest_due(webhook_event)
        .add_columns(*_event_columns)
        .limit(literal_column(str(CHUNK)))
        .with_for_update(skip_locked=True, of=webhook_event)
        .lateral("few")
    )
    due = select(few).limit(bindparam("most")).lateral("due")
    of_projects = (
        _asked.join(project, project.c.id == _asked.c.id)
        .join(due, true())
        .join(call, call.c.id == due.c.call_id)
    )
    return Statement(select(*due.c, *_other_columns).select_from(of_projects))


_WITH_DUE: Final = {"sqlite": _with_due_in_sqlite(), "postgresql": _with_due_in_postgresql()}
_DUE: Final = {"sqlite": _due_in_sqlite(), "postgresql": _due_in_postgresql()}
_LEASE: Final = Statement(
    update(webhook_event)
    .where(webhook_event.c.id.in_(select(values_parameter("leased", id=_Id).c.id)))
    .values(due_at=bindparam("until"), tries=webhook_event.c.tries + 1)
)
_tries = values_parameter(
    "tries",
    **{
        name: webhook_try.c[name].type
        for name in ("id", "event_id", "at", "status_code", "error", "seconds")
    },
)
_WRITE_TRIES: Final = Statement(
    # An event may have been deleted with its project while it was delivered.
    insert(webhook_try).from_select(
        list(_tries.c.keys()),
        select(*_tries.c).join(webhook_event, webhook_event.c.id == _tries.c.event_id),
    )
)
_DELIVERED: Final = Statement(
    update(webhook_event)
    .where(webhook_event.c.id.in_(select(values_parameter("delivered", id=_Id).c.id)))
    .values(state=DELIVERED, due_at=null())
)
_is_pending = webhook_event.c.state == PENDING
_again = values_parameter("again", id=_Id, due_at=webhook_event.c.due_at.type)
_AGAIN: Final = Statement(
    update(webhook_event)
    .where(webhook_event.c.id == _again.c.id, _is_pending)
    .values(due_at=_again.c.due_at)
)
_GIVE_UP: Final = Statement(
    update(webhook_event)
    .where(webhook_event.c.id.in_(select(values_parameter("given_up", id=_Id).c.id)), _is_pending)
    .values(state=GIVEN_UP, due_at=null())
)
_TRIES = (
    select(webhook_try)
    .where(webhook_try.c.event_id.in_(bindparam("ids", expanding=True)))
    .order_by(webhook_try.c.id)
)
_BACKLOG = select(func.count()).select_from(webhook_event).where(is_untold)
