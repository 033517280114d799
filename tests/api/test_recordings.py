"""Listing recordings and removing them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.api.stage import Stage

VOICES = "/api/v2/files/voice"


async def test_recordings_come_in_pages_the_oldest_first(stage: Stage) -> None:
    ids = [stage.recording_id]
    for _ in range(4):
        stage.clock.advance(1)
        ids.append(stage.new_recording(stage.project_id))
    stage.new_recording(stage.new_project("other"))
    found: list[str] = []
    cursor = None
    async with stage.client() as client:
        while True:
            params = {"limit": "2"} | ({"cursor": cursor} if cursor else {})
            result = (await client.get(VOICES, params=params)).json()["result"]
            assert list(result) == ["recordings", "nextCursor"]
            assert len(result["recordings"]) <= 2
            found += [each["id"] for each in result["recordings"]]
            cursor = result["nextCursor"]
            if cursor is None:
                break
    assert found == ids


async def test_a_recording_is_removed_with_its_audio(stage: Stage) -> None:
    async with stage.client() as client:
        made = (await client.post("/api/v2/files/tts", json={"text": "hello"})).json()["result"]
        assert len(stage.leftovers()) == 2
        gone = await client.delete(f"{VOICES}/{made['id']}")
        assert gone.json() == {"result": made, "error": None}
        assert stage.leftovers() == []
        for method in ("DELETE", "GET"):
            answer = await client.request(method, f"{VOICES}/{made['id']}")
            assert (answer.status_code, answer.json()["error"]) == (404, "NotFound")
        refused = await client.post("/api/v2/voice/single", json=stage.body(voiceId=made["id"]))
        assert (refused.status_code, refused.json()["error"]) == (400, "InvalidRequest")
        listed = (await client.get(VOICES)).json()["result"]["recordings"]
    assert [each["id"] for each in listed] == [stage.recording_id]


async def test_a_recording_that_calls_need_stays(stage: Stage) -> None:
    path = f"{VOICES}/{stage.recording_id}"
    async with stage.client() as client:
        placed = (await client.post("/api/v2/voice/single", json=stage.body())).json()["result"]
        refused = await client.delete(path)
        assert (refused.status_code, refused.json()["error"]) == (409, "Conflict")
        await client.delete(f"/api/v2/voice/{placed['id']}")
        assert (await client.delete(path)).status_code == 200
        # Its duration is still remembered; that it is gone must be noticed all the same.
        answer = await client.post("/api/v2/voice/single", json=stage.body())
        assert (answer.status_code, answer.json()["error"]) == (400, "InvalidRequest")
        batch = {"phoneNumbers": ["09121234567"], "voiceId": stage.recording_id}
        answer = await client.post("/api/v2/voice/batch", json=batch)
        assert (answer.status_code, answer.json()["error"]) == (400, "InvalidRequest")
        assert "voiceId" in answer.json()["message"]


@pytest.mark.parametrize("voice_id", ["0" * 32, "x", "%00", "A" * 32])
async def test_an_unknown_recording_is_not_found(stage: Stage, voice_id: str) -> None:
    async with stage.client() as client:
        answer = await client.delete(f"{VOICES}/{voice_id}")
    assert (answer.status_code, answer.json()["error"]) == (404, "NotFound")
