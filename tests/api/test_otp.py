"""One-time passwords: digits, intro, time to live, and how many a number gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.api.stage import Stage

OTP = "/api/v2/voice/otp"
BODY = {"phoneNumber": "09121234567", "text": "4071"}


@pytest.mark.parametrize("text", ["1", "12345", "1234567890", "۱۲۳۴۵۶۷۸۹۰"])
async def test_a_code_has_up_to_ten_digits(sqlite_stage: Stage, text: str) -> None:
    async with sqlite_stage.client() as client:
        answer = await client.post(OTP, json={**BODY, "text": text})
        assert answer.status_code == 200
        refused = await client.post(OTP, json={**BODY, "text": text + "1" * (11 - len(text))})
    assert (refused.status_code, refused.json()["error"]) == (400, "InvalidRequest")
    assert "1 to 10 digits" in refused.json()["message"]


@pytest.mark.parametrize("path", [OTP, "/api/v1/voice/otp"])
async def test_a_code_lives_for_five_minutes(sqlite_stage: Stage, path: str) -> None:
    stage = sqlite_stage
    async with stage.client() as client:
        await client.post(path, json=BODY)
        await client.post(path, json={**BODY, "phoneNumber": "09121234568", "timeToLive": 60})
        await client.post("/api/v2/voice/single", json=stage.body(phoneNumber="09121234569"))
    lives = {row.e164[-1]: round(row.expires_at - row.requested_at) for row in stage.rows()}
    assert lives == {"7": 300, "8": 60, "9": 14_400}


async def test_an_intro_is_short(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage(otp={"max_intro": 20})
    short, long = (stage.new_recording(stage.project_id, seconds) for seconds in (20.0, 20.5))
    async with stage.client() as client:
        assert (await client.post(OTP, json={**BODY, "voiceId": short})).status_code == 200
        refused = await client.post(OTP, json={**BODY, "voiceId": long})
    assert (refused.status_code, refused.json()["error"]) == (400, "InvalidRequest")
    assert "voiceId" in refused.json()["message"]
    assert "20 s" in refused.json()["message"]


async def test_a_number_gets_five_in_ten_minutes(stage: Stage) -> None:
    key = {"Idempotency-Key": "order-1"}
    async with stage.client() as client:
        assert (await client.post(OTP, json=BODY, headers=key)).status_code == 200
        for _ in range(20):  # answered again, and not counted
            assert (await client.post(OTP, json=BODY, headers=key)).status_code == 200
        for path in (OTP, "/api/v1/voice/otp", OTP, OTP):
            assert (await client.post(path, json=BODY)).status_code == 200
        for more in ({}, {"Idempotency-Key": "new"}):
            refused = await client.post(OTP, json=BODY, headers=more)
            assert (refused.status_code, refused.json()["error"]) == (429, "TooManyRequests")
            assert refused.headers["retry-after"] == "600"
        # Written in another way it is the same number.
        other = await client.post(OTP, json={**BODY, "phoneNumber": "+98 912 123 4567"})
        assert other.status_code == 429
        assert (await client.post(OTP, json=BODY, headers=key)).status_code == 200
        stage.clock.advance(600)
        assert (await client.post(OTP, json=BODY)).status_code == 200


async def test_calls_to_a_number_in_a_day(stage: Stage) -> None:
    stage.change(max_calls_per_number_per_day=2)
    batch: dict[str, Any] = {"voiceId": stage.recording_id}
    async with stage.client() as client:
        for numbers, status in (
            ("09121234567,09121234568", 200),
            ("09121234569,09121234567", 200),
            ("09121234560,09121234567", 429),
        ):
            answer = await client.post(
                "/api/v2/voice/batch", json={**batch, "phoneNumbers": numbers}
            )
            assert answer.status_code == status
        assert answer.headers["retry-after"] == str(24 * 3600)
        assert "9121234567" not in answer.json()["message"]
        assert (await client.post("/api/v2/voice/single", json=stage.body())).status_code == 429
    assert stage.queued() == 4
