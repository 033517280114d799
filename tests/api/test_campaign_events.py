"""Server-sent events of a campaign: what a client is sent, when the stream ends, and its limits."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest

from bitel.api import campaign_events
from bitel.store import tokens
from tests.support.waiting import until

if TYPE_CHECKING:
    from tests.api.stage import Stage

Served = Callable[["Stage"], Any]
V2 = "/api/v2/voice"


class Event(NamedTuple):
    name: str
    id: str
    data: Any


class Stream:
    """The events of a response, as they come."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self._lines = answer.aiter_lines()
        self.comments = 0
        self.retry = 0

    async def next(self) -> Event | None:
        """The next event; None at the end of the stream."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(10):
            async for line in self._lines:
                if line.startswith(":"):
                    self.comments += 1
                elif line:
                    name, _, value = line.partition(": ")
                    fields[name] = value
                elif "data" in fields:
                    return Event(fields["event"], fields["id"], json.loads(fields["data"]))
                elif "retry" in fields:
                    self.retry = int(fields.pop("retry"))
        return None

    async def comment(self) -> None:
        """Wait for a comment."""
        async with asyncio.timeout(10):
            async for line in self._lines:
                if line.startswith(":"):
                    return


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign_events, "POLL_SECONDS", 0.02)


async def place(stage: Stage, numbers: int = 2) -> str:
    async with stage.client() as client:
        body = {
            "phoneNumbers": [f"0912000000{number}" for number in range(numbers)],
            "voiceId": stage.recording_id,
        }
        answer = await client.post(f"{V2}/batch", json=body)
    campaign_id: str = answer.json()["campaignId"]
    return campaign_id


@asynccontextmanager
async def listening(
    url: str, campaign_id: str, token: str = "", **headers: str
) -> AsyncIterator[Stream]:
    async with (
        httpx.AsyncClient(timeout=20) as client,
        client.stream(
            "GET",
            f"{url}{V2}/campaign/{campaign_id}/events",
            params={"access_token": token} if token else {},
            headers=headers,
        ) as answer,
    ):
        yield Stream(answer)


async def state_of(stage: Stage, campaign_id: str) -> Any:
    async with stage.client() as client:
        return (await client.get(f"{V2}/campaign/{campaign_id}")).json()["result"]


async def test_progress_is_sent_at_once_and_at_each_change_until_the_end(
    stage: Stage, served: Served
) -> None:
    campaign_id = await place(stage)
    async with served(stage) as url, listening(url, campaign_id, stage.token) as stream:
        assert stream.answer.headers["content-type"] == "text/event-stream"
        assert stream.answer.headers["cache-control"] == "no-store"
        first = await stream.next()
        assert first
        assert first == Event("progress", first.id, await state_of(stage, campaign_id))
        assert first.data["byStatus"]["WAITING"] == 2
        assert stream.retry == campaign_events.RETRY_MILLISECONDS
        lease, taken = stage.take()
        stage.answer(lease, taken[:1])
        second = await stream.next()
        assert second
        assert second.name == "progress"
        assert second.id != first.id
        assert second.data["byStatus"]["NORMAL"] == 1
        stage.answer(lease, taken[1:])
        third, last = await stream.next(), await stream.next()
        assert third
        assert third.data["byStatus"]["NORMAL"] == 2
        assert last == Event("finished", "finished", third.data)
        assert last.data == await state_of(stage, campaign_id)
        assert await stream.next() is None


async def test_a_client_that_connects_again_is_sent_only_what_it_has_not_seen(
    sqlite_stage: Stage, served: Served
) -> None:
    stage = sqlite_stage
    campaign_id = await place(stage, 1)
    auth = {"Authorization": f"Bearer {stage.token}"}
    async with served(stage) as url:
        async with listening(url, campaign_id, **auth) as stream:
            first = await stream.next()
        assert first
        async with listening(url, campaign_id, **{**auth, "Last-Event-ID": first.id}) as stream:
            await until(lambda: bool(services(stage)._topics))
            stage.answer(*stage.take())
            second = await stream.next()
            assert second
            assert second.data["byStatus"]["NORMAL"] == 1
        async with listening(url, campaign_id, **{**auth, "Last-Event-ID": second.id}) as stream:
            last = await stream.next()
            assert last
            assert last.name == "finished"
        # EventSource connects again after the end of a stream; 204 makes it stop.
        async with listening(url, campaign_id, **{**auth, "Last-Event-ID": last.id}) as stream:
            assert stream.answer.status_code == 204


def services(stage: Stage) -> campaign_events.CampaignEvents:
    found: campaign_events.CampaignEvents = stage.app.state.services.campaign_events
    return found


async def test_listeners_of_a_campaign_share_its_reads(
    sqlite_stage: Stage, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = sqlite_stage
    campaign_id = await place(stage)
    events = services(stage)
    reads: list[int] = []
    read = events._read

    async def counted(keys: Any) -> Any:
        reads.append(len(keys))
        return await read(keys)

    async with served(stage) as url, asyncio.TaskGroup() as group:
        ready = asyncio.Semaphore(0)
        done = asyncio.Event()

        async def listen() -> None:
            async with listening(url, campaign_id, stage.token) as stream:
                assert await stream.next()
                ready.release()
                await done.wait()

        for _ in range(10):
            group.create_task(listen())
        for _ in range(10):
            await ready.acquire()
        monkeypatch.setattr(events, "_read", counted)
        await until(lambda: len(reads) >= 3)
        assert set(reads) == {1}
        assert len(events._topics) == 1
        done.set()
        await until(lambda: not events._topics)
        assert events._poller is None


async def test_a_silent_stream_has_comments_until_its_token_is_revoked(
    sqlite_stage: Stage, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = sqlite_stage
    monkeypatch.setattr(campaign_events, "HEARTBEAT_SECONDS", 0.05)
    campaign_id = await place(stage)
    async with served(stage) as url, listening(url, campaign_id, stage.token) as stream:
        assert await stream.next()
        await stream.comment()
        await stream.comment()
        stage.do(lambda conn: tokens.revoke(conn, stage.token_id, stage.clock()))
        assert await stream.next() is None


async def test_only_streams_of_events_take_a_token_in_the_query(
    sqlite_stage: Stage, served: Served
) -> None:
    stage = sqlite_stage
    campaign_id = await place(stage)
    path = f"{V2}/campaign/{campaign_id}"
    query = f"access_token={stage.token}"
    async with served(stage) as url, httpx.AsyncClient(base_url=url) as client:
        for where in (path, f"{path}/calls", f"{path}/results.csv", f"{V2}/calls"):
            assert (await client.get(f"{where}?{query}")).status_code == 401
        both = await client.get(
            f"{path}/events?{query}", headers={"Authorization": f"Bearer {stage.token}"}
        )
        twice = await client.get(f"{path}/events?{query}&{query}")
        assert both.status_code == twice.status_code == 400
        assert "access_token" in both.json()["message"]
        assert (await client.get(f"{path}/events")).status_code == 401
        assert (await client.get(f"{path}/events?access_token=a")).status_code == 401


async def test_a_campaign_of_another_project_is_not_found(
    sqlite_stage: Stage, served: Served
) -> None:
    stage = sqlite_stage
    campaign_id = await place(stage)
    _, other = stage.new_token(stage.new_project("other"))
    async with served(stage) as url, httpx.AsyncClient(base_url=url) as client:
        for wanted, token in ((campaign_id, other), ("0" * 32, stage.token), ("x", stage.token)):
            answer = await client.get(f"{V2}/campaign/{wanted}/events?access_token={token}")
            assert answer.status_code == 404
            assert answer.json()["error"] == "NotFound"


async def test_streams_are_limited_and_those_that_are_closed_make_room(
    sqlite_stage: Stage, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = sqlite_stage
    monkeypatch.setattr(campaign_events, "MOST_OF_PROJECT", 2)
    monkeypatch.setattr(campaign_events, "MOST_LISTENERS", 3)
    campaign_id = await place(stage)
    other_id = stage.new_project("other")
    _, other = stage.new_token(other_id)
    recording = stage.new_recording(other_id)
    async with stage.client(other) as client:
        body = {"phoneNumbers": ["09120000001"], "voiceId": recording}
        theirs = (await client.post(f"{V2}/batch", json=body)).json()["campaignId"]
    async with served(stage) as url, listening(url, campaign_id, stage.token) as first:
        assert await first.next()
        async with listening(url, campaign_id, stage.token) as second:
            assert await second.next()
            async with listening(url, campaign_id, stage.token) as third:
                assert third.answer.status_code == 429
                assert int(third.answer.headers["retry-after"]) > 0
            async with (
                listening(url, theirs, other) as third,
                listening(url, theirs, other) as fourth,
            ):
                assert (third.answer.status_code, fourth.answer.status_code) == (200, 429)
        await until(lambda: services(stage)._streams[stage.project_id] == 1)
        async with listening(url, campaign_id, stage.token) as second:
            assert await second.next()


async def test_streams_end_when_the_server_shuts_down(sqlite_stage: Stage, served: Served) -> None:
    stage = sqlite_stage
    campaign_id = await place(stage)
    async with asyncio.timeout(10):
        serving = served(stage)
        url = await serving.__aenter__()
        async with listening(url, campaign_id, stage.token) as stream:
            assert await stream.next()
            closing = asyncio.create_task(serving.__aexit__(None, None, None))
            assert await stream.next() is None  # a complete response
            await closing
    assert not services(stage)._topics


async def test_a_project_that_is_deleted_ends_its_streams(
    sqlite_stage: Stage, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = sqlite_stage
    campaign_id = await place(stage)
    async with served(stage) as url, listening(url, campaign_id, stage.token) as stream:
        assert await stream.next()

        async def gone(keys: Any) -> list[None]:
            return [None for _ in keys]

        monkeypatch.setattr(services(stage), "_read", gone)
        assert await stream.next() is None


async def test_no_token_of_a_query_is_logged(
    sqlite_stage: Stage, served: Served, logs: list[Any]
) -> None:
    stage = sqlite_stage
    campaign_id = await place(stage, 1)
    stage.answer(*stage.take())
    async with served(stage) as url:
        async with listening(url, campaign_id, stage.token) as stream:
            assert await stream.next()
        async with listening(url, "x", stage.token) as stream:
            assert stream.answer.status_code == 404
    paths = [line["path"] for line in logs if "path" in line]
    assert any(path.endswith("/events") for path in paths)
    assert stage.token not in repr(logs)
    assert "access_token" not in repr(paths)
