"""Outbox of webhook events: one per finished call, kept until it is delivered or given up.

`endings.end_calls` writes an event in the transaction that ends its call. A deliverer leases
events: while one is in flight, its `due_at` is the end of the lease, so that a crash delays events
but loses none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection

from bitel.domain.calls import CallStatus
from bitel.domain.ids import new_id
from bitel.store.fair_queue import NONE_TAKEN, FairQueue
from bitel.store.schema import (
    DELIVERED,
    GIVEN_UP,
    PENDING,
    call,
    project,
    webhook_event,
    webhook_try,
)
from bitel.store.sql_batch import Statement, in_chunks, is_among, values_parameter

LEASE: Final = 60.0
"""Seconds after which an event that was claimed may be claimed again."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event that its deliverer, and no other, may try until the lease is over."""

    event_id: str
    project_id: str
    url: str
    secret: str
    tries: int
    """How many tries were begun, this one included."""
    call_id: str
    campaign_id: str | None
    status: CallStatus
    bill_seconds: int
    phone_number: str
    requested_at: float
    price: Decimal


@dataclass(frozen=True, slots=True)
class DeliveryAttempt:
    """One try to deliver an event. `at` is in Unix seconds, `seconds` is its duration."""

    event_id: str
    at: float
    seconds: float
    delivered: bool
    status_code: int | None = None
    error: str = ""
    """The failure in a few words; empty where there was an answer."""
    next_due: float | None = None
    """When to try again; None gives the event up, unless it was delivered."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event and its tries, the first one first."""

    id: str
    project_id: str
    call_id: str
    created_at: float
    due_at: float | None
    """When it is tried next; None: not any more."""
    tries: int
    """How many were begun; one that a crash interrupted is not in `tried`."""
    state: str
    """pending, delivered or given up."""
    tried: tuple[DeliveryAttempt, ...] = ()


def _is_on(project_id: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    found: sa.Select[Any] = sa.select(sa.literal_column("1")).where(
        project.c.id == project_id,
        project.c.webhook_url.is_not(None),
        project.c.webhook_secret.is_not(None),
        project.c.webhook_off_reason.is_(None),
    )
    return found.scalar_subquery().is_not(None)


_QUEUE: Final = FairQueue(
    webhook_event,
    columns=tuple(webhook_event.c["id", "project_id", "due_at", "tries", "call_id"]),
    joined=(
        *project.c["webhook_url", "webhook_secret"],
        *call.c["campaign_id", "status", "bill_seconds", "phone_number", "requested_at", "price"],
    ),
    joins=lambda event: (
        (project, project.c.id == event.c.project_id),
        (call, call.c.id == event.c.call_id),
    ),
    may_have_turn=_is_on,
)
_LEASE: Final = Statement(
    sa.update(webhook_event)
    .where(is_among(webhook_event.c.id, "leased"))
    .values(due_at=sa.bindparam("until"), tries=webhook_event.c.tries + 1)
)


def claim_due(
    conn: Connection,
    now: float,
    limit_per_project: int,
    limit: int,
    *,
    lease: float = LEASE,
    in_flight: Mapping[str, int] = NONE_TAKEN,
    after_project: str = "",
) -> list[Delivery]:
    """Lease up to `limit` due events, the longest due of each project first.

    Projects take turns, beginning after `after_project`: pass the project of the last delivery.
    Each gets up to `limit_per_project`, those it has `in_flight` already included. Projects whose
    URL is off have no turn.
    """
    full = [key for key, count in in_flight.items() if count >= limit_per_project]
    rows = _QUEUE.pick(
        conn, {}, limit, now, after_project, full, most_each=limit_per_project, taken=in_flight
    )
    if rows:
        _LEASE.run(conn, {"leased": [(row.id,) for row in rows], "until": now + lease})
    return [
        Delivery(
            event_id=row.id,
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
        for row in rows
    ]


_tries = values_parameter("tries", *webhook_try.c)
_WRITE_TRIES: Final = Statement(
    # An event may have been deleted with its project while it was delivered.
    sa.insert(webhook_try).from_select(
        list(_tries.c.keys()),
        sa.select(*_tries.c).join(webhook_event, webhook_event.c.id == _tries.c.event_id),
    )
)
_results = values_parameter("results", *webhook_event.c["id", "state", "due_at"])
_WRITE_STATES: Final = Statement(
    sa.update(webhook_event)
    .where(
        webhook_event.c.id == _results.c.id,
        sa.or_(webhook_event.c.state == PENDING, _results.c.state == DELIVERED),
    )
    .values(state=_results.c.state, due_at=_results.c.due_at)
)


def record(conn: Connection, tried: Sequence[DeliveryAttempt]) -> None:
    """Write results of tries. A failure does not change an event that was delivered."""
    if not tried:
        return
    tries = [
        (new_id(one.at), one.event_id, one.at, one.status_code, one.error, one.seconds)
        for one in tried  # in the order of the table's columns
    ]
    _WRITE_TRIES.run(conn, {"tries": tries})
    # Of several results of one event, a delivery takes precedence.
    results = {
        one.event_id: (one.event_id, *_state_after(one))
        for one in sorted(tried, key=lambda one: one.delivered)
    }
    _WRITE_STATES.run(conn, {"results": list(results.values())})


def _state_after(attempt: DeliveryAttempt) -> tuple[str, float | None]:
    """The event's state and when it is due."""
    if attempt.delivered:
        return DELIVERED, None
    return (PENDING, attempt.next_due) if attempt.next_due else (GIVEN_UP, None)


def turn_off(conn: Connection, project_id: str, url: str, reason: str) -> bool:
    """Stop the events of a project until its URL is set again. False: it has another URL now."""
    is_it = (project.c.id == project_id) & (project.c.webhook_url == url)
    turned = conn.execute(sa.update(project).where(is_it).values(webhook_off_reason=reason))
    return turned.rowcount == 1


def redeliver(conn: Connection, project_id: str | None, which: str, now: float) -> bool:
    """Make the event of that id, or of the call of that id, due at once with no tries.

    `project_id` None searches all projects. False: there is no such event.
    """
    found = conn.execute(
        sa.update(webhook_event)
        .where(
            sa.or_(webhook_event.c.id == which, webhook_event.c.call_id == which),
            sa.true() if project_id is None else webhook_event.c.project_id == project_id,
        )
        .values(state=PENDING, due_at=now, tries=0)
    )
    return found.rowcount == 1


_TRIES = (
    sa.select(webhook_try)
    .where(webhook_try.c.event_id.in_(sa.bindparam("ids", expanding=True)))
    .order_by(webhook_try.c.id)
)


def history(
    conn: Connection, project_id: str | None = None, call_id: str | None = None, limit: int = 100
) -> list[Event]:
    """The last `limit` events, the newest first, with their tries."""
    wanted = sa.select(webhook_event).order_by(webhook_event.c.id.desc()).limit(limit)
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
