"""Placing one call and asking for its status: what a client gets when all is well."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, update

from bitel.domain.calls import CallStatus
from bitel.store.leases import Slot
from bitel.store.schema import call

if TYPE_CHECKING:
    from tests.api.stage import Stage

KEYS = [
    "id",
    "phoneNumber",
    "status",
    "statusCode",
    "billSec",
    "requestDate",
    "executionDate",
    "price",
]


def row(stage: Stage, call_id: str) -> Any:
    return stage.do(lambda conn: conn.execute(select(call).where(call.c.id == call_id)).one())


async def test_a_call_is_queued_and_answered_with_its_eight_keys_in_order(stage: Stage) -> None:
    async with stage.client() as client:
        answer = await client.post("/api/v2/voice/single", json=stage.body())
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    envelope = answer.json()
    assert list(envelope) == ["result", "error"]
    result = envelope["result"]
    assert list(result) == KEYS
    assert result == {
        "id": result["id"],
        "phoneNumber": "0912 123 4567",
        "status": "WAITING",
        "statusCode": 0,
        "billSec": 0,
        "requestDate": int(stage.clock()),
        "executionDate": 0,
        "price": 0.0,
    }
    assert '"price":0.0' in answer.text
    stored = row(stage, result["id"])
    assert (stored.e164, stored.dialer_id, stored.retry_count) == ("+989121234567", "main", 1)
    assert (stored.retry_interval, stored.expires_at) == (60, stage.clock() + 14_400)
    assert stage.rung == ["main"]


async def test_terms_are_taken_over(stage: Stage) -> None:
    body = stage.body(
        retryCount=10, retryInterval=5, timeToLive=1, serverId="spare", unknownField={"a": [1]}
    )
    async with stage.client() as client:
        answer = await client.post("/api/v2/voice/single", json=body)
    stored = row(stage, answer.json()["result"]["id"])
    assert (stored.retry_count, stored.retry_interval) == (10, 5)
    assert (stored.expires_at, stored.dialer_id) == (stage.clock() + 1, "spare")
    assert stage.rung == ["spare"]


async def test_null_counts_as_left_out(sqlite_stage: Stage) -> None:
    stage = sqlite_stage
    body = stage.body(retryCount=None, retryInterval=None, timeToLive=None, serverId=None)
    async with stage.client() as client:
        answer = await client.post("/api/v2/voice/single", json=body)
    assert row(stage, answer.json()["result"]["id"]).retry_count == 1


async def test_no_retries_is_not_the_default(sqlite_stage: Stage) -> None:
    stage = sqlite_stage
    async with stage.client() as client:
        answer = await client.post("/api/v2/voice/single", json=stage.body(retryCount=0))
    assert row(stage, answer.json()["result"]["id"]).retry_count == 0


@pytest.mark.parametrize("written", ["۰۹۱۲۱۲۳۴۵۶۷", "+98 912-123-4567", "00989121234567"])
async def test_the_number_comes_back_as_it_was_written(sqlite_stage: Stage, written: str) -> None:
    stage = sqlite_stage
    async with stage.client() as client:
        answer = await client.post("/api/v2/voice/single", json=stage.body(phoneNumber=written))
    result = answer.json()["result"]
    assert result["phoneNumber"] == written
    assert row(stage, result["id"]).e164 == "+989121234567"


async def test_status_says_how_the_call_stands(stage: Stage) -> None:
    async with stage.client() as client:
        placed = (await client.post("/api/v2/voice/single", json=stage.body())).json()["result"]
        before = await client.get(f"/api/v2/voice/status/{placed['id']}")
        assert before.json() == {"result": placed, "error": None}
        changes = {"status": int(CallStatus.NORMAL), "bill_seconds": 12, "due_at": None}
        times = {"executed_at": stage.clock() + 7.9, "price": "34.2"}
        stage.do(
            lambda conn: conn.execute(
                update(call).where(call.c.id == placed["id"]).values(**changes, **_money(times))
            )
        )
        after = await client.get(f"/api/v2/voice/status/{placed['id']}")
    result = after.json()["result"]
    assert list(result) == KEYS
    assert (result["status"], result["statusCode"], result["billSec"]) == ("NORMAL", 1, 12)
    assert result["executionDate"] == int(stage.clock() + 7.9)
    assert result["price"] == -34.2
    assert '"price":-34.2' in after.text


def _money(values: dict[str, Any]) -> dict[str, Any]:
    from decimal import Decimal

    return {**values, "price": Decimal(values["price"])}


async def test_another_projects_call_is_not_found(stage: Stage) -> None:
    _, other = stage.new_token(stage.new_project("other"))
    async with stage.client() as client, stage.client(other) as stranger:
        placed = (await client.post("/api/v2/voice/single", json=stage.body())).json()["result"]
        answer = await stranger.get(f"/api/v2/voice/status/{placed['id']}")
    assert (answer.status_code, answer.json()["error"]) == (404, "NotFound")


@pytest.mark.parametrize("call_id", ["0" * 32, "x", "%00", "A" * 32, "9" * 4000])
async def test_an_unknown_call_is_not_found(stage: Stage, call_id: str) -> None:
    async with stage.client() as client:
        answer = await client.get(f"/api/v2/voice/status/{call_id}")
    assert (answer.status_code, answer.json()["error"]) == (404, "NotFound")


async def test_servers_are_up_while_they_are_heard_of(stage: Stage) -> None:
    from bitel.store import recovery

    stage.do(lambda conn: recovery.take_over(conn, Slot("main"), "w", stage.clock(), 77.0))
    async with stage.client() as client:
        first = (await client.get("/api/v2/servers")).json()
        began = stage.clock()
        stage.clock.advance(15.5)
        later = (await client.get("/api/v2/servers")).json()
    idle = {"channels": 0, "callsPerSecond": 0, "lateMs": 0}
    assert first["result"] == [
        {"id": "main", "up": True, "paused": None, "workers": 1, "since": int(began), **idle},
        {"id": "spare", "up": False, "paused": None, "workers": 0, "since": None, **idle},
    ]
    assert [each["up"] for each in later["result"]] == [False, False]


async def test_servers_say_why_a_dialer_is_paused(stage: Stage) -> None:
    from bitel.store import leases, recovery

    now = stage.clock()
    lease, _ = stage.do(lambda conn: recovery.take_over(conn, Slot("main"), "w", now, 77.0))
    state = leases.WorkerState(paused_reason="the trunk refuses every call (403 Forbidden)")
    stage.do(lambda conn: leases.renew(conn, lease, now, state))
    async with stage.client() as client:
        main, spare = (await client.get("/api/v2/servers")).json()["result"]
    assert (main["paused"], spare["paused"]) == (state.paused_reason, None)


async def test_the_calls_of_many_requests_at_once_are_all_placed(stage: Stage) -> None:
    import asyncio

    async with stage.client() as client:
        good = [client.post("/api/v2/voice/single", json=stage.body()) for _ in range(40)]
        bad = [
            client.post("/api/v2/voice/single", json=stage.body(voiceId="0" * 32))
            for _ in range(10)
        ]
        answers = await asyncio.gather(*good, *bad)
    assert [answer.status_code for answer in answers] == [200] * 40 + [400] * 10
    ids = {answer.json()["result"]["id"] for answer in answers[:40]}
    assert len(ids) == stage.queued() == 40


async def test_without_a_dialer_calls_are_unavailable(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage(dialers=[])
    async with stage.client() as client:
        answer = await client.post("/api/v2/voice/single", json=stage.body())
        named = await client.post("/api/v2/voice/single", json=stage.body(serverId="main"))
    assert (answer.status_code, answer.json()["error"]) == (503, "Unavailable")
    assert (named.status_code, named.json()["error"]) == (400, "InvalidServer")
    assert stage.queued() == 0


async def test_a_project_may_have_a_dialer_of_its_own(sqlite_stage: Stage) -> None:
    from bitel.store.schema import project

    stage = sqlite_stage

    def prefer(dialer_id: str) -> None:
        stage.do(lambda conn: conn.execute(update(project).values(default_dialer=dialer_id)))

    async with stage.client() as client:
        prefer("spare")
        placed = (await client.post("/api/v2/voice/single", json=stage.body())).json()
        assert row(stage, placed["result"]["id"]).dialer_id == "spare"
        prefer("gone")
        lost = await client.post("/api/v2/voice/single", json=stage.body())
    assert (lost.status_code, lost.json()["error"]) == (503, "Unavailable")


def test_a_price_of_nothing_has_no_sign() -> None:
    from decimal import Decimal

    from bitel import exact_json
    from bitel.domain.call_json import balance_change

    assert exact_json.dumps(balance_change(Decimal("0.0000"))) == "0.0"
    assert balance_change(Decimal("34.2")) == Decimal("-34.2")
