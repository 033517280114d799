"""Campaigns over HTTP: names, schedules, paces, recipients, pausing, resuming and changing."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from sqlalchemy import select

from bitel.store.schema import call, campaign

if TYPE_CHECKING:
    from tests.api.stage import Stage

BATCH = "/api/v2/voice/batch"
SINGLE = "/api/v2/voice/single"


async def place(stage: Stage, client: httpx.AsyncClient, **fields: Any) -> dict[str, Any]:
    body = {"phoneNumbers": ["09121234567"], "voiceId": stage.recording_id, **fields}
    if "recipients" in fields or "listId" in fields:
        del body["phoneNumbers"]
    answer = await client.post(BATCH, json=body)
    assert answer.status_code == 200, answer.text
    envelope: dict[str, Any] = answer.json()
    return envelope


def row(stage: Stage) -> Any:
    return stage.do(lambda conn: conn.execute(select(campaign)).one())


async def test_what_is_asked_for_is_stored_and_given_back(stage: Stage) -> None:
    now = stage.clock()
    async with stage.client() as client:
        placed = await place(
            stage, client,
            name="reminders", reference="2026-11", startAt=now + 60, endAt=now + 7200,
            window="09:00-21:00 local", callsPerSecond=2.5, maxChannels=7,
        )  # fmt: skip
        path = f"/api/v2/voice/campaign/{placed['campaignId']}"
        found = (await client.get(path)).json()["result"]
    assert found | {
        "name": "reminders", "reference": "2026-11", "state": "SCHEDULED",
        "startAt": int(now + 60), "endAt": int(now + 7200), "window": "09:00-21:00 local",
        "callsPerSecond": 2.5, "maxChannels": 7, "answered": 0, "keys": {},
        "machines": {"human": 0, "machine": 0},
    } == found  # fmt: skip
    (stored,) = stage.rows()
    assert stored.reference == "2026-11"


async def test_pause_and_resume(stage: Stage) -> None:
    async with stage.client() as client:
        placed = await place(stage, client)
        path = f"/api/v2/voice/campaign/{placed['campaignId']}"
        paused = (await client.post(f"{path}/pause")).json()["result"]
        assert stage.take()[1] == []
        again = (await client.post(f"{path}/pause")).json()["result"]
        stage.rung.clear()
        resumed = (await client.post(f"{path}/resume")).json()["result"]
        assert stage.rung == ["main"], "its dialer looks at once"
        assert len(stage.take()[1]) == 1
    assert (paused["state"], again["state"], resumed["state"]) == ("PAUSED", "PAUSED", "RUNNING")
    assert paused["id"] == placed["campaignId"]
    assert paused["byStatus"]["WAITING"] == 1


async def test_a_change_names_only_what_changes(stage: Stage) -> None:
    now = stage.clock()
    async with stage.client() as client:
        placed = await place(stage, client, name="first", callsPerSecond=3)
        path = f"/api/v2/voice/campaign/{placed['campaignId']}"
        changed = await client.patch(path, json={"maxChannels": 4, "endAt": now + 90})
        assert changed.json()["result"]["callsPerSecond"] == 3
        assert changed.json()["result"]["maxChannels"] == 4
        assert changed.json()["result"]["endAt"] == int(now + 90)
        lifted = await client.patch(path, json={"callsPerSecond": None, "name": "second"})
        result = lifted.json()["result"]
    assert (result["callsPerSecond"], result["maxChannels"], result["name"]) == (None, 4, "second")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"maxChannels": 0}, "maxChannels must be at least 1"),
        ({"callsPerSecond": 0}, "callsPerSecond must be more than 0"),
        ({"callsPerSecond": "5"}, "callsPerSecond must be a number"),
        ({"endAt": 1}, "endAt must lie in the future"),
        ({"endAt": 1.76e12}, "endAt must be in Unix seconds, not in milliseconds"),
        ({"name": "x" * 101}, "name must have at most 100 characters"),
    ],
)
async def test_a_wrong_change_changes_nothing(
    sqlite_stage: Stage, body: dict[str, Any], message: str
) -> None:
    stage = sqlite_stage
    async with stage.client() as client:
        placed = await place(stage, client)
        before = row(stage)
        answer = await client.patch(
            f"/api/v2/voice/campaign/{placed['campaignId']}", json={"name": "new", **body}
        )
    assert (answer.status_code, answer.json()["error"]) == (400, "InvalidRequest")
    assert message in answer.json()["message"]
    assert row(stage) == before


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "x" * 101}, "name must have at most 100 characters"),
        ({"startAt": "soon"}, "startAt must be a number"),
        ({"startAt": 4e9}, "startAt must be within a year"),
        ({"endAt": 5}, "endAt must lie in the future"),
        ({"startAt": 1_700_000_100, "endAt": 1_700_000_050}, "endAt must be later than startAt"),
        ({"retry": {"busy": [4]}}, "retry.busy[0] must be at least 5"),
        ({"retry": {"busy": [5] * 6, "noAnswer": [5] * 5}}, "retry must hold at most 10 waits"),
        ({"retry": {}, "retryCount": 1}, "retry takes the place of retryCount"),
        ({"callerId": "123"}, "callerId must be one of"),
        ({"window": "always"}, "the window 'always' can't be read"),
        ({"window": "09:00-21:00 Mars/Olympus"}, "is no time zone"),
        ({"maxChannels": True}, "maxChannels must be a whole number"),
        ({"recipients": [{"phoneNumber": "09121234567"}]}, "give one of phoneNumbers"),
        ({"listId": "0" * 32}, "give one of phoneNumbers"),
    ],
)
async def test_a_wrong_field_is_named_and_nothing_is_placed(
    sqlite_stage: Stage, fields: dict[str, Any], message: str
) -> None:
    stage = sqlite_stage
    body = {"phoneNumbers": ["09121234567"], "voiceId": stage.recording_id, **fields}
    async with stage.client() as client:
        answer = await client.post(BATCH, json=body)
    assert (answer.status_code, answer.json()["error"]) == (400, "InvalidRequest"), answer.text
    assert message in answer.json()["message"]
    assert stage.queued() == 0


async def test_recipients_have_what_is_particular_to_them(stage: Stage) -> None:
    people = [
        {"phoneNumber": "09121234567", "reference": "a", "timeZone": "Europe/Berlin",
         "variables": {"name": "Sara", "amount": 12}},
        {"phoneNumber": "0935 000 0001"},
    ]  # fmt: skip
    async with stage.client() as client:
        placed = await place(stage, client, recipients=people, reference="all")
    first, second = stage.rows()
    assert [one["phoneNumber"] for one in placed["result"]] == ["09121234567", "0935 000 0001"]
    assert (first.reference, first.time_zone) == ("a", "Europe/Berlin")
    assert json.loads(first.variables) == {"name": "Sara", "amount": "12"}
    assert (second.reference, second.time_zone, second.variables) == ("all", None, None)
    assert first.parts is None, "a recording plays"


@pytest.mark.parametrize(
    ("person", "message"),
    [
        ({"phoneNumber": "112"}, "recipients[1].phoneNumber"),
        ({"phoneNumber": "09121234567", "timeZone": "Mars"}, "recipients[1].timeZone"),
        ({"phoneNumber": "09121234567", "reference": "x" * 101}, "recipients[1].reference"),
        (
            {"phoneNumber": "09121234567", "variables": {"name": "x" * 501}},
            "recipients[1].variables.name",
        ),
        ({"reference": "x"}, "recipients[1].phoneNumber is missing"),
    ],
)
async def test_a_wrong_recipient_is_named(
    sqlite_stage: Stage, person: dict[str, Any], message: str
) -> None:
    stage = sqlite_stage
    people = [{"phoneNumber": "09121234567"}, person]
    async with stage.client() as client:
        answer = await client.post(
            BATCH, json={"recipients": people, "voiceId": stage.recording_id}
        )
    assert answer.status_code == 400
    assert message in answer.json()["message"]
    assert stage.queued() == 0


async def test_bad_ones_are_left_out_and_listed_where_that_is_asked_for(stage: Stage) -> None:
    numbers = ["09121234567", "112", "09350000001", "nonsense"]
    async with stage.client() as client:
        placed = await place(stage, client, phoneNumbers=numbers, skipInvalid=True)
        found = (await client.get(f"/api/v2/voice/campaign/{placed['campaignId']}")).json()
        none = await client.post(
            BATCH,
            json={"phoneNumbers": ["112"], "voiceId": stage.recording_id, "skipInvalid": True},
        )
        plain = await place(stage, client)
    assert [one["phoneNumber"] for one in placed["result"]] == ["09121234567", "09350000001"]
    assert [(one["index"], one["phoneNumber"]) for one in placed["skipped"]] == [
        (1, "112"), (3, "nonsense")
    ]  # fmt: skip
    assert "phoneNumbers[1]" in placed["skipped"][0]["message"]
    assert found["result"]["total"] == 2
    assert none.json()["error"] == "InvalidPhoneNumber"
    assert "skipped" not in plain


async def test_a_single_call_starts_and_ends_when_it_is_asked_to(stage: Stage) -> None:
    now = stage.clock()
    async with stage.client() as client:
        body = stage.body(startAt=now + 100, endAt=now + 150, timeToLive=3600)
        placed = (await client.post(SINGLE, json=body)).json()["result"]
        assert stage.take()[1] == []
        stage.clock.advance(100)
        (claimed,) = stage.take()[1]
    assert claimed.call_id == placed["id"]
    assert claimed.rule.expires_at == now + 150


async def test_the_time_to_live_of_a_single_call_stops_outside_of_its_window(stage: Stage) -> None:
    stage.clock.now = datetime(2026, 3, 16, 20, 30, tzinfo=UTC).timestamp()
    stage.change(window="09:00-21:00 UTC")
    async with stage.client() as client:
        await client.post(SINGLE, json=stage.body(timeToLive=3600))
    (stored,) = stage.rows()
    assert stored.expires_at == datetime(2026, 3, 17, 9, 30, tzinfo=UTC).timestamp()


async def test_waits_of_each_outcome_are_stored(stage: Stage) -> None:
    async with stage.client() as client:
        await client.post(SINGLE, json=stage.body(retry={"busy": [60, 300], "noAnswer": [600]}))
    (stored,) = stage.rows()
    assert stored.retry_waits == "60,300;600"


async def test_a_text_with_variables_is_rendered_for_each(stage: Stage) -> None:
    people = [
        {"phoneNumber": "09121234567", "variables": {"name": "Sara"}},
        {"phoneNumber": "09350000001", "variables": {"name": "Ali", "more": 1}},
    ]
    stage.set_balance("10000")
    text = "Dear {name}, your appointment is tomorrow."
    async with stage.client() as client:
        answer = await client.post(
            f"{BATCH}/tts", json={"recipients": people, "text": text, "language": "en"}
        )
    assert answer.status_code == 200, answer.text
    assert row(stage).template == text
    for stored in stage.rows():
        assert (stored.recording_id, stored.parts, stored.digits) == (None, (), "")
        assert stored.longest_seconds > 3


async def test_a_missing_variable_names_the_row(stage: Stage) -> None:
    people = [
        {"phoneNumber": "09121234567", "variables": {"name": "Sara"}},
        {"phoneNumber": "09350000001", "variables": {"nam": "Ali"}},
    ]
    body = {"recipients": people, "text": "Dear {name}.", "language": "en"}
    async with stage.client() as client:
        refused = await client.post(f"{BATCH}/tts", json=body)
        skipped = await client.post(f"{BATCH}/tts", json={**body, "skipInvalid": True})
    assert refused.status_code == 400
    assert "recipients[1]" in refused.json()["message"]
    assert "name" in refused.json()["message"]
    envelope = skipped.json()
    assert [one["phoneNumber"] for one in envelope["result"]] == ["09121234567"]
    assert [one["index"] for one in envelope["skipped"]] == [1]


async def test_a_list_stands_in_place_of_recipients(stage: Stage) -> None:
    content = "phone,name\n09121234567,Sara\n112,Nobody\n09350000001,Ali\n"
    async with stage.client() as client:
        files = {"file": ("people.csv", content.encode(), "text/csv")}
        listed = (await client.post("/api/v2/files/list", files=files)).json()["result"]
        assert (listed["rows"], listed["valid"]) == (3, 2)
        body = {"listId": listed["id"], "text": "Dear {name}.", "language": "en"}
        refused = await client.post(f"{BATCH}/tts", json=body)
        placed = await client.post(f"{BATCH}/tts", json={**body, "skipInvalid": True})
        unknown = await client.post(f"{BATCH}/tts", json={**body, "listId": "0" * 32})
        wrong = {**body, "text": "Dear {nam}.", "skipInvalid": True}
        misspelt = await client.post(f"{BATCH}/tts", json=wrong)
    assert refused.json()["error"] == "InvalidPhoneNumber"
    assert refused.json()["message"].startswith("line 3 of listId '112'")
    envelope = placed.json()
    assert [one["phoneNumber"] for one in envelope["result"]] == ["09121234567", "09350000001"]
    assert [one["index"] for one in envelope["skipped"]] == [1]
    names = [json.loads(each.variables)["name"] for each in stage.rows()]
    assert names == ["Sara", "Ali"]
    assert unknown.json()["error"] == "InvalidRequest"
    assert "listId" in unknown.json()["message"]
    assert misspelt.json()["message"] == (
        "line 2 of listId has no variable 'nam', which the text needs; it has 'name'"
    )


async def test_a_repeated_request_with_a_key_places_nothing_more(stage: Stage) -> None:
    body = {
        "recipients": [{"phoneNumber": "09121234567"}, {"phoneNumber": "112"}],
        "voiceId": stage.recording_id,
        "skipInvalid": True,
    }
    async with stage.client() as client:
        headers = {"Idempotency-Key": "one"}
        first = await client.post(BATCH, json=body, headers=headers)
        again = await client.post(BATCH, json=body, headers=headers)
    assert first.content == again.content
    assert stage.do(lambda conn: len(conn.execute(select(call.c.id)).all())) == 1
