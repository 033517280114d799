"""The bodies of webhook events hold numbers and keyed digits, and go with those of their calls."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from bitel.domain.attempts import Media
from bitel.domain.ids import new_id
from bitel.domain.webhooks import EVENT_TYPES, request_webhook
from bitel.maintenance import retention
from bitel.maintenance.retention import DAY, Retention
from bitel.recordings.storage import VoiceStore
from bitel.settings import RetentionSettings
from bitel.store import campaigns, event_rows, project_deletion, webhooks
from bitel.store import retention as store
from bitel.store.campaigns import Campaign
from bitel.store.database import Database
from bitel.store.schema import campaign, ends_call, webhook, webhook_event, webhook_try
from bitel.store.webhooks import Delivery, DeliveryAttempt
from bitel.webhooks import payload
from tests.support.clocks import FakeClock
from tests.support.factories import answered
from tests.support.store_world import World

NUMBER, WRITTEN, KEYED, REFERENCE = "+989121234567", "0912 123 4567", "74185296", "order-73951"


@pytest.fixture
def world(database: Database, clock: FakeClock) -> World:
    made = World.make(database, clock)
    made.change(
        webhook_url="https://example.net/hook",
        webhook_secret="whsec_x",
        webhook_events=EVENT_TYPES,
    )
    return made


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAUSE", "SHORT_PAUSE"):
        monkeypatch.setattr(retention, name, 0.0)


def keeping(world: World, folder: Path, **days: float) -> Retention:
    settings = RetentionSettings(**days)
    voices = VoiceStore.open("", folder)
    return Retention(world.database, voices, lambda: settings, world.clock, world.clock)


def finish(world: World, **more: Any) -> str:
    """A call that was answered, and in which keys were pressed; its events are due."""
    call_id = world.place(e164=NUMBER, phone_number=WRITTEN, reference=REFERENCE, **more)
    lease = world.take_over()
    [claim] = world.claim(lease)
    done = answered(claim)
    media = done.result._replace(media=Media(10, 10, KEYED))
    world.settle(lease, done._replace(result=media))
    return call_id


def claim(world: World) -> list[Delivery]:
    now = world.clock()
    return world.do(lambda conn: webhooks.claim_due(conn, now, 99, 99))


def record(world: World, deliveries: list[Delivery]) -> None:
    now = world.clock()
    tried = [DeliveryAttempt(one.event_id, now, 0.1, True, 200, "", None) for one in deliveries]
    world.do(lambda conn: webhooks.record(conn, tried))


def stored(world: World) -> str:
    """The bodies of all events, as one text."""
    bodies = select(webhook_event.c.body).where(webhook_event.c.body.is_not(None))
    return "\n".join(world.do(lambda conn: conn.execute(bodies).scalars().all()))


def redelivered(world: World, call_id: str) -> list[dict[str, Any]]:
    """What is posted when the events of a call are sent once more."""
    now = world.clock()
    assert world.do(lambda conn: webhooks.redeliver(conn, None, call_id, now))
    return [json.loads(payload.body(one, float)) for one in claim(world)]


async def test_numbers_and_keys_are_blanked_in_bodies_too(world: World, tmp_path: Path) -> None:
    call_id = finish(world)
    record(world, claim(world))
    assert NUMBER not in stored(world)
    assert WRITTEN in stored(world)
    assert KEYED in stored(world)
    assert REFERENCE in stored(world)
    world.clock.advance(11 * DAY)

    await keeping(world, tmp_path, numbers=10).work()

    assert world.call(call_id).phone_number == ""
    assert WRITTEN not in stored(world)
    assert KEYED not in stored(world)
    assert REFERENCE not in stored(world)
    typed = [body for body in redelivered(world, call_id) if "type" in body]
    assert {body["type"] for body in typed} == {"call.initiated", "call.completed"}
    for body in typed:
        assert (body["data"]["id"], body["data"]["phoneNumber"]) == (call_id, "")
        assert (body["data"]["keys"], [one["keys"] for one in body["data"]["attempts"]]) == (
            "",
            [""],
        )


async def test_a_number_stays_while_any_event_with_it_is_to_be_delivered(
    world: World, tmp_path: Path
) -> None:
    call_id = finish(world)
    due = claim(world)
    record(world, due[1:])
    world.clock.advance(11 * DAY)
    keep = keeping(world, tmp_path, numbers=10)

    await keep.work()
    assert world.call(call_id).phone_number == WRITTEN
    assert WRITTEN in stored(world)

    record(world, due[:1])
    await keep.work()
    assert world.call(call_id).phone_number == ""
    assert WRITTEN not in stored(world)


def test_an_erased_number_is_in_no_body_even_before_its_delivery(world: World) -> None:
    erased, other = finish(world), finish(world)

    world.do(lambda conn: store.erase_calls(conn, world.project_id, [erased]))

    bodies = [json.loads(payload.body(one, float)) for one in claim(world)]
    typed = [body["data"] for body in bodies if "type" in body]
    assert {one["phoneNumber"] for one in typed if one["id"] == erased} == {""}
    assert {one["phoneNumber"] for one in typed if one["id"] == other} == {WRITTEN}
    ends = {body["requestId"]: body["number"] for body in bodies if "type" not in body}
    assert ends == {erased: "", other: WRITTEN}


async def test_the_event_of_a_campaign_goes_with_it(world: World, tmp_path: Path) -> None:
    now = world.clock()
    campaign_id = new_id(now)
    made = Campaign(campaign_id, world.project_id, "main", world.recording_id, now, 1)
    world.do(lambda conn: campaigns.add(conn, made))
    finish(world, campaign_id=campaign_id)
    types = select(webhook_event.c.type).where(webhook_event.c.campaign_id == campaign_id)
    found = world.do(lambda conn: conn.execute(types).scalars().all())
    assert list(found) == ["campaign.finished"]
    record(world, claim(world))
    assert world.count(webhook_try) == world.count(webhook_event) == 4
    world.clock.advance(11 * DAY)

    await keeping(world, tmp_path, calls=10).work()

    assert world.count(campaign) == world.count(webhook_event) == world.count(webhook_try) == 0


async def test_events_of_every_type_go_once_they_need_no_more_tries(
    world: World, tmp_path: Path
) -> None:
    finish(world)
    due = claim(world)
    record(world, due[1:])
    world.clock.advance(5 * DAY)

    await keeping(world, tmp_path, webhook_events=3).work()

    left = select(webhook_event.c.id)
    assert list(world.do(lambda conn: conn.execute(left).scalars().all())) == [due[0].event_id]


def test_a_deleted_project_leaves_no_event(world: World) -> None:
    now = world.clock()
    campaign_id = new_id(now)
    made = Campaign(campaign_id, world.project_id, "main", world.recording_id, now, 1)
    world.do(lambda conn: campaigns.add(conn, made))
    finish(world, campaign_id=campaign_id)
    record(world, claim(world))
    typed = world.do(lambda conn: conn.execute(select(webhook_event.c.id).where(~ends_call)).all())
    assert len(typed) == 3

    world.do(lambda conn: project_deletion.disable(conn, world.project_id))
    project_deletion.delete_project(world.database, world.project_id, world.clock())

    assert world.count(webhook_event) == world.count(webhook_try) == 0


async def test_a_webhook_that_a_request_named_goes_with_its_last_call(
    world: World, tmp_path: Path
) -> None:
    urls = [f"https://hooks.example/{number}" for number in range(2)]
    named = [request_webhook(world.project_id, url, EVENT_TYPES) for url in urls]
    world.do(lambda conn: event_rows.name_webhooks(conn, named))
    for one in named:
        finish(world, webhook_id=one.id)
    world.clock.advance(5 * DAY)
    young = finish(world, webhook_id=named[1].id)

    await keeping(world, tmp_path, calls=3).work()

    left = world.do(lambda conn: conn.execute(select(webhook.c.id)).scalars().all())
    assert left == [named[1].id]
    assert world.call(young).status.final
