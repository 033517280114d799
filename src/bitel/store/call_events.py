"""Events of attempts, written in the transaction of what they say, with the call as it is then.

An event is written once for each fact, since a fact is written once. The body is a snapshot of the
stored values, from which `webhooks/payload.py` makes the JSON, the same at each try.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from decimal import Decimal
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from bitel.domain.attempts import Outcome
from bitel.domain.call_json import AttemptDetails, CallDetails
from bitel.domain.calls import Call, CallStatus
from bitel.domain.webhooks import CALL_COMPLETED
from bitel.store import call_details, event_rows
from bitel.store.event_rows import NewEvent, project_events
from bitel.store.schema import call, project
from bitel.store.sql_batch import Statement, is_among


class CallEvent(NamedTuple):
    """What has happened in an attempt of a call, at a time in Unix seconds."""

    type: str
    call_id: str
    project_id: str
    webhook_id: str | None
    at: float


def write(conn: Connection, events: Sequence[CallEvent]) -> None:
    """Write these events; what they say must be written already."""
    if not events:
        return
    found = call_details.find_many(conn, {event.call_id for event in events})
    bodies = {call_id: snapshot(details) for call_id, details in found.items()}
    event_rows.write(
        conn,
        [
            NewEvent(
                event.project_id,
                event.webhook_id,
                event.call_id,
                None,
                event.type,
                bodies[event.call_id],
                event.at,
            )
            for event in events
        ],
    )


_ASKING: Final = Statement(
    sa.select(*call.c["id", "project_id", "webhook_id"], project_events)
    .join(project)
    .where(
        is_among(call.c.id, "ids"),
        sa.or_(call.c.webhook_id.is_not(None), project.c.webhook_events.is_not(None)),
    )
)


def write_completed(conn: Connection, call_ids: Collection[str], now: float) -> None:
    """Write that attempts of these calls are over, for the calls that ask for it.

    For attempts that end otherwise than by `settling`, which reads what calls ask for anyway.
    """
    if not call_ids:
        return
    rows = _ASKING.rows(conn, {"ids": [(each,) for each in sorted(call_ids)]})
    own = event_rows.own_types(conn, rows)
    asking = [row for row in rows if CALL_COMPLETED in event_rows.types_of(row, own)]
    write(
        conn,
        [CallEvent(CALL_COMPLETED, row.id, row.project_id, row.webhook_id, now) for row in asking],
    )


def snapshot(details: CallDetails) -> str:
    """The stored values of a call and its attempts as text; `from_snapshot` reads it."""
    values = asdict(details)
    for each in values["attempts"]:
        if not each["reports"]:
            del each["reports"]  # which the version before can't read, and few calls have
    return event_rows.as_text(values)


def from_snapshot(text: str) -> CallDetails:
    """The call and its attempts as they were. Raises ValueError, KeyError or TypeError."""
    values = json.loads(text)
    one: Mapping[str, Any] = values["call"]
    status, price = CallStatus(one["status"]), Decimal(one["price"])
    return CallDetails(
        Call(**{**one, "status": status, "price": price}),
        values["reference"],
        [_attempt(each) for each in values["attempts"]],
    )


def _attempt(values: Mapping[str, Any]) -> AttemptDetails:
    outcome = values["outcome"]
    return AttemptDetails(**{**values, "outcome": None if outcome is None else Outcome(outcome)})


def without_numbers(text: str) -> str:
    """A snapshot of a call without its number, its reference and the keys that were pressed."""
    values = json.loads(text)
    values["call"]["phone_number"] = ""
    values["reference"] = None
    for each in values["attempts"]:
        each["keys"] = ""
        each.pop("reports", None)
    return event_rows.as_text(values)
