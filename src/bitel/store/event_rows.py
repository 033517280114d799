"""Rows of the webhooks' outbox: which events calls ask for, and the events of calls and campaigns.

A call asks for events by the webhook that its request named (`call.webhook_id`), else by that of
its project. `call_events` writes the events of attempts, `webhooks` delivers.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from decimal import Decimal
from enum import Enum
from typing import Any, Final, NamedTuple, Protocol

import sqlalchemy as sa
from sqlalchemy import Connection

from bitel.domain.calls import CallStatus
from bitel.domain.campaign_json import CampaignState
from bitel.domain.ids import new_ids
from bitel.domain.webhooks import CAMPAIGN_FINISHED, RequestWebhook
from bitel.store.schema import (
    PENDING,
    call,
    campaign,
    campaign_key,
    has_own_webhook,
    is_undelivered,
    project,
    webhook,
    webhook_event,
)
from bitel.store.sql_batch import Statement, in_chunks, is_among, values_parameter

has_webhook = sa.and_(project.c.webhook_url.is_not(None), project.c.webhook_off_reason.is_(None))
"""Events are posted to the project's webhook."""

project_events = sa.case((has_webhook, project.c.webhook_events)).label("webhook_events")
"""The types of events that the project asks for; NULL: only the end of each call."""


class Asking(Protocol):
    """The row of a call that may ask for events."""

    webhook_id: str | None
    """The webhook that its request named."""
    webhook_events: tuple[str, ...] | None
    """`project_events`"""


OwnTypes = Mapping[str, tuple[str, ...]]
"""The types of events that the webhooks of requests ask for; one that is off is missing."""

_OWN_TYPES: Final = Statement(
    sa.select(*webhook.c["id", "events"]).where(
        is_among(webhook.c.id, "asked"), webhook.c.off_reason.is_(None)
    )
)


def own_types(conn: Connection, rows: Iterable[Asking]) -> OwnTypes:
    """What the webhooks ask for that the requests of these calls named; no query if none did."""
    asked = {row.webhook_id for row in rows if row.webhook_id is not None}
    if not asked:
        return {}
    found = _OWN_TYPES.rows(conn, {"asked": [(each,) for each in sorted(asked)]})
    return {row.id: row.events for row in found}


def types_of(row: Asking, own: OwnTypes) -> tuple[str, ...]:
    """The types of events that a call asks for, besides the one at its end."""
    if row.webhook_id is not None:
        return own.get(row.webhook_id, ())
    return row.webhook_events or ()


_NAME: Final = sa.text(
    """
    INSERT INTO webhook (id, project_id, url, events) VALUES (:id, :project_id, :url, :events)
    ON CONFLICT (id) DO UPDATE SET off_reason = NULL WHERE webhook.off_reason IS NOT NULL
    """
).bindparams(sa.bindparam("events", type_=webhook.c.events.type))


def name_webhooks(conn: Connection, named: Iterable[RequestWebhook]) -> None:
    """Store the webhooks that requests name, in the transaction that places their calls.

    One that its receiver had turned off is on again.
    """
    rows = {each.id: each for each in named}
    # In one order, so that transactions do not deadlock.
    for key in sorted(rows):
        one = rows[key]
        values = {"id": key, "project_id": one.project_id, "url": one.url, "events": one.events}
        conn.execute(_NAME, values)


_LOCK_NAMED: Final = (
    sa.select(webhook.c.id)
    .where(webhook.c.id.in_(sa.bindparam("ids", expanding=True)))
    .order_by(webhook.c.id)
    .with_for_update()
)
_is_used = sa.exists(
    sa.select(call.c.id).where(call.c.webhook_id == webhook.c.id, has_own_webhook)
) | sa.exists(
    sa.select(webhook_event.c.id).where(
        webhook_event.c.project_id == webhook.c.project_id,
        webhook_event.c.webhook_id == webhook.c.id,
        is_undelivered,
    )
)
_DELETE_UNUSED: Final = sa.delete(webhook).where(
    webhook.c.id.in_(sa.bindparam("ids", expanding=True)), ~_is_used
)


def delete_unused(conn: Connection, ids: Collection[str]) -> None:
    """Delete those of these webhooks that no call names any more, and no event is to be sent to."""
    for some in in_chunks(sorted(ids)):
        # Locked first: a request that names one again waits, and stores it anew.
        locked = list(conn.execute(_LOCK_NAMED, some).scalars())
        if locked:
            conn.execute(_DELETE_UNUSED, {"ids": locked})


class NewEvent(NamedTuple):
    """An event of a call or of a campaign. `at` is in Unix seconds."""

    project_id: str
    webhook_id: str | None
    call_id: str | None
    campaign_id: str | None
    type: str
    body: str | None
    at: float


_events = values_parameter(
    "events",
    *webhook_event.c[
        "id", "project_id", "webhook_id", "call_id", "campaign_id", "type", "body", "created_at"
    ],
)
_WRITE_EVENTS: Final = Statement(
    sa.insert(webhook_event).from_select(
        [*_events.c.keys(), "due_at", "tries", "state"],
        sa.select(*_events.c, _events.c.created_at, sa.literal(0), sa.literal(PENDING)),
    )
)


def write(conn: Connection, events: Sequence[NewEvent]) -> None:
    """Write events, which are due at once; in the transaction of what they say."""
    if not events:
        return
    # The ids of one moment sort in the order given.
    ids = {at: iter(new_ids(at, len(events))) for at in {event.at for event in events}}
    _WRITE_EVENTS.run(conn, {"events": [(next(ids[event.at]), *event) for event in events]})


_FINISHED: Final = Statement(
    sa.select(campaign).where(
        is_among(campaign.c.id, "campaigns"), campaign.c.finished_at.is_not(None)
    )
)
_KEYS: Final = Statement(
    sa.select(campaign_key).where(is_among(campaign_key.c.campaign_id, "campaigns"))
)
_LATER: Final = 0.002
"""Seconds by which the id of a campaign's end is later, to sort after those of its last call."""


def write_finished(conn: Connection, campaigns: Collection[str], now: float) -> None:
    """Write the events of those campaigns, of which calls have just ended, that are over."""
    asked = {"campaigns": [(each,) for each in sorted(campaigns)]}
    finished = _FINISHED.rows(conn, asked)
    if not finished:
        return
    keys: dict[str, dict[str, int]] = {row.id: {} for row in finished}
    for row in _KEYS.rows(conn, asked):
        if row.campaign_id in keys:
            keys[row.campaign_id][row.key] = row.calls
    ids = new_ids(now + _LATER, len(finished))
    rows = []
    for event_id, row in zip(ids, finished, strict=True):
        body = as_text({**row._asdict(), "keys": keys[row.id]})
        event = NewEvent(row.project_id, row.webhook_id, None, row.id, CAMPAIGN_FINISHED, body, now)
        rows.append((event_id, *event))
    _WRITE_EVENTS.run(conn, {"events": rows})


def campaign_from_snapshot(text: str) -> CampaignState:
    """The campaign of an event as it was. Raises ValueError, KeyError or TypeError."""
    values = json.loads(text)
    by_status = {status: values[status.name.lower()] for status in CallStatus}
    return CampaignState(
        by_status=by_status,
        price=Decimal(values["price"]),
        **{name: values[name] for name in _CAMPAIGN_FIELDS},
    )


_CAMPAIGN_FIELDS: Final = tuple(
    each.name for each in fields(CampaignState) if each.name not in ("by_status", "price")
)


def as_text(snapshot: Mapping[str, Any]) -> str:
    """Stored values as JSON; amounts become text, and enumerations their values."""
    return json.dumps(snapshot, default=_plain, ensure_ascii=False, separators=(",", ":"))


def _plain(value: object) -> object:
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    raise TypeError(f"{value!r} can't be stored in an event")
