"""The older API: ids where v2 answers calls, and call detail records."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import select

from bitel.store.schema import ledger_entry

if TYPE_CHECKING:
    from tests.api.stage import Stage

V1 = "/api/v1/voice"
KEYS = [
    "requestId",
    "targetNumber",
    "status",
    "billSec",
    "requestDate",
    "executionDate",
    "transactionId",
    "balanceSubtracted",
]


@pytest.mark.parametrize("kind", ["single", "otp", "tts"])
async def test_placing_a_call_answers_its_id(stage: Stage, kind: str) -> None:
    body = stage.body(text="4071", retryCount=2, retryInterval=30, timeToLive=600, serverId="main")
    async with stage.client() as client:
        answer = await client.post(f"{V1}/{kind}", json=body)
    assert list(answer.json()) == ["result", "error"]
    (row,) = stage.rows()
    assert answer.json() == {"result": row.id, "error": None}
    assert (row.retry_count, row.retry_interval, row.dialer_id) == (2, 30, "main")
    assert row.expires_at == stage.clock() + 600


async def test_placing_a_campaign_answers_its_id(stage: Stage) -> None:
    numbers = ["09120000001", "09120000002"]
    body = {"phoneNumbers": numbers, "voiceId": stage.recording_id, "timeToLive": 60}
    headers = {"Idempotency-Key": "k"}
    async with stage.client() as client:
        answer = await client.post(f"{V1}/campaign", json=body, headers=headers)
        again = await client.post(f"{V1}/campaign", json=body, headers=headers)
        assert again.content == answer.content
        campaign_id = answer.json()["result"]
        state = await client.get(f"/api/v2/voice/campaign/{campaign_id}")
        assert state.json()["result"]["total"] == 2
        listed = (await client.get(f"{V1}/campaign/cdr/{campaign_id}")).json()
    assert list(listed) == ["result", "error"]
    assert [record["targetNumber"] for record in listed["result"]] == numbers
    assert {row.campaign_id for row in stage.rows()} == {campaign_id}


async def test_a_record_tells_what_became_of_a_call(stage: Stage) -> None:
    async with stage.client() as client:
        call_id = (await client.post(f"{V1}/single", json=stage.body())).json()["result"]
        before = (await client.get(f"{V1}/cdr/{call_id}")).json()["result"]
        assert list(before) == KEYS
        assert before == {
            "requestId": call_id,
            "targetNumber": "0912 123 4567",
            "status": "WAITING",
            "billSec": 0,
            "requestDate": int(stage.clock()),
            "executionDate": 0,
            "transactionId": None,
            "balanceSubtracted": 0.0,
        }
        stage.clock.advance(3)
        stage.answer(*stage.take(), price="34.2")
        after = (await client.get(f"{V1}/cdr/{call_id}")).json()["result"]
    (entry,) = stage.do(lambda conn: list(conn.execute(select(ledger_entry))))
    assert after == {
        **before,
        "status": "NORMAL",
        "billSec": 12,
        "executionDate": before["requestDate"] + 3,
        "transactionId": entry.id,
        "balanceSubtracted": 34.2,
    }


@pytest.mark.parametrize("what", ["cdr", "campaign/cdr"])
@pytest.mark.parametrize("wanted", ["0" * 32, "x", "%00"])
async def test_what_is_not_there_is_not_found(stage: Stage, what: str, wanted: str) -> None:
    async with stage.client() as client:
        answer = await client.get(f"{V1}/{what}/{wanted}")
    assert (answer.status_code, answer.json()["error"]) == (404, "NotFound")


@pytest.mark.parametrize("path", [f"{V1}/{kind}" for kind in ("single", "otp", "tts", "campaign")])
async def test_numbers_with_a_forbidden_prefix_are_refused(stage: Stage, path: str) -> None:
    stage.change(allowed_prefixes=("+98", "+4420"), forbidden_prefixes=("+98900", "+442071"))
    async with stage.client() as client:
        for number in ("09001234567", "+442071838750", "+12125551234"):
            body = stage.body(phoneNumber=number, phoneNumbers=[number], text="4071")
            refused = await client.post(path, json=body)
            assert (refused.status_code, refused.json()["error"]) == (403, "Forbidden"), number
        assert stage.queued() == 0
        body = stage.body(phoneNumbers=["09121234567", "+442079460018"], text="4071")
        assert (await client.post(path, json=body)).status_code == 200


async def test_it_refuses_as_v2_does(sqlite_stage: Stage) -> None:
    stage = sqlite_stage
    async with stage.client() as client:
        for path, body, code in (
            ("single", stage.body(phoneNumber="x"), "InvalidPhoneNumber"),
            ("single", stage.body(serverId="x"), "InvalidServer"),
            ("single", stage.body(voiceId="x"), "InvalidRequest"),
            ("otp", stage.body(text="abc"), "InvalidRequest"),
            ("tts", stage.body(text=""), "InvalidRequest"),
            ("campaign", {"phoneNumbers": [], "voiceId": "x"}, "InvalidRequest"),
        ):
            answer = await client.post(f"{V1}/{path}", json=body)
            assert (answer.status_code, answer.json()["error"]) == (400, code), path
        del client.headers["Authorization"]
        assert (await client.post(f"{V1}/single", json=stage.body())).status_code == 401
    assert stage.queued() == 0
