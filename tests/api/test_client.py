"""`bitel.client`, blocking and asynchronous, against the real application on a socket."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bitel import client as clients
from bitel.client import verify_webhook
from bitel.errors import (
    BitelError,
    ConflictError,
    InvalidPhoneNumberError,
    NotFoundError,
    TooManyRequestsError,
    UnauthorizedError,
    UnavailableError,
)
from bitel.recordings.sample import write_sample
from bitel.webhooks import signing

if TYPE_CHECKING:
    from tests.api.stage import Stage

NUMBER = "09121234567"


async def test_everything_can_be_asked(
    sqlite_stage: Stage, served: Any, opened: Any, tmp_path: Path
) -> None:
    stage = sqlite_stage
    async with served(stage) as url:
        client = opened(stage.token, url)
        write_sample(tmp_path / "tune.wav", 1.0)
        told: list[int] = []
        voice = await client.upload(tmp_path / "tune.wav", told.append)
        assert (voice["name"], voice["duration"]) == ("tune.wav", pytest.approx(1.0, abs=0.05))
        assert sum(told) == (tmp_path / "tune.wav").stat().st_size
        assert (await client.recording(voice["id"])).startswith(b"RIFF")
        spoken = await client.speak("hello", language="en")

        terms = {"retry_count": 3, "retry_interval": 30, "time_to_live": 600, "server_id": "main"}
        single = await client.call(NUMBER, voice["id"], **terms)
        code = await client.otp(NUMBER, "4071", voice_id=voice["id"], repeat_count=3, **terms)
        text = await client.call_tts(NUMBER, "hello", language="en", **terms)
        batch = await client.batch([NUMBER, "09350000001"], voice["id"], **terms)
        texts = await client.batch_tts([NUMBER], "hello", language="en", **terms)
        placed = [single, code, text, *batch["calls"], *texts["calls"]]
        rows = stage.rows()
        assert {row.id for row in rows} == {call["id"] for call in placed}
        assert {(r.retry_count, r.retry_interval, r.dialer_id) for r in rows} == {(3, 30, "main")}
        assert {row.expires_at - row.requested_at for row in rows} == {600}
        assert {row.recording_id for row in rows} == {voice["id"], spoken["id"]}

        assert await client.status(single["id"]) == single
        assert (await client.campaign(batch["campaignId"]))["total"] == 2
        assert await client.campaign_calls(batch["campaignId"], 1) == batch["calls"]
        assert (await client.cancel(single["id"]))["status"] == "CANCELED"
        called_off = await client.cancel_campaign(texts["campaignId"])
        assert called_off["byStatus"]["CANCELED"] == 1
        listed = [each["id"] for each in await client.recordings(1)]
        assert listed == sorted([stage.recording_id, voice["id"], spoken["id"]])
        assert await client.remove_recording(stage.recording_id)
        assert [each["id"] for each in await client.servers()] == ["main", "spare"]
        assert (await client.account())["name"] == "shop"
        await client.close()


async def test_waiting_ends_with_the_call_or_the_campaign(
    sqlite_stage: Stage, served: Any, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clients, "POLL_INTERVAL", 0.001)
    stage = sqlite_stage
    async with served(stage) as url:
        client = opened(stage.token, url)
        call = await client.call(NUMBER, stage.recording_id)
        batch = await client.batch(["09121234568", "09121234569"], stage.recording_id)
        with pytest.raises(UnavailableError, match=call["id"]):
            await client.wait(call["id"], 0.01)
        with pytest.raises(UnavailableError, match=batch["campaignId"]):
            await client.wait_campaign(batch["campaignId"], 0.01)
        looks: list[Any] = []
        waiting = asyncio.gather(
            client.wait(call["id"], 20),
            client.wait_campaign(batch["campaignId"], 20, looks.append),
        )
        await asyncio.to_thread(lambda: stage.answer(*stage.take()))
        over, campaign = await waiting
        await client.close()
    assert over["status"] == "NORMAL"
    assert campaign["byStatus"]["NORMAL"] == 2
    assert looks[-1] == campaign


async def test_what_the_service_refuses_is_raised_by_its_name(
    make_stage: Callable[..., Stage], served: Any, opened: Any
) -> None:
    stage = make_stage(limits={"calls_per_minute": 2})
    async with served(stage) as url:
        client = opened(stage.token, url)
        with pytest.raises(InvalidPhoneNumberError, match="letters"):
            await client.call("letters", stage.recording_id)
        with pytest.raises(NotFoundError):
            await client.status("../../healthz")
        first = await client.call(NUMBER, stage.recording_id, idempotency_key="k")
        again = await client.call(NUMBER, stage.recording_id, idempotency_key="k")
        assert again == first
        with pytest.raises(ConflictError):
            await client.call(NUMBER, stage.recording_id, idempotency_key="k", retry_count=2)
        with pytest.raises(TooManyRequestsError) as refused:
            await client.batch([NUMBER, NUMBER], stage.recording_id)
        assert refused.value.retry_after == 30
        await client.close()
        stranger = opened("nonsense", url)
        with pytest.raises(UnauthorizedError):
            await stranger.account()
        await stranger.close()


async def test_a_service_that_is_not_there_is_unavailable(opened: Any) -> None:
    client = opened("T", "http://127.0.0.1:1")
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1"):
        await client.account()
    await client.close()


def test_every_error_code_has_its_error() -> None:
    import httpx

    from bitel import client_requests

    for kind in BitelError.__subclasses__():
        if kind.code == BitelError.code:
            continue
        body = {"result": None, "error": kind.code, "message": "so it is"}
        with pytest.raises(kind, match="so it is"):
            client_requests.result_of(httpx.Response(400, json=body))


def test_webhooks_are_verified() -> None:
    secret = signing.new_secret()
    headers = signing.headers(secret, "msg_1", 1_700_000_000, b"{}")
    assert verify_webhook(secret, headers, b"{}", now=1_700_000_010.0) == "msg_1"
    with pytest.raises(clients.WebhookSignatureError):
        verify_webhook(secret, headers, b"{ }", now=1_700_000_010.0)


def test_a_client_needs_nothing_of_the_server() -> None:
    script = (
        "import sys, bitel.client; "
        "loaded = {'fastapi', 'sqlalchemy', 'numpy', 'av', 'pydantic'} & set(sys.modules); "
        "assert not loaded, loaded"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
