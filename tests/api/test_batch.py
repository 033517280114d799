"""Batches and campaigns: placed all or none, in order, followed and called off together."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from bitel.api.placement import MANY
from bitel.domain.calls import Lane
from bitel.domain.ids import is_id

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from tests.api.stage import Stage

BATCH = "/api/v2/voice/batch"


def numbers(count: int) -> list[str]:
    return [f"0912{n:07d}" for n in range(count)]


def body(stage: Stage, phone_numbers: Any, **changes: Any) -> dict[str, Any]:
    return {"phoneNumbers": phone_numbers, "voiceId": stage.recording_id, **changes}


async def test_every_number_is_called_in_the_order_given(stage: Stage) -> None:
    wanted = [*numbers(130), "+98 935 123 4567", "۰۹۱۲۰۰۰۰۰۰۱", numbers(1)[0]]
    async with stage.client() as client:
        answer = await client.post(BATCH, json=body(stage, wanted, retryCount=3, serverId="spare"))
    assert answer.status_code == 200
    envelope = answer.json()
    assert list(envelope) == ["result", "error", "campaignId"]
    assert [call["phoneNumber"] for call in envelope["result"]] == wanted
    assert list(envelope["result"][0].items()) == [
        ("id", envelope["result"][0]["id"]),
        ("phoneNumber", wanted[0]),
        ("status", "WAITING"),
        ("statusCode", 0),
        ("billSec", 0),
        ("requestDate", int(stage.clock())),
        ("executionDate", 0),
        ("price", 0.0),
    ]
    ids = [call["id"] for call in envelope["result"]]
    assert ids == sorted(set(ids))
    rows = stage.rows()
    assert [row.id for row in rows] == ids
    assert [row.phone_number for row in rows] == wanted
    assert {(row.campaign_id, row.retry_count, row.dialer_id, row.lane) for row in rows} == {
        (envelope["campaignId"], 3, "spare", Lane.BATCH)
    }
    assert is_id(envelope["campaignId"])
    # Who is named twice is called twice.
    assert [row.e164 for row in rows].count("+989120000000") == 2
    assert stage.rung == ["spare"]


async def test_numbers_may_be_one_string(stage: Stage) -> None:
    async with stage.client() as client:
        answer = await client.post(
            BATCH, json=body(stage, "09120000001, 0912 000 0002,+989120000003")
        )
    called = [call["phoneNumber"] for call in answer.json()["result"]]
    assert called == ["09120000001", "0912 000 0002", "+989120000003"]


@pytest.mark.parametrize(
    ("phone_numbers", "code", "names"),
    [
        ([], "InvalidRequest", "phoneNumbers must hold 1 to 300 numbers, not 0"),
        ("", "InvalidRequest", "not 0"),
        (numbers(301), "InvalidRequest", "not 301"),
        (",".join(numbers(301)), "InvalidRequest", "not 301"),
        (["09121234567", 9121234567], "InvalidRequest", "phoneNumbers[1]"),
        (5, "InvalidRequest", "phoneNumbers"),
        (None, "InvalidRequest", "phoneNumbers is missing; recipients or listId may"),
        ({"a": "09121234567"}, "InvalidRequest", "phoneNumbers"),
        (["09121234567", "letters"], "InvalidPhoneNumber", "phoneNumbers[1] 'letters'"),
        ("09121234567,", "InvalidPhoneNumber", "phoneNumbers[1] ''"),
        ([*numbers(200), "1"], "InvalidPhoneNumber", "phoneNumbers[200] '1'"),
        (["letters"], "InvalidPhoneNumber", "phoneNumbers[0] 'letters'"),
        (["09121234567", "+442079460018"], "Forbidden", "phoneNumbers[1] '+442079460018'"),
    ],
)
async def test_one_that_is_wrong_refuses_all_and_is_named(
    make_stage: Callable[..., Stage], phone_numbers: Any, code: str, names: str
) -> None:
    stage = make_stage(batch_limit=300)
    async with stage.client() as client:
        answer = await client.post(BATCH, json=body(stage, phone_numbers))
    assert answer.json()["error"] == code
    assert names in answer.json()["message"]
    assert stage.queued() == 0
    assert stage.rung == []


async def test_a_batch_has_a_body_limit_of_its_own(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage(http={"max_body": 2_000, "max_batch_body": 20_000})
    async with stage.client() as client:
        large = body(stage, numbers(500))
        assert (await client.post(BATCH, json=large)).status_code == 200
        answer = await client.post(BATCH, json=body(stage, numbers(2000)))
        assert (answer.status_code, answer.json()["error"]) == (413, "PayloadTooLarge")
        padded = {**stage.body(), "more": "x" * 2_000}
        answer = await client.post("/api/v2/voice/single", json=padded)
        assert answer.status_code == 413


async def test_ten_thousand_numbers_leave_room_for_others(sqlite_stage: Stage, served: Any) -> None:
    stage = sqlite_stage
    content = json.dumps(body(stage, numbers(10_000))).encode()
    async with served(stage) as url, stage.client(url=url) as client:
        await client.get("/api/v2/servers")
        began = time.perf_counter()
        placing = asyncio.create_task(client.post(BATCH, content=content))
        asking = asyncio.create_task(client.get("/healthz"))
        away: list[float] = []
        while not placing.done():
            left = time.perf_counter()
            await asyncio.sleep(0.001)
            away.append(time.perf_counter() - left)
        answer = await placing
        took = time.perf_counter() - began
    assert answer.status_code == 200
    assert asking.result().status_code == 200
    assert len({call["id"] for call in answer.json()["result"]}) == stage.queued() == 10_000
    # How long the event loop is away, against the batch itself: a busy machine slows both alike.
    assert len(away) >= 20
    assert max(away) < took / 2


async def place(stage: Stage, client: Any, count: int) -> Any:
    return (await client.post(BATCH, json=body(stage, numbers(count)))).json()


async def test_a_campaign_counts_its_calls_until_all_are_over(stage: Stage) -> None:
    async with stage.client() as client:
        placed = await place(stage, client, 4)
        path = f"/api/v2/voice/campaign/{placed['campaignId']}"
        none = dict.fromkeys(
            ["NORMAL", "NO_ANSWER", "USER_BUSY", "CANCELED", "EXPIRED", "ERROR", "UNKNOWN"], 0
        )
        assert (await client.get(path)).json()["result"] == {
            "id": placed["campaignId"],
            "total": 4,
            "byStatus": {"WAITING": 4, **none},
            "requestDate": int(stage.clock()),
            "finishedDate": 0,
            "price": 0.0,
            "name": None,
            "reference": None,
            "state": "RUNNING",
            "answered": 0,
            "keys": {},
            "machines": {"human": 0, "machine": 0},
            "startAt": None,
            "endAt": None,
            "window": None,
            "callsPerSecond": None,
            "maxChannels": None,
        }
        requested = int(stage.clock())
        stage.clock.advance(5)
        lease, taken = stage.take()
        stage.answer(lease, taken[:3], price="10.5")
        half = (await client.get(path)).json()["result"]
        assert half["byStatus"] == {"WAITING": 1, **none, "NORMAL": 3}
        assert (half["finishedDate"], half["price"]) == (0, -31.5)
        stage.clock.advance(60)
        stage.answer(lease, taken[3:], price="10.5")
        over = (await client.get(path)).json()["result"]
    assert over["byStatus"] == {"WAITING": 0, **none, "NORMAL": 4}
    assert (over["state"], over["answered"]) == ("FINISHED", 4)
    assert over["finishedDate"] == int(stage.clock()) + 12
    assert over["price"] == -42.0
    assert over["requestDate"] == requested


@pytest.mark.parametrize(("limit", "pages"), [(1, 7), (3, 3), (7, 2), (1000, 1), (None, 1)])
async def test_its_calls_come_in_pages(stage: Stage, limit: int | None, pages: int) -> None:
    async with stage.client() as client:
        placed = await place(stage, client, 7)
        await place(stage, client, 2)
        path = f"/api/v2/voice/campaign/{placed['campaignId']}/calls"
        found: list[Any] = []
        seen = 0
        params: dict[str, Any] = {} if limit is None else {"limit": limit}
        while True:
            result = (await client.get(path, params=params)).json()["result"]
            assert list(result) == ["calls", "nextCursor"]
            seen += 1
            found += result["calls"]
            if result["nextCursor"] is None:
                break
            params["cursor"] = result["nextCursor"]
    assert found == placed["result"]
    # A page that is just full can't know that it is the last.
    assert seen in (pages, pages + 1)


@pytest.mark.parametrize(
    ("params", "names"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 1001}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"cursor": ""}, "cursor"),
        ({"cursor": "x"}, "cursor"),
        ({"cursor": "ü" * 22}, "cursor"),
        ({"cursor": "A" * 5000}, "cursor"),
    ],
)
async def test_a_page_that_can_not_be_is_refused(
    sqlite_stage: Stage, params: dict[str, Any], names: str
) -> None:
    stage = sqlite_stage
    async with stage.client() as client:
        placed = await place(stage, client, 1)
        for path in (f"/api/v2/voice/campaign/{placed['campaignId']}/calls", "/api/v2/files/voice"):
            answer = await client.get(path, params=params)
            assert (answer.status_code, answer.json()["error"]) == (400, "InvalidRequest"), path
            assert names in answer.json()["message"]


async def test_a_call_that_waits_is_called_off_at_once(stage: Stage) -> None:
    async with stage.client() as client:
        placed = (await client.post("/api/v2/voice/single", json=stage.body())).json()["result"]
        answer = await client.delete(f"/api/v2/voice/{placed['id']}")
        canceled = {**placed, "status": "CANCELED", "statusCode": 4}
        assert answer.json() == {"result": canceled, "error": None}
        # Once it is over, nothing changes it any more.
        assert (await client.delete(f"/api/v2/voice/{placed['id']}")).json()["result"] == canceled
        assert (await client.get(f"/api/v2/voice/status/{placed['id']}")).json()[
            "result"
        ] == canceled
    assert stage.take()[1] == []


async def test_a_call_that_is_dialled_stays_until_its_dialer_has_hung_up(stage: Stage) -> None:
    from bitel.store import claims

    async with stage.client() as client:
        placed = (await client.post("/api/v2/voice/single", json=stage.body())).json()["result"]
        _, taken = stage.take()
        answer = await client.delete(f"/api/v2/voice/{placed['id']}")
        assert answer.json()["result"] == placed
    asked = stage.do(lambda conn: claims.cancel_requests(conn, "main"))
    assert asked == [taken[0].attempt_id]


async def test_a_call_that_was_answered_stays_as_it_is(stage: Stage) -> None:
    async with stage.client() as client:
        placed = (await client.post("/api/v2/voice/single", json=stage.body())).json()["result"]
        stage.answer(*stage.take(), price="3")
        answer = await client.delete(f"/api/v2/voice/{placed['id']}")
    assert (answer.json()["result"]["status"], answer.json()["result"]["price"]) == ("NORMAL", -3.0)


async def test_a_campaign_is_called_off_as_a_whole(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stage.client() as client:
        placed = await place(stage, client, 60)
        stage.clock.advance(1)
        other = await place(stage, client, 1)
        lease, taken = stage.take(5)
        stage.answer(lease, taken[:2])
        path = f"/api/v2/voice/campaign/{placed['campaignId']}"
        for _ in range(2):
            counts = (await client.delete(path)).json()["result"]["byStatus"]
            assert (counts["CANCELED"], counts["NORMAL"], counts["WAITING"]) == (55, 2, 3)
        left = (await client.get(f"/api/v2/voice/campaign/{other['campaignId']}")).json()["result"]
    assert left["byStatus"]["WAITING"] == 1


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("campaign_id", ["0" * 32, "x", "%00", "A" * 32])
async def test_an_unknown_campaign_is_not_found(
    stage: Stage, method: str, campaign_id: str
) -> None:
    async with stage.client() as client:
        for rest in ("", "/calls") if method == "GET" else ("",):
            answer = await client.request(method, f"/api/v2/voice/campaign/{campaign_id}{rest}")
            assert (answer.status_code, answer.json()["error"]) == (404, "NotFound")


async def test_one_batch_is_stored_at_a_time(
    make_stage: Callable[..., Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = make_stage()
    write, under_way, most = stage.parts.database.write, 0, 0

    async def counted(work: Callable[[Connection], Any]) -> Any:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.02)  # long enough for the others to come
        try:
            return await write(work)
        finally:
            under_way -= 1

    monkeypatch.setattr(stage.parts.database, "write", counted)
    wanted = body(stage, numbers(MANY))
    async with stage.client() as client:
        answers = await asyncio.gather(*(client.post(BATCH, json=wanted) for _ in range(4)))

    assert [answer.status_code for answer in answers] == [200] * 4
    assert most == 1  # a single call waits for one batch, not for all that came before it
    assert stage.queued() == 4 * MANY
