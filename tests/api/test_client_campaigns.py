"""`bitel.client` for campaigns: their options, control, results and events, lists, do-not-call."""

from __future__ import annotations

import asyncio
import csv
import socket
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import uvicorn

from bitel import client_requests
from bitel.api import campaign_events
from bitel.api.server import config
from bitel.client import AsyncClient, Client, Recipient
from bitel.client_events import LONGEST_EVENT, RECONNECT_FOR, EventReader
from bitel.errors import (
    InvalidPhoneNumberError,
    InvalidRequestError,
    NotFoundError,
    TooManyRequestsError,
    UnavailableError,
)
from tests.support.clocks import FakeClock
from tests.support.waiting import until

if TYPE_CHECKING:
    from tests.api.stage import Stage

NUMBER = "09121234567"
PEOPLE = "phone,reference,name\n09121234567,a-1,Sara\n0912,a-2,Ali\n09350000001,a-3,Nima\n"


def test_every_option_becomes_its_field() -> None:
    request = client_requests.batch(
        None,
        "v",
        recipients=[
            Recipient("0912", "a-1", {"name": "Sara", "amount": 5}, "Asia/Tehran"),
            Recipient("0935"),
        ],
        retry_count=None,
        time_to_live=60,
        server_id="main",
        idempotency_key="k",
        name="reminders",
        reference="2026-11",
        start_at=datetime(2026, 11, 27, 12, tzinfo=UTC),
        end_at=1_800_000_000,
        busy_waits=[60, 300],
        no_answer_waits=(600,),
        caller_id="02191000000",
        menu={"keys": {"9": {"optOut": True}}},
        machine_detection="message",
        machine_voice_id="m",
        webhook_url="https://example.com/hook",
        webhook_events=["call.answered"],
        calls_per_second=2.5,
        max_channels=7,
        window="sat-wed 09:00-21:00 local",
        skip_invalid=True,
    )
    assert request.headers == {"Idempotency-Key": "k"}
    assert request.body == {
        "recipients": [
            {
                "phoneNumber": "0912",
                "reference": "a-1",
                "variables": {"name": "Sara", "amount": 5},
                "timeZone": "Asia/Tehran",
            },
            {"phoneNumber": "0935"},
        ],
        "voiceId": "v",
        "timeToLive": 60,
        "serverId": "main",
        "name": "reminders",
        "reference": "2026-11",
        "startAt": 1_795_780_800.0,
        "endAt": 1_800_000_000,
        "retry": {"busy": [60, 300], "noAnswer": [600]},
        "callerId": "02191000000",
        "menu": {"keys": {"9": {"optOut": True}}},
        "machineDetection": "message",
        "machineVoiceId": "m",
        "webhook": {"url": "https://example.com/hook", "events": ["call.answered"]},
        "callsPerSecond": 2.5,
        "maxChannels": 7,
        "window": "sat-wed 09:00-21:00 local",
        "skipInvalid": True,
    }


def test_every_field_of_the_schema_has_an_option() -> None:
    from bitel.api import schemas
    from bitel.client_types import BatchOptions, CampaignChanges

    fields = set(schemas.BatchTtsBody.model_fields)
    options = set(BatchOptions.__optional_keys__) - {"idempotency_key"}
    parts = {"busy_waits": "retry", "no_answer_waits": "retry", "webhook_url": "webhook",
             "webhook_events": "webhook"}  # fmt: skip
    arguments = {"phone_numbers", "recipients", "list_id", "text", "language"}
    assert {parts.get(name, name) for name in options} | arguments == fields
    assert set(CampaignChanges.__optional_keys__) == set(schemas.CampaignPatch.model_fields)
    assert set(Recipient.__dataclass_fields__) == set(schemas.RecipientBody.model_fields)


def test_an_option_that_does_not_exist_is_refused_at_once() -> None:
    # The comments are checked too: mypy reports one that is not needed.
    client, awaited = Client("T"), AsyncClient("T")
    with pytest.raises(
        TypeError, match=r"'retries' is not an option; the options are .*retry_count"
    ):
        client.call(NUMBER, "v", retries=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="'window'"):
        client.call_tts(NUMBER, "hello", window="09:00-17:00")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="'name'"):
        client.otp(NUMBER, "4071", name="x")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="'pace'"):
        client.batch([NUMBER], "v", pace=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="'window'"):
        client.change_campaign("c", window="09:00-17:00")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="'number'"):
        client.calls(number=NUMBER)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="'number'"):
        awaited.calls(number=NUMBER)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="dry"):
        client.upload_list(Path("x.csv"), dry=True)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="phone"):
        Recipient(phone=NUMBER)  # type: ignore[call-arg]


def test_recipients_are_given_in_one_way() -> None:
    ways: list[dict[str, Any]] = [
        {},
        {"phone_numbers": [NUMBER], "list_id": "l"},
        {"phone_numbers": [NUMBER], "recipients": []},
    ]
    for way in ways:
        with pytest.raises(TypeError, match="one of phone_numbers, recipients and list_id"):
            client_requests.batch(voice_id="v", **way)
    with pytest.raises(TypeError, match="voice_id is missing"):
        client_requests.batch([NUMBER])
    with pytest.raises(TypeError, match="text is missing"):
        client_requests.batch_tts(list_id="l")
    with pytest.raises(TypeError, match="webhook_events needs webhook_url"):
        client_requests.single(NUMBER, "v", webhook_events=["call.ringing"])


def test_a_time_without_a_zone_is_refused() -> None:
    naive = datetime(2026, 11, 27, 9, 0)
    with pytest.raises(ValueError, match=r"start_at must have a time zone"):
        client_requests.single(NUMBER, "v", start_at=naive)
    with pytest.raises(ValueError, match=r"end_at must have a time zone"):
        client_requests.change_campaign("c", end_at=naive)
    with pytest.raises(ValueError, match=r"since must have a time zone"):
        Client("T").calls(since=naive)


async def test_a_campaign_is_placed_changed_and_canceled(
    make_stage: Callable[..., Stage], served: Any, opened: Any
) -> None:
    dialer = {"id": "main", "trunks": ["sip:127.0.0.1:5060"], "bind": "127.0.0.1:5070",
              "caller_id": ["02191000000", "02191000001"]}  # fmt: skip
    stage = make_stage(dialers=[dialer])
    begin = datetime.fromtimestamp(stage.clock(), UTC)
    async with served(stage) as url:
        client = opened(stage.token, url)
        placed = await client.batch(
            recipients=[Recipient(NUMBER, "a-1"), Recipient("0912"), Recipient("09350000001")],
            voice_id=stage.recording_id,
            skip_invalid=True,
            name="reminders",
            reference="2026-11",
            start_at=begin + timedelta(hours=1),
            end_at=begin + timedelta(hours=5),
            busy_waits=[60, 300],
            no_answer_waits=[600],
            caller_id="02191000001",
            calls_per_second=2,
            max_channels=3,
            window="sat-fri 00:00-24:00 Asia/Tehran",
        )
        campaign_id = placed["campaignId"]
        assert [each["phoneNumber"] for each in placed["calls"]] == [NUMBER, "09350000001"]
        assert [(each["index"], each["phoneNumber"]) for each in placed["skipped"]] == [(1, "0912")]
        state = await client.campaign(campaign_id)
        assert (state["name"], state["reference"], state["state"]) == (
            "reminders", "2026-11", "SCHEDULED",
        )  # fmt: skip
        assert (state["callsPerSecond"], state["maxChannels"]) == (2, 3)
        assert state["startAt"] == int(stage.clock()) + 3600
        assert {row.caller_id for row in stage.rows()} == {"02191000001"}

        assert (await client.pause_campaign(campaign_id))["state"] == "PAUSED"
        assert (await client.resume_campaign(campaign_id))["state"] == "SCHEDULED"
        later = begin + timedelta(hours=9)
        changed = await client.change_campaign(
            campaign_id, name=None, calls_per_second=5, max_channels=None, end_at=later
        )
        assert (changed["name"], changed["callsPerSecond"], changed["maxChannels"]) == (
            None,
            5,
            None,
        )
        assert changed["endAt"] == int(later.timestamp())
        assert await client.change_campaign(campaign_id) == changed

        details = await client.call_details(placed["calls"][0]["id"])
        assert (details["reference"], details["campaignId"]) == ("a-1", campaign_id)
        assert details["attempts"] == []
        with pytest.raises(NotFoundError):
            await client.call_details("0" * 32)
        assert (await client.cancel_campaign(campaign_id))["state"] == "CANCELED"
        with pytest.raises(InvalidPhoneNumberError, match=r"recipients\[0\]"):
            await client.batch(recipients=[Recipient("0912")], voice_id=stage.recording_id)
        with pytest.raises(InvalidRequestError, match="callerId"):
            await client.call(NUMBER, stage.recording_id, caller_id="1")
        await client.close()


async def test_calls_and_campaigns_are_listed_with_filters(
    sqlite_stage: Stage, served: Any, opened: Any
) -> None:
    stage = sqlite_stage
    async with served(stage) as url:
        client = opened(stage.token, url)
        single = await client.call(NUMBER, stage.recording_id, reference="order-1")
        stage.clock.advance(60)
        batch = await client.batch(["09120000001", "09120000002"], stage.recording_id)
        ids = [each["id"] for each in batch["calls"]]
        newest_first = [*reversed(ids), single["id"]]
        assert [each["id"] for each in await client.calls()] == newest_first
        assert [each["id"] for each in await client.calls(1)] == newest_first
        since = datetime.fromtimestamp(stage.clock(), UTC)
        filters: list[tuple[dict[str, Any], list[str]]] = [
            ({"reference": "order-1"}, [single["id"]]),
            ({"phone_number": "+98 912 000 0001"}, [ids[0]]),
            ({"campaign_id": batch["campaignId"]}, [*reversed(ids)]),
            ({"since": since}, [*reversed(ids)]),
            ({"until": since}, [single["id"]]),
            ({"status": "WAITING"}, newest_first),
            ({"status": ["NORMAL", "ERROR"]}, []),
        ]
        for chosen, expected in filters:
            assert [each["id"] for each in await client.calls(**chosen)] == expected, chosen
        assert [each["id"] for each in await client.campaigns(state="RUNNING")] == [
            batch["campaignId"]
        ]
        assert await client.campaigns(state=["PAUSED", "FINISHED"]) == []
        await client.close()


async def test_results_are_written_to_a_file_that_is_whole(
    sqlite_stage: Stage, served: Any, opened: Any, tmp_path: Path
) -> None:
    stage = sqlite_stage
    folder = tmp_path / "downloads"
    folder.mkdir()
    file = folder / "results.csv"
    async with served(stage) as url:
        client = opened(stage.token, url)
        batch = await client.batch([NUMBER, "09120000001"], stage.recording_id)
        stage.answer(*stage.take(), price="2")
        sizes: list[int] = []
        await client.results(batch["campaignId"], file, sizes.append)
        assert sum(sizes) == file.stat().st_size
        rows = list(csv.DictReader(file.read_text("utf-8-sig").splitlines()))
        assert [(row["phoneNumber"], row["status"]) for row in rows] == [
            (NUMBER, "NORMAL"), ("09120000001", "NORMAL"),
        ]  # fmt: skip
        before = file.read_bytes()
        with pytest.raises(NotFoundError):
            await client.results("0" * 32, file)
        await client.close()
    assert file.read_bytes() == before
    assert list(folder.iterdir()) == [file]


async def test_a_download_that_breaks_leaves_no_file(opened: Any, tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\na,b\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        client = opened("T", f"http://127.0.0.1:{port}")
        with pytest.raises(UnavailableError, match="can't be reached"):
            await client.results("c", tmp_path / "results.csv")
        await client.close()
    assert list(tmp_path.glob("*results*")) == []


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign_events, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(campaign_events, "RETRY_MILLISECONDS", 20)


async def test_a_campaign_is_followed_to_its_end(
    sqlite_stage: Stage, served: Any, opened: Any, quick: None
) -> None:
    stage = sqlite_stage
    async with served(stage) as url:
        client = opened(stage.token, url)
        batch = await client.batch([NUMBER, "09120000001"], stage.recording_id)
        following = asyncio.create_task(client.campaign_events(batch["campaignId"]))
        services = stage.app.state.services
        await until(lambda: services.campaign_events._topics)
        lease, taken = stage.take()
        stage.answer(lease, taken)
        events = await asyncio.wait_for(following, 20)
        with pytest.raises(NotFoundError):
            await client.campaign_events("0" * 32)
        await client.close()
    assert events[0].type == "progress"
    assert events[0].campaign["byStatus"]["WAITING"] == 2
    assert [each.type for each in events].count("finished") == 1
    assert events[-1].type == "finished"
    assert events[-1].campaign["byStatus"]["NORMAL"] == 2


async def test_following_goes_on_after_a_restart_of_the_service(
    sqlite_stage: Stage, opened: Any, quick: None
) -> None:
    stage = sqlite_stage
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

        async def start() -> tuple[uvicorn.Server, asyncio.Task[None]]:
            server = uvicorn.Server(config(stage.app, stage.parts.settings.http))
            task = asyncio.create_task(server._serve([listener.dup()]))
            await until(lambda: server.started)
            return server, task

        async def stop(server: uvicorn.Server, task: asyncio.Task[None]) -> None:
            server.should_exit = True
            await asyncio.wait_for(task, 20)

        topics = stage.app.state.services.campaign_events._topics
        running = await start()
        client = opened(stage.token, url)
        batch = await client.batch([NUMBER], stage.recording_id)
        following = asyncio.create_task(client.campaign_events(batch["campaignId"]))
        await until(lambda: topics)
        await stop(*running)
        assert not following.done()
        lease, taken = stage.take()
        stage.answer(lease, taken)
        running = await start()
        events = await asyncio.wait_for(following, 20)
        await client.close()
        await stop(*running)
    states = [(each.type, each.campaign["state"]) for each in events]
    assert states == [("progress", "RUNNING"), ("progress", "FINISHED"), ("finished", "FINISHED")]


class TestEventReader:
    """Events that arrive in any pieces, and when it is worth to connect again."""

    STREAM = b'retry: 250\n\n:\n\nid: 1\nevent: progress\ndata: {"id":\ndata: "\xe2\x80\xa8"}\n\n'

    @pytest.mark.parametrize("size", [1, 2, 7, 1000])
    def test_events_come_in_any_pieces(self, size: int) -> None:
        reader = EventReader()
        events = [
            event
            for at in range(0, len(self.STREAM), size)
            for event in reader.receive(self.STREAM[at : at + size])
        ]
        assert [each.type for each in events] == ["progress"]
        assert events[0].campaign["id"] == "\u2028"
        assert reader.headers["Last-Event-ID"] == "1"
        assert reader.wait_after(None) == 0.25

    def test_lines_may_end_as_on_windows(self) -> None:
        reader = EventReader()
        ended = self.STREAM.replace(b"\n", b"\r\n")
        assert [each.type for each in reader.receive(ended)] == ["progress"]

    def test_an_event_has_a_limit(self) -> None:
        reader = EventReader()
        with pytest.raises(UnavailableError, match="longer"):
            for _ in range(LONGEST_EVENT // 1000 + 2):
                list(reader.receive(b"data: " + b"x" * 1000 + b"\n"))

    def test_what_is_not_json_is_reported(self) -> None:
        with pytest.raises(UnavailableError, match="no JSON"):
            list(EventReader().receive(b"data: {\n\n"))

    def test_the_end_is_known_by_the_event_or_the_status(self) -> None:
        reader = EventReader()
        list(reader.receive(b"event: finished\ndata: {}\n\n"))
        assert reader.is_finished
        reader = EventReader()
        reader.connected(httpx.Response(204))
        assert reader.is_finished

    def test_a_half_event_of_a_lost_connection_is_forgotten(self) -> None:
        reader = EventReader()
        list(reader.receive(b'event: progress\ndata: {"id": 1'))
        reader.connected(httpx.Response(200))
        events = list(reader.receive(b'data: {"id":"2"}\n\n'))
        assert [each.campaign["id"] for each in events] == ["2"]

    def test_a_service_that_is_away_is_tried_for_some_minutes(self) -> None:
        clock = FakeClock()
        reader = EventReader(clock)
        away = UnavailableError("away")
        clock.advance(RECONNECT_FOR - 1)
        assert reader.wait_after(away) == 3.0
        assert reader.wait_after(TooManyRequestsError("busy", 10)) == 10.0
        list(reader.receive(b":\n\n"))
        clock.advance(RECONNECT_FOR - 1)
        reader.wait_after(away)
        clock.advance(2)
        with pytest.raises(UnavailableError):
            reader.wait_after(away)

    def test_a_refusal_is_final(self) -> None:
        with pytest.raises(NotFoundError):
            EventReader().wait_after(NotFoundError("no such campaign"))


async def test_lists_are_checked_uploaded_and_called(
    sqlite_stage: Stage, served: Any, opened: Any, tmp_path: Path
) -> None:
    stage = sqlite_stage
    file = tmp_path / "people.csv"
    file.write_text(PEOPLE)
    async with served(stage) as url:
        client = opened(stage.token, url)
        sizes: list[int] = []
        tried = await client.upload_list(file, dry_run=True, progress=sizes.append)
        assert sum(sizes) == len(PEOPLE)
        assert (tried["id"], tried["rows"], tried["valid"], tried["columns"]) == (
            None, 3, 2, ["name"],
        )  # fmt: skip
        assert [(each["line"], each["value"]) for each in tried["invalid"]] == [(3, "0912")]
        with pytest.raises(InvalidRequestError, match="no-such"):
            await client.upload_list(file, column="no-such")
        found = await client.upload_list(
            file, column="phone", skip_invalid=True, skip_duplicates=True
        )
        assert found["recipients"] == 2
        listed = await client.recipient_lists(1)
        assert [each["id"] for each in listed] == [found["id"]]
        assert await client.recipient_list(found["id"]) == listed[0]
        placed = await client.batch(list_id=found["id"], voice_id=stage.recording_id)
        calls = await client.calls(campaign_id=placed["campaignId"])
        assert {each["reference"] for each in calls} == {"a-1", "a-3"}
        assert await client.remove_list(found["id"]) == listed[0]
        with pytest.raises(NotFoundError):
            await client.recipient_list(found["id"])
        await client.close()


async def test_numbers_are_put_on_the_do_not_call_list_and_taken_off(
    sqlite_stage: Stage, served: Any, opened: Any, tmp_path: Path
) -> None:
    stage = sqlite_stage
    file = tmp_path / "people.csv"
    file.write_text(PEOPLE)
    async with served(stage) as url:
        client = opened(stage.token, url)
        assert await client.add_do_not_call([NUMBER]) == {"added": 1, "alreadyListed": 0}
        imported = await client.import_do_not_call(file, column="phone")
        assert (imported["added"], imported["alreadyListed"], imported["invalidCount"]) == (1, 1, 1)
        assert await client.do_not_call(1) == ["+989121234567", "+989350000001"]
        assert await client.remove_do_not_call(NUMBER) == {"phoneNumber": "+989121234567"}
        with pytest.raises(NotFoundError):
            await client.remove_do_not_call(NUMBER)
        assert await client.do_not_call() == ["+989350000001"]
        await client.close()
