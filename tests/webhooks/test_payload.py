"""The event as receivers get it."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal

import pytest

from bitel.api.webhook_document import CallEndEvent
from bitel.domain.calls import CallStatus
from bitel.store.webhooks import CallOver, Delivery
from bitel.webhooks import payload

OVER = CallOver(
    campaign_id="0197b2a4c1d07e63a5f81c0d9be24f18",
    status=CallStatus.NORMAL,
    bill_seconds=12,
    phone_number="۰۹۱۲ 1234567",
    requested_at=1.0,
    price=Decimal("34.2000"),
)
DELIVERY = Delivery(
    event_id="e",
    project_id="p",
    url="https://example.com/",
    secret="s",
    tries=1,
    created_at=2.0,
    call_id="0197b2a4c1d07e63a5f81c0d9be24f17",
    content=OVER,
    leased_until=62.0,
)


def test_an_event_has_the_keys_of_the_contract_in_order() -> None:
    body = payload.body(DELIVERY, lambda at: at + 1564640749.9)
    assert list(json.loads(body).items()) == [
        ("requestId", "0197b2a4c1d07e63a5f81c0d9be24f17"),
        ("campaignId", "0197b2a4c1d07e63a5f81c0d9be24f18"),
        ("cause", "NORMAL"),
        ("billSec", 12),
        ("number", "۰۹۱۲ 1234567"),
        ("requestDate", 1564640750),
        ("balanceSubtracted", 34.2),
    ]
    assert b'"requestDate":1564640750,' in body


@pytest.mark.parametrize("status", [one for one in CallStatus if one.final])
def test_a_single_call_that_cost_nothing(status: CallStatus) -> None:
    free = OVER._replace(campaign_id=None, status=status, bill_seconds=0, price=Decimal(0))
    body = payload.body(replace(DELIVERY, content=free), float)
    event = json.loads(body)
    assert (event["campaignId"], event["cause"]) == (None, status.name)
    assert (event["balanceSubtracted"], event["billSec"]) == (0.0, 0)
    assert "-0" not in body.decode()


def test_an_event_is_as_the_document_of_the_api_says() -> None:
    posted = json.loads(payload.body(DELIVERY, float))
    assert list(posted) == list(CallEndEvent.model_fields)
    CallEndEvent.model_validate(posted)
