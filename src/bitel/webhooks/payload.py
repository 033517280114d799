"""The bodies of webhooks: the JSON that is posted about a call or a campaign.

A body has the same bytes on every try, since it is made of stored values only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bitel import exact_json
from bitel.domain.call_json import call_details_answer
from bitel.domain.campaign_json import campaign_answer
from bitel.domain.webhooks import CAMPAIGN_FINISHED
from bitel.store import call_events, event_rows
from bitel.store.webhooks import CallOver, Delivery, Snapshot

CONTENT_TYPE = "application/json"

DateOf = Callable[[float], float]


def body(delivery: Delivery, date: DateOf) -> bytes:
    """The body of an event.

    `date` gives what the system clock showed at a stored time, both in Unix seconds. Raises
    ValueError, KeyError or TypeError for an event whose stored values can't be read.
    """
    content = delivery.content
    if isinstance(content, CallOver):
        event = _call_over(delivery.call_id, content, date)
    else:
        event = {
            "type": content.type,
            "date": int(date(delivery.created_at)),
            "data": _data(content, date),
        }
    # A lone surrogate has no UTF-8 form; "backslashreplace" writes it as JSON does.
    return exact_json.dumps(event).encode("utf-8", "backslashreplace")


def _call_over(call_id: str | None, over: CallOver, date: DateOf) -> dict[str, Any]:
    return {
        "requestId": call_id,
        "campaignId": over.campaign_id,  # null for a single call
        "cause": over.status.name,
        "billSec": over.bill_seconds,
        "number": over.phone_number,  # as the client wrote it
        "requestDate": int(date(over.requested_at)),
        "balanceSubtracted": abs(over.price),  # never -0
    }


def _data(snapshot: Snapshot, date: DateOf) -> dict[str, Any]:
    """The call as `GET /api/v2/voice/calls/{id}` had it, or the campaign."""
    if snapshot.type == CAMPAIGN_FINISHED:
        state = event_rows.campaign_from_snapshot(snapshot.values)
        return campaign_answer(state, date, date(state.finished_at))
    return call_details_answer(call_events.from_snapshot(snapshot.values), date)
