"""A machine that can't carry more: calls wait in the queue, and go on when there is room again."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path

import httpx
import structlog

from bitel import service
from bitel.client import AsyncClient
from bitel.demo.stage import Stage
from bitel.recordings.sample import write_sample
from bitel.settings import DialerSettings, HttpSettings, Settings
from tests.support.waiting import until_found


def settings(stage: Stage) -> Settings:
    dialer = DialerSettings(
        id="main",
        trunks=[f"sip:127.0.0.1:{stage.ports.phone}"],
        bind=f"127.0.0.1:{stage.ports.sip}",
        calls_per_second=50,
    )
    http = HttpSettings(port=stage.ports.http)
    return Settings(data_dir=stage.folder / "data", http=http, dialers=[dialer])


async def figure(stage: Stage, line: str) -> float:
    """The value of a line of `/metrics`."""
    async with httpx.AsyncClient(timeout=10) as http:
        page = (await http.get(f"{stage.url}/metrics")).text
    found = [each for each in page.splitlines() if each.startswith(f"{line} ")]
    assert found, f"no {line} in {page}"
    return float(found[0].rsplit(" ", 1)[1])


async def shows(stage: Stage, line: str, is_right: Callable[[float], bool]) -> None:
    """Return once the line's value is right."""

    async def look() -> bool:
        return is_right(await figure(stage, line))

    await until_found(look)


async def test_a_sender_that_hangs_holds_calls_back(tmp_path: Path) -> None:
    sample = tmp_path / "sample.wav"
    write_sample(sample, 0.5)
    paused = 'bitel_claiming_paused{dialer="main",sign="late packets"}'
    ended = 'bitel_calls_ended_total{status="NORMAL"}'
    with Stage(tmp_path, rules=["*=answer:after=0"], record=False) as stage:
        await asyncio.to_thread(stage.start_phone)
        with structlog.testing.capture_logs() as logs:
            async with service.running(settings(stage)) as running:
                token = await asyncio.to_thread(stage.token)
                async with AsyncClient(token, stage.url) as client:
                    voice = await client.upload(sample)
                    first = await client.call("09120000001", voice["id"])
                    assert (await client.wait(first["id"], 30))["status"] == "NORMAL"
                    assert await figure(stage, paused) == 0
                    [sender] = running.dialers[0].streamer.sender_pids()
                    os.kill(sender, signal.SIGSTOP)
                    await shows(stage, paused, lambda value: value == 1)
                    later = [await client.call(f"0912000001{n}", voice["id"]) for n in range(5)]
                    # Longer than the page is shown as it was, and than any look at the queue.
                    age = 'bitel_queue_age_seconds{dialer="main"}'
                    await shows(stage, age, lambda value: value > 1.2)
                    assert await figure(stage, 'bitel_calls_waiting{dialer="main"}') == 5
                    assert await figure(stage, 'bitel_attempts_total{dialer="main"}') == 1
                    os.kill(sender, signal.SIGCONT)
                    results = [await client.wait(each["id"], 30) for each in later]
                    assert [each["status"] for each in results] == ["NORMAL"] * 5
                    await shows(stage, ended, lambda value: value == 6)
                    assert await figure(stage, 'bitel_invites_total{dialer="main"}') == 6
    told = [each["event"] for each in logs if each["event"].startswith("claiming_")]
    assert told == ["claiming_paused", "claiming_resumed"]


async def test_a_dialer_without_the_api_answers_metrics_where_it_is_told_to(
    tmp_path: Path,
) -> None:
    with Stage(tmp_path, rules=["*=answer"], record=False) as stage:
        await asyncio.to_thread(stage.start_phone)
        without = settings(stage)
        bound = without.model_copy(
            update={"metrics": without.metrics.model_copy(update={"bind": "127.0.0.1:0"})}
        )
        async with service.running(bound, "dialer") as running:
            assert running.http_address is None
            assert running.metrics_address is not None
            host, port = running.metrics_address
            async with httpx.AsyncClient() as http:
                answer = await http.get(f"http://{host}:{port}/metrics")
                assert answer.status_code == 200
                assert 'bitel_channels_max{dialer="main"} 100.0' in answer.text
                assert (await http.get(f"http://{host}:{port}/healthz")).status_code == 404
        async with service.running(without, "dialer") as running:
            assert running.metrics_address is None
        async with service.running(without, "api") as running:
            assert running.http_address is not None
            page = await asyncio.to_thread(httpx.get, f"{stage.url}/metrics")
            # What the database knows of the dialer that has just gone, and nothing of its own.
            assert 'bitel_calls_waiting{dialer="main"} 0.0' in page.text
            assert "bitel_channels_max" not in page.text
