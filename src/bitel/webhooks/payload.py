"""What an event says: the JSON that is posted when a call has reached its final status."""

from __future__ import annotations

from decimal import Decimal

from bitel import exact_json
from bitel.domain.calls import CallStatus

CONTENT_TYPE = "application/json"


def body(
    *,
    call_id: str,
    campaign_id: str | None,
    status: CallStatus,
    bill_seconds: int,
    phone_number: str,
    requested_at: float,
    price: Decimal,
) -> bytes:
    """The event of one call, as bytes that are the same on every try.

    `campaign_id` is None for a single call, `phone_number` is as the client wrote it, `price` is
    what the call cost: zero or positive.
    """
    event = {
        "requestId": call_id,
        "campaignId": campaign_id,
        "cause": status.name,
        "billSec": bill_seconds,
        "number": phone_number,
        "requestDate": int(requested_at),
        "balanceSubtracted": abs(price),
    }
    return exact_json.dumps(event).encode()
