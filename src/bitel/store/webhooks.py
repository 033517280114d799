"""Outbox of webhook events, which are kept until they are delivered or given up.

`endings.end_calls` writes an event in the transaction that ends a call, and `call_events` one for
each state that the call asks for. An event goes to the webhook that the call's request named, else
to that of its project; both are signed with the project's secret. A deliverer leases events: while
one is in flight, its `due_at` is the end of the lease, so that a crash delays events but loses
none.

Any number of deliverers may work at once. A claim locks its events, a result counts only for the
lease that it belongs to (the number of tries identifies it), and an event waits while another
deliverer has an earlier one of its call.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from bitel.domain.calls import CallStatus
from bitel.domain.ids import new_id
from bitel.store.event_rows import has_webhook
from bitel.store.fair_queue import NONE_TAKEN, FairQueue
from bitel.store.schema import (
    DELIVERED,
    GIVEN_UP,
    PENDING,
    call,
    is_undelivered,
    project,
    webhook,
    webhook_event,
    webhook_try,
)
from bitel.store.sql_batch import Statement, in_chunks, is_among, values_parameter

_LOOKS: Final = 5
"""Queries of one claim: further ones replace events whose webhook is off."""

LEASE: Final = 60.0
"""Seconds after which an event that was claimed may be claimed again."""

WAIT_FOR_EARLIER: Final = 1.0
"""Seconds until an event is looked at again while another deliverer has an earlier one."""


class CallOver(NamedTuple):
    """The content of the event at the end of a call."""

    campaign_id: str | None
    status: CallStatus
    bill_seconds: int
    phone_number: str
    requested_at: float
    price: Decimal


class Snapshot(NamedTuple):
    """The content of an event that has a type: the stored values of a call or a campaign."""

    type: str
    values: str
    """As `call_events.from_snapshot` or `event_rows.campaign_from_snapshot` reads them."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event that its deliverer, and no other, may try until the lease is over."""

    event_id: str
    project_id: str
    url: str
    secret: str
    tries: int
    """How many tries were begun, this one included."""
    created_at: float
    """When it happened, in Unix seconds."""
    call_id: str | None
    """None: it is an event of a campaign."""
    content: CallOver | Snapshot
    leased_until: float
    """When another deliverer may claim it, in Unix seconds."""
    webhook_id: str | None = None
    """The webhook that its request named; None: it goes to that of the project."""

    @property
    def about(self) -> str:
        """The id of the call, or of the event itself where it is a campaign's."""
        return self.call_id or self.event_id


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
    number: int = 0
    """`Delivery.tries` of its claim; 0 for one that is read."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event and its tries, the first one first."""

    id: str
    project_id: str
    type: str
    """As in `domain.webhooks`; empty: the end of a call."""
    call_id: str | None
    """None: it is an event of a campaign."""
    campaign_id: str | None
    """None: it is an event of a call."""
    webhook_id: str | None
    """The webhook that its request named; None: it goes to that of the project."""
    created_at: float
    due_at: float | None
    """When it is tried next; None: not any more."""
    tries: int
    """How many were begun; one that a crash interrupted is not in `tried`."""
    state: str
    """pending, delivered or given up."""
    tried: tuple[DeliveryAttempt, ...] = ()


def _is_on(project_id: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    """The project's own webhook is on, or one that its requests named."""
    named = sa.exists().where(webhook.c.project_id == project_id, webhook.c.off_reason.is_(None))
    found: sa.Select[Any] = sa.select(sa.literal_column("1")).where(
        project.c.id == project_id,
        project.c.webhook_secret.is_not(None),
        sa.or_(has_webhook, named),
    )
    return found.scalar_subquery().is_not(None)


_QUEUE: Final = FairQueue(
    webhook_event,
    columns=tuple(
        webhook_event.c[
            "id",
            "project_id",
            "due_at",
            "tries",
            "call_id",
            "created_at",
            "type",
            "webhook_id",
            "body",
        ]
    ),
    joined=(
        sa.case((has_webhook, project.c.webhook_url)).label("project_url"),
        sa.case((webhook.c.off_reason.is_(None), webhook.c.url)).label("own_url"),
        project.c.webhook_secret,
        *call.c["campaign_id", "status", "bill_seconds", "phone_number", "requested_at", "price"],
    ),
    joins=lambda event: (
        (project, project.c.id == event.c.project_id),
        (call, call.c.id == event.c.call_id),
        (webhook, webhook.c.id == event.c.webhook_id),
    ),
    may_have_turn=_is_on,
)
_TURN_OFF: Final = (
    sa.update(webhook)
    .where(webhook.c.id == sa.bindparam("of_webhook"))
    .values(off_reason=sa.bindparam("reason"))
)
_LEASE: Final = Statement(
    sa.update(webhook_event)
    .where(is_among(webhook_event.c.id, "leased"))
    .values(
        due_at=sa.bindparam("until"),
        leased_until=sa.bindparam("until"),
        tries=webhook_event.c.tries + 1,
    )
)
_EARLIER: Final = Statement(
    sa.select(*webhook_event.c["id", "call_id"]).where(
        is_among(webhook_event.c.call_id, "calls"),
        is_undelivered,
        sa.or_(
            webhook_event.c.leased_until > sa.bindparam("now"),
            # Another transaction may be claiming it, or it waits for one before it.
            sa.and_(webhook_event.c.tries == 0, webhook_event.c.due_at <= sa.bindparam("soon")),
        ),
    )
)
_WAIT: Final = Statement(
    sa.update(webhook_event)
    .where(is_among(webhook_event.c.id, "waiting"))
    .values(due_at=sa.bindparam("until"))
)

PARKED: Final = 900.0
"""Seconds until an event is looked at again whose webhook is off, while its project has others."""

_MOST_PARKED: Final = 2000
_OF_WEBHOOK: Final = (
    sa.select(webhook_event.c.id)
    .where(
        webhook_event.c.project_id == sa.bindparam("of_project"),
        sa.func.coalesce(webhook_event.c.webhook_id, "") == sa.bindparam("of_webhook"),
        is_undelivered,
        webhook_event.c.due_at <= sa.bindparam("now"),
    )
    .order_by(webhook_event.c.project_id, webhook_event.c.due_at, webhook_event.c.id)
    .limit(sa.bindparam("most", type_=sa.BigInteger()))
)
_POSTPONE: Final = (
    sa.update(webhook_event)
    .where(webhook_event.c.id.in_(_OF_WEBHOOK))
    .values(due_at=sa.bindparam("until"))
)
_GIVE_UP: Final = (
    sa.update(webhook_event)
    .where(webhook_event.c.id.in_(_OF_WEBHOOK))
    .values(state=GIVEN_UP, due_at=None)
)


def _set_aside(conn: Connection, off: Collection[tuple[str, str | None]], now: float) -> None:
    """Take due events out of the way whose webhook, by project and id, is off.

    Those of a project's webhook wait until it is on again; those of a request's are given up.
    """
    for project_id, webhook_id in off:
        these = {"of_project": project_id, "of_webhook": webhook_id or "", "now": now,
                 "most": _MOST_PARKED}  # fmt: skip
        if webhook_id is None:
            conn.execute(_POSTPONE, {**these, "until": now + PARKED})
        else:
            conn.execute(_GIVE_UP, these)


def claim_due(
    conn: Connection,
    now: float,
    limit_per_project: int,
    limit: int,
    *,
    lease: float = LEASE,
    in_flight: Mapping[str, int] = NONE_TAKEN,
    own: Collection[str] = (),
    after_project: str = "",
) -> list[Delivery]:
    """Lease up to `limit` due events, the longest due of each project first.

    One whose call has an earlier event with another deliverer has to wait; `own` are the ids of
    events that the caller has leased, and delivers in order by itself.

    Projects take turns, beginning after `after_project`: pass the project of the last delivery.
    Each gets up to `limit_per_project`, those it has `in_flight` already included. Projects without
    a webhook that is on have no turn.
    """
    full = [key for key, count in in_flight.items() if count >= limit_per_project]
    for _ in range(_LOOKS):
        rows = _QUEUE.pick(
            conn, {}, limit, now, after_project, full, most_each=limit_per_project, taken=in_flight
        )
        off = {(row.project_id, row.webhook_id) for row in rows if _url(row) is None}
        if not off:
            break
        _set_aside(conn, off, now)
    rows = _in_order(conn, [row for row in rows if _url(row) is not None], own, now)
    if rows:
        _LEASE.run(conn, {"leased": [(row.id,) for row in rows], "until": now + lease})
    return [
        Delivery(
            event_id=row.id,
            project_id=row.project_id,
            url=_url(row) or "",
            secret=row.webhook_secret,
            tries=row.tries + 1,
            created_at=row.created_at,
            call_id=row.call_id,
            content=_content(row),
            leased_until=now + lease,
            webhook_id=row.webhook_id,
        )
        for row in rows
    ]


def _in_order(conn: Connection, rows: Sequence[Any], own: Collection[str], now: float) -> list[Any]:
    """The rows without those that another deliverer has an earlier event of, which have to wait."""
    calls = sorted({row.call_id for row in rows if row.call_id is not None})
    if not calls:
        return list(rows)
    asked = {"calls": [(each,) for each in calls], "now": now, "soon": now + WAIT_FOR_EARLIER}
    mine = {row.id for row in rows}.union(own)
    first: dict[str, str] = {}
    for each in _EARLIER.rows(conn, asked):
        if each.id not in mine:
            first[each.call_id] = min(each.id, first.get(each.call_id, each.id))
    waiting = {row.id for row in rows if row.call_id in first and first[row.call_id] < row.id}
    if waiting:
        ids = [(each,) for each in sorted(waiting)]
        _WAIT.run(conn, {"waiting": ids, "until": now + WAIT_FOR_EARLIER})
    return [row for row in rows if row.id not in waiting]


def _url(row: Any) -> str | None:
    """Where an event goes; None if that is off."""
    url: str | None = row.project_url if row.webhook_id is None else row.own_url
    return url


def _content(row: Any) -> CallOver | Snapshot:
    if row.type:
        return Snapshot(row.type, row.body)
    return CallOver(
        row.campaign_id,
        CallStatus(row.status),
        row.bill_seconds,
        row.phone_number,
        row.requested_at,
        row.price,
    )


_tries = values_parameter("tries", *webhook_try.c)
_WRITE_TRIES: Final = Statement(
    # An event may have been deleted with its project while it was delivered.
    sa.insert(webhook_try).from_select(
        list(_tries.c.keys()),
        sa.select(*_tries.c).join(webhook_event, webhook_event.c.id == _tries.c.event_id),
    )
)
_results = values_parameter("results", *webhook_event.c["id", "state", "due_at", "tries"])
_WRITE_STATES: Final = Statement(
    sa.update(webhook_event)
    .where(
        webhook_event.c.id == _results.c.id,
        sa.or_(
            # A failure that comes after the end of its lease says nothing about the try after it.
            sa.and_(webhook_event.c.state == PENDING, webhook_event.c.tries == _results.c.tries),
            _results.c.state == DELIVERED,
        ),
    )
    .values(state=_results.c.state, due_at=_results.c.due_at, leased_until=sa.null())
)


def record(conn: Connection, tried: Sequence[DeliveryAttempt]) -> None:
    """Write results of tries.

    A failure changes neither an event that was delivered nor one that was claimed again since.
    """
    if not tried:
        return
    tries = [
        (new_id(one.at), one.event_id, one.at, one.status_code, one.error, one.seconds)
        for one in tried  # in the order of the table's columns
    ]
    _WRITE_TRIES.run(conn, {"tries": tries})
    # Of several results of one event, a delivery takes precedence.
    results = {
        one.event_id: (one.event_id, *_state_after(one), one.number)
        for one in sorted(tried, key=lambda one: (one.delivered, one.number))
    }
    _WRITE_STATES.run(conn, {"results": list(results.values())})


def _state_after(attempt: DeliveryAttempt) -> tuple[str, float | None]:
    """The event's state and when it is due."""
    if attempt.delivered:
        return DELIVERED, None
    return (PENDING, attempt.next_due) if attempt.next_due else (GIVEN_UP, None)


def turn_off(
    conn: Connection, project_id: str, url: str, reason: str, webhook_id: str | None = None
) -> bool:
    """Stop the events of a webhook. False: the project has another URL now.

    Those of a project wait until its URL is set again. Those of a webhook that a request named are
    given up; another request that names it turns it on again.
    """
    if webhook_id is not None:
        conn.execute(_TURN_OFF, {"of_webhook": webhook_id, "reason": reason})
        these = {"of_project": project_id, "of_webhook": webhook_id, "now": math.inf}
        conn.execute(_GIVE_UP, {**these, "most": sys.maxsize})
        return True
    is_it = (project.c.id == project_id) & (project.c.webhook_url == url)
    turned = conn.execute(sa.update(project).where(is_it).values(webhook_off_reason=reason))
    return turned.rowcount == 1


def redeliver(conn: Connection, project_id: str | None, which: str, now: float) -> bool:
    """Make the event of that id, or those of the call or campaign of that id, due at once.

    Their tries are counted anew. A webhook that a request named, and its receiver has turned off,
    is on again. `project_id` None searches all projects. False: there is no such event.
    """
    event = webhook_event.c
    these = (
        sa.or_(event.id == which, event.call_id == which, event.campaign_id == which),
        sa.true() if project_id is None else event.project_id == project_id,
    )
    found = conn.execute(
        sa.update(webhook_event).where(*these).values(state=PENDING, due_at=now, tries=0)
    )
    own = sa.select(event.webhook_id).where(*these, event.webhook_id.is_not(None))
    conn.execute(sa.update(webhook).where(webhook.c.id.in_(own)).values(off_reason=None))
    return found.rowcount > 0


_TRIES = (
    sa.select(webhook_try)
    .where(webhook_try.c.event_id.in_(sa.bindparam("ids", expanding=True)))
    .order_by(webhook_try.c.id)
)


def history(
    conn: Connection, project_id: str | None = None, call_id: str | None = None, limit: int = 100
) -> list[Event]:
    """The last `limit` events, the newest first, with their tries."""
    columns = [each for each in webhook_event.c if each.name not in ("body", "leased_until")]
    wanted = sa.select(*columns).order_by(webhook_event.c.id.desc()).limit(limit)
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
