"""Lists of calls and campaigns: what their filters take, and what a page answers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitel.api.app import build_app
from bitel.api.filters import DateRange
from bitel.domain.ids import new_id
from bitel.store import call_lists
from tests.support.clocks import STEPS, Machine

if TYPE_CHECKING:
    from tests.api.stage import Stage

V2 = "/api/v2/voice"
EIGHT = [
    "id", "phoneNumber", "status", "statusCode", "billSec", "requestDate", "executionDate", "price",
]  # fmt: skip


async def single(stage: Stage, number: str, **body: Any) -> str:
    async with stage.client() as client:
        answer = await client.post(f"{V2}/single", json=stage.body(phoneNumber=number, **body))
    placed: str = answer.json()["result"]["id"]
    return placed


async def batch(stage: Stage, **body: Any) -> str:
    async with stage.client() as client:
        answer = await client.post(f"{V2}/batch", json={"voiceId": stage.recording_id, **body})
    campaign_id: str = answer.json()["campaignId"]
    return campaign_id


async def listed(stage: Stage, path: str = "calls", **filters: Any) -> list[Any]:
    """All entries of all pages."""
    found: list[Any] = []
    async with stage.client() as client:
        while True:
            answer = await client.get(f"{V2}/{path}", params=filters)
            assert answer.status_code == 200, answer.text
            page = answer.json()["result"]
            found += page[path]
            if page["nextCursor"] is None:
                return found
            filters["cursor"] = page["nextCursor"]


async def numbers(stage: Stage, **filters: Any) -> list[str]:
    return [call["phoneNumber"] for call in await listed(stage, **filters)]


async def test_calls_are_listed_the_newest_first_with_their_campaign_and_reference(
    stage: Stage,
) -> None:
    first = await single(stage, "09120000001", reference="order-1")
    stage.clock.now += 1
    campaign_id = await batch(stage, phoneNumbers=["09120000002"], reference="order-2")
    newest, oldest = await listed(stage)
    assert list(newest) == [*EIGHT, "campaignId", "reference"]
    assert (newest["campaignId"], newest["reference"]) == (campaign_id, "order-2")
    assert (oldest["id"], oldest["campaignId"], oldest["reference"]) == (first, None, "order-1")
    async with stage.client() as client:
        alone = (await client.get(f"{V2}/status/{first}")).json()["result"]
    assert {name: oldest[name] for name in EIGHT} == alone


async def test_filters_combine(stage: Stage) -> None:
    one = await batch(stage, phoneNumbers=["09120000001", "09120000002"], reference="a")
    lease, taken = stage.take()
    stage.answer(lease, taken[:1])
    done = taken[0].e164.replace("+98", "0")
    waiting = ({"09120000001", "09120000002"} - {done}).pop()
    stage.clock.now += 100
    await single(stage, "09120000001", reference="b")
    now = int(stage.clock.now)
    assert await numbers(stage, status="NORMAL") == [done]
    assert await numbers(stage, status="normal, WAITING", campaignId=one) == [
        "09120000002", "09120000001",
    ]  # fmt: skip
    assert await numbers(stage, status="WAITING", reference="a") == [waiting]
    assert await numbers(stage, reference="b") == ["09120000001"]
    assert len(await numbers(stage, phoneNumber="+98 912 000 0001")) == 2
    assert len(await numbers(stage, phoneNumber="۰۹۱۲۰۰۰۰۰۰۱", to=now)) == 1
    assert len(await numbers(stage, **{"from": now})) == 1
    assert len(await numbers(stage, **{"from": now - 100, "to": now})) == 2
    assert await numbers(stage, **{"from": now + 1}) == []
    assert len(await numbers(stage, status="", phoneNumber="", **{"from": ""})) == 3
    assert await numbers(stage, campaignId="0" * 32) == []


async def test_a_plus_sign_that_a_query_made_a_space_is_understood(sqlite_stage: Stage) -> None:
    await single(sqlite_stage, "09120000001")
    async with sqlite_stage.client() as client:
        answer = await client.get(f"{V2}/calls?phoneNumber=+989120000001")
        other = await client.get(f"{V2}/calls?phoneNumber=+09120000001")
    assert len(answer.json()["result"]["calls"]) == len(other.json()["result"]["calls"]) == 1


async def test_pages_go_on_where_the_last_one_ended(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = [f"0912000000{n}" for n in range(10)]
    await batch(stage, phoneNumbers=every, reference="a")
    assert await numbers(stage, limit=3) == every[::-1]
    monkeypatch.setattr(call_lists, "MOST_READ", 4)
    assert await numbers(stage, limit=3, reference="a", status="WAITING") == every[::-1]
    assert await numbers(stage, limit=3, reference="a", status="NORMAL") == []


async def test_another_project_sees_none_of_them(sqlite_stage: Stage) -> None:
    stage = sqlite_stage
    campaign_id = await batch(stage, phoneNumbers=["09120000001"], reference="a")
    _, token = stage.new_token(stage.new_project("other"))
    async with stage.client(token) as client:
        for query in ("", f"?campaignId={campaign_id}", "?reference=a", "?status=WAITING"):
            answer = await client.get(f"{V2}/calls{query}")
            assert answer.json()["result"] == {"calls": [], "nextCursor": None}
        answer = await client.get(f"{V2}/campaigns")
        assert answer.json()["result"] == {"campaigns": [], "nextCursor": None}


@pytest.mark.parametrize(
    ("path", "query", "field"),
    [
        ("calls", "status=DONE", "status"),
        ("calls", "campaignId=a", "campaignId"),
        ("calls", f"reference={'a' * 101}", "reference"),
        ("calls", "from=soon", "from"),
        ("calls", "from=-1", "from"),
        ("calls", "to=999999999999999", "to"),
        ("calls", "cursor=a", "cursor"),
        ("calls", "limit=0", "limit"),
        ("campaigns", "state=DONE", "state"),
        ("campaigns", "limit=1001", "limit"),
    ],
)
async def test_a_wrong_filter_is_named(
    sqlite_stage: Stage, path: str, query: str, field: str
) -> None:
    async with sqlite_stage.client() as client:
        answer = await client.get(f"{V2}/{path}?{query}")
    assert (answer.status_code, answer.json()["error"]) == (400, "InvalidRequest")
    assert answer.json()["message"].startswith(field)


async def test_a_wrong_number_is_no_phone_number(sqlite_stage: Stage) -> None:
    async with sqlite_stage.client() as client:
        answer = await client.get(f"{V2}/calls?phoneNumber=110")
    assert (answer.status_code, answer.json()["error"]) == (400, "InvalidPhoneNumber")


async def test_campaigns_are_listed_by_state(stage: Stage) -> None:
    now = int(stage.clock.now)
    finished = await batch(stage, phoneNumbers=["09120000001"], name="first")
    stage.answer(*stage.take())
    stage.clock.now += 1
    paused = await batch(stage, phoneNumbers=["09120000002"])
    stage.clock.now += 1
    scheduled = await batch(stage, phoneNumbers=["09120000003"], startAt=now + 3600)
    stage.clock.now += 1
    running = await batch(stage, phoneNumbers=["09120000004"])
    async with stage.client() as client:
        await client.post(f"{V2}/campaign/{paused}/pause")
        one = (await client.get(f"{V2}/campaign/{finished}")).json()["result"]
    every = await listed(stage, "campaigns", limit=1)
    assert [each["id"] for each in every] == [running, scheduled, paused, finished]
    assert every[-1] == one
    for state, wanted in (
        ("RUNNING", [running]),
        ("SCHEDULED", [scheduled]),
        ("PAUSED", [paused]),
        ("FINISHED", [finished]),
        ("CANCELED", []),
        ("FINISHED,PAUSED", [paused, finished]),
    ):
        found = await listed(stage, "campaigns", state=state)
        assert [each["id"] for each in found] == wanted, state


@pytest.mark.parametrize("step", STEPS)
async def test_dates_of_filters_are_those_that_calls_show(
    sqlite_stage: Stage, tmp_path: Path, step: float
) -> None:
    stage, machine = sqlite_stage, Machine(tmp_path / "data")
    clock = machine.open()
    stage.parts = dataclasses.replace(
        stage.parts, clock=clock, date=clock.date, system_clock=machine.system
    )
    stage.app = build_app(stage.parts)
    machine.passes(100.0)
    machine.system_time += step
    machine.passes(100.0)
    placed = await single(stage, "09120000001")
    machine.passes(50.0)
    [call] = await listed(stage)
    date = call["requestDate"]
    assert [one["id"] for one in await listed(stage, **{"from": date, "to": date + 2})] == [placed]
    assert await listed(stage, **{"from": date + 2}) == []
    assert await listed(stage, **{"from": date - 10, "to": date}) == []


@given(
    st.integers(1, 2_000_000_000),
    st.floats(-1e6, 1e6),
    st.floats(0, 2_000_000_000, exclude_min=True),
)
def test_a_span_begins_and_ends_where_the_date_does(wanted: int, gap: float, at: float) -> None:
    def date(moment: float) -> float:
        return moment + gap

    since = DateRange(since=wanted).span(None, date, 1e9)
    until = DateRange(until=wanted).span(None, date, 1e9)
    if abs(date(at) - wanted) > 0.01:  # ids have milliseconds
        assert (new_id(at) >= since.first) == (date(at) >= wanted)
        assert (new_id(at) < until.before) == (date(at) < wanted)
