"""Webhooks that requests name for their own calls, and the events that they ask for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from bitel.domain.webhooks import EVENT_TYPES
from bitel.store import webhooks
from bitel.store.schema import campaign, webhook
from bitel.store.webhooks import Delivery, Event
from bitel.webhooks import payload

if TYPE_CHECKING:
    from tests.api.stage import Stage

URL = "https://shop.example/calls"
OWN = "https://hooks.example/these"


@pytest.fixture
def shop(stage: Stage) -> Stage:
    """A project with a webhook, and so a secret."""
    stage.change(webhook_url=URL, webhook_secret="whsec_x")
    return stage


async def place(stage: Stage, path: str = "single", **fields: Any) -> tuple[int, dict[str, Any]]:
    body = stage.body(**fields) if path == "single" else {"voiceId": stage.recording_id, **fields}
    async with stage.client() as client:
        answer = await client.post(f"/api/v2/voice/{path}", json=body)
    return answer.status_code, answer.json()


def named(stage: Stage) -> list[Any]:
    return stage.do(lambda conn: list(conn.execute(select(webhook))))


def history(stage: Stage) -> list[Event]:
    """The events, the oldest first."""
    return stage.do(lambda conn: webhooks.history(conn))[::-1]


def deliveries(stage: Stage) -> list[Delivery]:
    now = stage.clock()
    return stage.do(lambda conn: webhooks.claim_due(conn, now + 1000, 99, 99))


async def test_a_call_has_the_events_that_its_request_asks_for(shop: Stage) -> None:
    asked = {"url": OWN, "events": ["call.completed", "call.initiated", "call.initiated"]}
    status, answer = await place(shop, webhook=asked)
    assert status == 200
    call_id = answer["result"]["id"]
    shop.answer(*shop.take())

    found = deliveries(shop)

    assert {each.url for each in found} == {OWN}
    bodies = [payload.body(each, float) for each in found]
    assert {each.type for each in history(shop)} == {"call.initiated", "call.completed", ""}
    assert all(call_id.encode() in body for body in bodies)
    async with shop.client() as client:
        now = (await client.get(f"/api/v2/voice/calls/{call_id}")).json()["result"]
    events = {each.get("type"): each for each in map(_json, bodies)}
    assert events["call.completed"]["data"] == now
    assert list(events["call.completed"]) == ["type", "date", "data"]
    begun = events["call.initiated"]["data"]
    assert (begun["status"], len(begun["attempts"])) == ("WAITING", 1)
    assert begun["attempts"][0]["outcome"] is None
    assert events[None]["requestId"] == call_id


def _json(body: bytes) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(body)
    return read


async def test_the_events_of_a_batch_and_of_its_end(shop: Stage) -> None:
    asked = {"url": OWN, "events": list(EVENT_TYPES)}
    numbers = ["09121234567", "09121234568"]
    status, answer = await place(shop, "batch", phoneNumbers=numbers, webhook=asked)
    assert status == 200
    shop.answer(*shop.take(), price="1.5")

    found = deliveries(shop)

    assert {each.url for each in found} == {OWN}
    (row,) = named(shop)
    stored = shop.do(lambda conn: conn.execute(select(campaign.c.webhook_id)).scalar_one())
    assert (row.id, row.url) == (stored, OWN)
    types = [each.type for each in history(shop)]
    assert sorted(types) == sorted(
        ["call.initiated"] * 2 + ["call.completed"] * 2 + [""] * 2 + ["campaign.finished"]
    )
    assert types[-1] == "campaign.finished"
    bodies = [_json(payload.body(each, float)) for each in found]
    (finished,) = [each for each in bodies if each.get("type") == "campaign.finished"]
    async with shop.client() as client:
        path = f"/api/v2/voice/campaign/{answer['campaignId']}"
        assert finished["data"] == (await client.get(path)).json()["result"]
    assert finished["data"]["state"] == "FINISHED"


async def test_without_events_only_the_end_is_sent_to_the_requests_url(shop: Stage) -> None:
    shop.change(webhook_events=("call.initiated",))
    await place(shop, webhook={"url": OWN})
    await place(shop, webhook={"url": OWN, "events": None}, phoneNumber="09121234568")
    await place(shop, phoneNumber="09121234569")
    shop.answer(*shop.take())

    found = [(each.url, _json(payload.body(each, float)).get("type")) for each in deliveries(shop)]

    assert sorted(found, key=str) == [
        (OWN, None), (OWN, None), (URL, "call.initiated"), (URL, None),
    ]  # fmt: skip
    assert len(named(shop)) == 1


async def test_calls_without_a_webhook_write_no_event(stage: Stage) -> None:
    await place(stage)
    await place(stage, "batch", phoneNumbers=["09121234568"])
    stage.answer(*stage.take())
    assert history(stage) == []


async def test_a_repeated_request_names_nothing_new(shop: Stage) -> None:
    body = shop.body(webhook={"url": OWN, "events": ["call.answered"]})
    async with shop.client() as client:
        answers = [
            await client.post("/api/v2/voice/single", json=body, headers={"Idempotency-Key": "k"})
            for _ in range(2)
        ]
    assert answers[0].content == answers[1].content
    assert len(named(shop)) == len(shop.rows()) == 1


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"url": OWN, "events": ["call.ended"]}, "webhook.events names no type of event"),
        ({"url": "ftp://a.example/"}, "webhook.url must begin with http"),
        ({"url": "http://127.0.0.1:9/"}, "webhook.url names an address that is not public"),
        ({"url": "http://localhost/"}, "webhook.url names an address that is not public"),
        ({"url": "https://u:p@a.example/"}, "webhook.url holds a user name or password"),
        ({"events": ["call.answered"]}, "webhook.url"),
        ({"url": ""}, "webhook.url"),
        ({"url": "https://a.example/" + "x" * 2048}, "webhook.url"),
        ({"url": OWN, "events": ["call.answered"] * 6}, "webhook.events"),
        (OWN, "webhook"),
    ],
)
@pytest.mark.parametrize("path", ["single", "batch"])
async def test_a_wrong_webhook_refuses_the_request(
    sqlite_stage: Stage, asked: Any, message: str, path: str
) -> None:
    sqlite_stage.change(webhook_url=URL, webhook_secret="whsec_x")
    numbers = {} if path == "single" else {"phoneNumbers": ["09121234567"]}
    status, answer = await place(sqlite_stage, path, webhook=asked, **numbers)
    assert (status, answer["error"]) == (400, "InvalidRequest")
    assert message in answer["message"]
    assert sqlite_stage.rows() == named(sqlite_stage) == []


async def test_a_project_without_a_secret_can_name_no_webhook(sqlite_stage: Stage) -> None:
    status, answer = await place(sqlite_stage, webhook={"url": OWN})
    assert (status, answer["error"]) == (400, "InvalidRequest")
    assert "secret" in answer["message"]
    sqlite_stage.change(webhook_secret="whsec_x")
    status, _ = await place(sqlite_stage, webhook={"url": OWN})
    assert status == 200
    sqlite_stage.answer(*sqlite_stage.take())
    assert [each.url for each in deliveries(sqlite_stage)] == [OWN]


async def test_a_refused_request_leaves_no_webhook(shop: Stage) -> None:
    status, _ = await place(shop, voiceId="0" * 32, webhook={"url": OWN})
    assert status == 400
    shop.do(shop.remove_recording)
    for path, fields in (("single", {}), ("batch", {"phoneNumbers": ["09121234567"]})):
        status, _ = await place(shop, path, webhook={"url": OWN}, **fields)
        assert status == 400
    assert named(shop) == []


async def test_naming_a_url_again_turns_it_on_again(shop: Stage) -> None:
    await place(shop, webhook={"url": OWN})
    (row,) = named(shop)
    shop.do(lambda conn: webhooks.turn_off(conn, shop.project_id, OWN, "gone", row.id))
    assert named(shop)[0].off_reason == "gone"
    shop.answer(*shop.take())
    assert history(shop) == []
    await place(shop, webhook={"url": OWN})
    assert named(shop)[0].off_reason is None
