"""Pausing, pacing and scheduling a campaign of a running service, also across kill -9."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx

from bitel.client import Client
from bitel.demo.stage import Stage
from tests.support import phone_log
from tests.support.service_calls import started
from tests.support.waiting import wait_until

BATCH = "/api/v2/voice/batch"
RATE = 5
RULES = ("*=answer:after=0.1:hangup=0.3",)


def place(http: httpx.Client, voice: str, first: int, count: int, **fields: Any) -> str:
    """A batch of so many numbers from `first` on; its campaign's id."""
    numbers = [f"0912000{number:04}" for number in range(first, first + count)]
    answer = http.post(BATCH, json={"phoneNumbers": numbers, "voiceId": voice, **fields})
    assert answer.status_code == 200, answer.text
    campaign_id: str = answer.json()["campaignId"]
    return campaign_id


def state(http: httpx.Client, campaign_id: str) -> dict[str, Any]:
    found: dict[str, Any] = http.get(f"/api/v2/voice/campaign/{campaign_id}").json()["result"]
    return found


def invited(stage: Stage, first: int, count: int) -> list[float]:
    """When the calls to these numbers came, in order."""
    wanted = {f"+98912000{number:04}" for number in range(first, first + count)}
    seen = phone_log.read(stage.phone_log)
    return sorted(call.invited_at for number in wanted for call in seen.get(number, ()))


def over(http: httpx.Client, campaign_id: str) -> int:
    found = state(http, campaign_id)
    return int(found["total"] - found["byStatus"]["WAITING"])


def test_a_pause_holds_across_kill_and_a_pace_holds_throughout(tmp_path: Path) -> None:
    limits = {"calls_per_second": 50, "max_channels": 100}
    stage = Stage(tmp_path, rules=RULES, record=False, dialer=limits)
    with stage:
        with started(stage, 1.0) as (token, _, voice), stage.client(token) as http:
            paced = place(http, voice, 0, 40, callsPerSecond=RATE)
            later = place(http, voice, 2000, 3, startAt=time.time() + 3600)
            wait_until(lambda: over(http, paced) >= 2 * RATE, 30)
            paused = http.post(f"/api/v2/voice/campaign/{paced}/pause").json()["result"]
            paused_at = time.time()
            assert paused["state"] == "PAUSED"
            # Another campaign is the clock: while it runs, the paused one stays still.
            other = place(http, voice, 1000, 10, callsPerSecond=RATE)
            wait_until(lambda: over(http, other) == 10, 30)
        stage.kill_service()
        stage.start_service()
        with stage.client(token) as http:
            assert state(http, paced)["state"] == "PAUSED"
            assert state(http, later)["state"] == "SCHEDULED"
            after_kill = place(http, voice, 1100, 10, callsPerSecond=RATE)
            wait_until(lambda: over(http, after_kill) == 10, 30)
            before_resume = invited(stage, 0, 40)
            assert max(before_resume) <= paused_at + 1.0
            assert len(before_resume) < 40
            assert invited(stage, 2000, 3) == []
            http.post(f"/api/v2/voice/campaign/{paced}/resume")
            resumed_at = time.time()
            wait_until(lambda: state(http, paced)["state"] == "FINISHED", 40)
            assert state(http, paced)["answered"] == 40
            assert state(http, later)["byStatus"]["WAITING"] == 3
        assert stage.stop_service() == 0
    times = invited(stage, 0, 40)
    assert len(times) == 40, "nobody was called twice"
    assert min(each for each in times if each not in before_resume) <= resumed_at + 1.0
    for start in times:
        assert sum(start <= each < start + 1.0 for each in times) <= RATE + 1


def test_a_change_takes_effect_within_a_second(tmp_path: Path) -> None:
    limits = {"calls_per_second": 50, "max_channels": 100}
    stage = Stage(tmp_path, rules=("*=answer:after=0.1",), record=False, dialer=limits)
    with stage:
        with started(stage, 2.0) as (token, _, voice), stage.client(token) as http:
            campaign_id = place(http, voice, 0, 60, maxChannels=2)
            wait_until(lambda: over(http, campaign_id) >= 2, 30)
            path = f"/api/v2/voice/campaign/{campaign_id}"
            assert http.patch(path, json={"maxChannels": None}).status_code == 200
            changed_at = time.time()
            with Client(token, stage.url) as client:
                client.wait_campaign(campaign_id, 60)
        assert stage.stop_service() == 0
    calls = [call for seen in phone_log.read(stage.phone_log).values() for call in seen]
    before = [call for call in calls if call.invited_at < changed_at]
    for start in before:
        at_once = [
            each
            for each in before
            if each.invited_at <= start.invited_at < (each.ended_at or start.invited_at + 1)
        ]
        assert len(at_once) <= 2
    assert sum(changed_at <= call.invited_at <= changed_at + 1.5 for call in calls) >= 15
