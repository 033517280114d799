"""A campaign of a thousand calls: what the service says equals what the phone's own log says."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path

from bitel.demo.stage import Stage
from tests.e2e.campaigns import (
    ATTEMPTS,
    CALLS,
    EXPECTED,
    begin,
    check_events,
    check_money,
    check_nobody_called_wrongly,
    check_statuses,
    e164,
    finish,
    open_project,
    place,
    stage_at,
)
from tests.support import phone_log
from tests.support.small_disk import empty, fill, small_disk
from tests.support.waiting import wait_until
from tests.support.webhook_recorder import receiver

KILLS = 20


def test_every_status_attempt_and_bill_is_what_the_phone_saw(tmp_path: Path) -> None:
    with receiver() as events, stage_at(tmp_path) as stage:
        stage.start_phone()
        stage.start_service()
        token = open_project(stage, events)
        calls = finish(stage, token, place(stage, token), 120.0)
        check_money(stage, token, calls)
        events.wait_for(CALLS, 60.0)
        assert stage.stop_service() == 0
    assert Counter(call["status"] for call in calls) == EXPECTED
    seen = phone_log.read(stage.phone_log)
    check_nobody_called_wrongly(seen)
    check_events(events, calls)
    for call in calls:
        attempts = seen[e164(call)]
        assert len(attempts) == ATTEMPTS[call["phoneNumber"][-1]], call
        last = attempts[-1]
        if last.answered_at is None:
            assert (call["billSec"], call["price"]) == (0, 0.0)
            continue
        assert last.ended_at is not None
        talked = last.ended_at - last.answered_at
        # Our clock starts when the answer reaches us and stops when the end does.
        assert talked - 0.3 <= call["billSec"] <= talked + 1.3, (call, talked)
        assert call["price"] == -call["billSec"]


def test_twenty_kills_lose_nothing(tmp_path: Path) -> None:
    chance = random.Random(3)
    with receiver() as events, stage_at(tmp_path, calls_per_second=40) as stage:
        token, campaign = begin(stage, events)
        for _ in range(KILLS):
            time.sleep(chance.uniform(0.0, 1.5))  # the crash comes when it comes
            stage.kill_service()
            stage.start_service()
        calls = finish(stage, token, campaign, 180.0)
        check_money(stage, token, calls)
        events.wait_for(CALLS, 90.0)
        assert stage.stop_service() == 0
    check_nobody_called_wrongly(phone_log.read(stage.phone_log))
    check_events(events, calls)
    check_statuses(calls)


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    with (
        small_disk(tmp_path / "disk") as disk,
        receiver() as events,
        stage_at(tmp_path / "stage", disk / "data", calls_per_second=50) as stage,
    ):
        token, campaign = begin(stage, events)
        for _ in range(3):
            more_end(stage, 100)
            fill(disk)
            more_end(stage, 20)  # with nothing that could be written
            empty(disk)
        calls = finish(stage, token, campaign, 180.0)
        check_money(stage, token, calls)
        events.wait_for(CALLS, 90.0)
        assert stage.stop_service() == 0
    check_nobody_called_wrongly(phone_log.read(stage.phone_log))
    check_events(events, calls)
    check_statuses(calls)
    assert "disk" in (stage.folder / "serve.log").read_text().lower()


def more_end(stage: Stage, count: int) -> None:
    """Return once the phone has seen the end of so many more calls."""

    def ended() -> int:
        return stage.phone_log.read_text().count('"event": "end"')

    before = ended()
    wait_until(lambda: ended() >= before + count)
