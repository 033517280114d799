"""The body of a webhook: the JSON that is posted when a call has reached its final status."""

from __future__ import annotations

from bitel import exact_json
from bitel.store.webhooks import Delivery

CONTENT_TYPE = "application/json"


def body(delivery: Delivery, requested_at: float) -> bytes:
    """The event of one call, the same bytes on every try.

    `requested_at` is when the call was placed, in Unix seconds of the system clock.
    """
    event = {
        "requestId": delivery.call_id,
        "campaignId": delivery.campaign_id,  # null for a single call
        "cause": delivery.status.name,
        "billSec": delivery.bill_seconds,
        "number": delivery.phone_number,  # as the client wrote it
        "requestDate": int(requested_at),
        "balanceSubtracted": abs(delivery.price),  # never -0
    }
    return exact_json.dumps(event).encode()
