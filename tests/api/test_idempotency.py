"""`Idempotency-Key`: sent again, answered again, placed once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from bitel.api.app import build_app
from bitel.store.database import Database

if TYPE_CHECKING:
    from tests.api.stage import Stage

SINGLE = "/api/v2/voice/single"
BATCH = "/api/v2/voice/batch"
DAY = 24 * 3600.0


def key(value: str) -> dict[str, str]:
    return {"Idempotency-Key": value}


def batch(stage: Stage, count: int = 3) -> dict[str, Any]:
    return {
        "phoneNumbers": [f"0912{n:07d}" for n in range(count)],
        "voiceId": stage.recording_id,
    }


@pytest.mark.parametrize("kind", ["single", "batch"])
async def test_the_same_request_is_answered_alike_and_placed_once(stage: Stage, kind: str) -> None:
    path, body = (SINGLE, stage.body()) if kind == "single" else (BATCH, batch(stage))
    async with stage.client() as client:
        first = await client.post(path, json=body, headers=key("order-1"))
        placed = stage.queued()
        assert first.status_code == 200
        # Time passes, the calls end, their recording goes, the money too: it makes no difference.
        stage.answer(*stage.take())
        stage.clock.advance(DAY - 1)
        gone = await client.delete(f"/api/v2/files/voice/{stage.recording_id}")
        assert gone.status_code == 200
        stage.change(allowed_prefixes=("+1",), dialers=())
        again = await client.post(path, json=body, headers=key("order-1"))
    assert (again.status_code, again.content) == (200, first.content)
    assert again.headers["content-type"] == first.headers["content-type"]
    assert stage.queued() == placed


async def test_another_body_or_path_with_the_same_key_conflicts(stage: Stage) -> None:
    async with stage.client() as client:
        await client.post(SINGLE, json=stage.body(), headers=key("k"))
        for path, body in (
            (SINGLE, stage.body(retryCount=3)),
            (SINGLE, stage.body(phoneNumber="09120000000")),
            (BATCH, batch(stage)),
            ("/api/v1/voice/single", stage.body()),
        ):
            answer = await client.post(path, json=body, headers=key("k"))
            assert (answer.status_code, answer.json()["error"]) == (409, "Conflict"), path
    assert stage.queued() == 1


async def test_a_body_that_means_the_same_is_the_same(sqlite_stage: Stage) -> None:
    stage = sqlite_stage
    body = stage.body()
    async with stage.client() as client:
        first = await client.post(SINGLE, json=body, headers=key("k"))
        turned = dict(reversed(body.items()))
        for same in ({**turned, "retryCount": None}, {**body, "note": "unknown to the service"}):
            again = await client.post(SINGLE, json=same, headers=key("k"))
            assert again.content == first.content
    assert stage.queued() == 1


async def test_a_key_is_forgotten_after_a_day(stage: Stage) -> None:
    async with stage.client() as client:
        first = await client.post(SINGLE, json=stage.body(), headers=key("k"))
        stage.clock.advance(DAY)
        other = await client.post(SINGLE, json=stage.body(retryCount=2), headers=key("k"))
    assert other.json()["result"]["id"] != first.json()["result"]["id"]
    assert stage.queued() == 2


async def test_keys_are_each_projects_own(stage: Stage) -> None:
    other = stage.new_project("other")
    _, token = stage.new_token(other)
    theirs = stage.body(voiceId=stage.new_recording(other))
    async with stage.client() as client, stage.client(token) as stranger:
        mine = await client.post(SINGLE, json=stage.body(), headers=key("k"))
        answer = await stranger.post(SINGLE, json=theirs, headers=key("k"))
    assert answer.status_code == 200
    assert answer.json()["result"]["id"] != mine.json()["result"]["id"]


async def test_a_request_that_was_refused_keeps_no_key(stage: Stage) -> None:
    async with stage.client() as client:
        for wrong in ({"phoneNumber": "x"}, {"voiceId": "0" * 32}, {"serverId": "x"}):
            answer = await client.post(SINGLE, json=stage.body(**wrong), headers=key("k"))
            assert answer.status_code == 400
        assert (await client.post(SINGLE, json=stage.body(), headers=key("k"))).status_code == 200
    assert stage.queued() == 1


@pytest.mark.parametrize("value", ["", "x" * 256, "a\tb"])
async def test_what_is_no_key_is_refused(sqlite_stage: Stage, value: str) -> None:
    async with sqlite_stage.client() as client:
        answer = await client.post(SINGLE, json=sqlite_stage.body(), headers=key(value))
    assert (answer.status_code, answer.json()["error"]) == (400, "InvalidRequest")
    assert "Idempotency-Key" in answer.json()["message"]
    assert sqlite_stage.queued() == 0


@pytest.mark.parametrize(
    "value", ["x" * 255, "ü" * 255, "سفارش".encode().decode("latin-1"), "'; --"]
)
async def test_any_printable_key_is_taken(stage: Stage, value: str) -> None:
    headers = {b"Idempotency-Key": value.encode("latin-1")}
    async with stage.client() as client:
        answers = [await client.post(SINGLE, json=stage.body(), headers=headers) for _ in "12"]
    assert answers[0].content == answers[1].content
    assert stage.queued() == 1


@pytest.mark.parametrize("kind", ["single", "batch"])
async def test_a_hundred_at_once_place_one_set_of_calls(stage: Stage, kind: str) -> None:
    path, body = (SINGLE, stage.body()) if kind == "single" else (BATCH, batch(stage, 60))
    async with stage.client() as client:
        answers = await asyncio.gather(
            *(client.post(path, json=body, headers=key("k")) for _ in range(100))
        )
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert stage.queued() == (1 if kind == "single" else 60)


async def test_two_services_on_one_database_place_one_set_of_calls(
    make_twins: Callable[[], tuple[Stage, Stage]],
) -> None:
    one, other = make_twins()
    async with one.client() as first, other.client(one.token) as second:
        answers = await asyncio.gather(
            *(
                client.post(BATCH, json=batch(one), headers=key("k"))
                for _ in range(25)
                for client in (first, second)
            )
        )
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert one.queued() == 3


@pytest.fixture
def make_twins(stage: Stage, database_url: str, request: Any) -> Callable[[], Any]:
    """Two applications with databases of their own, as two processes have, on the same data."""
    from dataclasses import replace

    def make() -> tuple[Stage, Stage]:
        second = Database.open(database_url)
        request.addfinalizer(second.close)
        parts = replace(stage.parts, database=second)
        return stage, replace(stage, parts=parts, app=build_app(parts))

    return make


async def test_a_key_guards_money_and_rates_too(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage(
        tariff=[{"prefix": "+98", "per_minute": "60", "increment": 1}],
        limits={"calls_per_minute": 2},
    )
    stage.set_balance("66")
    async with stage.client() as client:
        for _ in range(5):
            answer = await client.post(SINGLE, json=stage.body(), headers=key("k"))
            assert answer.status_code == 200
    assert stage.project().reserved == 66
