"""What a project may keep and have under way: recordings, their bytes, uploads and texts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from bitel.api import rate_limits
from bitel.errors import TooManyRequestsError
from bitel.store import recordings
from tests.api.test_uploads import UPLOAD, tone

if TYPE_CHECKING:
    from tests.api.stage import Stage

SPEAK = "/api/v2/files/tts"


async def upload(client: Any, seconds: float = 1.0) -> tuple[int, str | None]:
    answer = await client.post(UPLOAD, files={"file": ("a.wav", tone(seconds))})
    return answer.status_code, answer.json()["error"]


def kept(stage: Stage) -> int:
    return len(stage.do(lambda conn: recordings.page(conn, stage.project_id)))


def files(stage: Stage) -> int:
    """Those in the storage and on the way there; the first recording has none."""
    return len([path for path in stage.leftovers() if path.is_file()])


async def test_a_project_keeps_so_many_recordings(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage(limits={"recordings": 3})  # it has one from the start
    async with stage.client() as client:
        assert await upload(client) == (200, None)
        assert (await client.post(SPEAK, json={"text": "hello"})).status_code == 200
        refused = await client.post(UPLOAD, files={"file": ("a.wav", tone())})
        assert (refused.status_code, refused.json()["error"]) == (413, "PayloadTooLarge")
        assert "limits.recordings" in refused.json()["message"]
        spoken = await client.post(SPEAK, json={"text": "good bye"})
        assert (spoken.status_code, spoken.json()["error"]) == (413, "PayloadTooLarge")
        # What has been spoken is there already.
        assert (await client.post(SPEAK, json={"text": "hello"})).status_code == 200
        assert kept(stage) == 3
        await client.delete(f"{UPLOAD}/{stage.recording_id}")
        assert await upload(client) == (200, None)
    assert files(stage) == 2 * kept(stage)


async def test_the_bytes_of_a_project_s_recordings_are_bounded(
    make_stage: Callable[..., Stage],
) -> None:
    stage = make_stage(limits={"storage_megabytes": 1})  # 65 s, of which one is there
    async with stage.client() as client:
        assert await upload(client, 40) == (200, None)
        assert await upload(client, 30) == (413, "PayloadTooLarge")
        assert await upload(client, 20) == (200, None)
    assert kept(stage) == 3
    assert files(stage) == 2 * (kept(stage) - 1)


async def test_another_project_has_its_own_room(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage(limits={"recordings": 1})
    other, _ = stage.new_token(stage.new_project("other")), None
    async with stage.client() as client, stage.client(other[1]) as another:
        assert await upload(client) == (413, "PayloadTooLarge")
        assert await upload(another) == (200, None)


async def test_two_uploads_at_once_do_not_pass_the_quota_together(
    make_stage: Callable[..., Stage],
) -> None:
    stage = make_stage(limits={"recordings": 2})
    async with stage.client() as client:
        answers = await asyncio.gather(*(upload(client) for _ in range(4)))
    assert sorted(answers, key=str) == [(200, None)] + [(413, "PayloadTooLarge")] * 3
    assert kept(stage) == 2
    assert files(stage) == 2 * (kept(stage) - 1)


async def test_one_project_has_so_many_uploads_under_way(make_stage: Callable[..., Stage]) -> None:
    stage = make_stage()
    uploads = stage.app.state.services.uploads._under_way
    async with (
        stage.client() as client,
        stage.client(stage.new_token(stage.new_project("other"))[1]) as another,
    ):
        pieces = [uploads.one_more(stage.project_id) for _ in range(16)]
        for each in pieces:
            each.__enter__()
        refused = await client.post(UPLOAD, files={"file": ("a.wav", tone())})
        assert (refused.status_code, refused.json()["error"]) == (429, "TooManyRequests")
        assert refused.headers["retry-after"] == str(rate_limits.RETRY_AFTER)
        assert await upload(another) == (200, None)
        pieces.pop().__exit__(None, None, None)
        assert await upload(client) == (200, None)


def test_work_that_fails_is_no_longer_under_way() -> None:
    under_way = rate_limits.ConcurrencyQuota(1, "texts")
    with pytest.raises(RuntimeError), under_way.one_more("a"):
        raise RuntimeError
    with under_way.one_more("a"), under_way.one_more("b"), pytest.raises(TooManyRequestsError):
        under_way.one_more("a").__enter__()
