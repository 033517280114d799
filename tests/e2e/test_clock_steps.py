"""The system clock is set while a real service calls: no bill, wait or time limit changes."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import httpx
import pytest

from bitel.client import Call, Client
from bitel.demo.stage import Stage
from tests.e2e.settable_clock import SettableClock
from tests.support import phone_log
from tests.support.phone_log import Seen
from tests.support.service_calls import folder, token, upload
from tests.support.waiting import wait_until

HOUR = 3600.0
STEPS = (HOUR, -HOUR, 30.0, -30.0)

RETRY_INTERVAL = 5
RING_TIMEOUT = 4.0
PLAYED = 3.5
TOLERANCE = 2.5
"""Seconds by which a busy machine may be late."""

BUSY_FIRST, ANSWERS, RINGS = "09120000001", "09120000002", "09120000003"
LATER = "09120000004"
RULES = (
    "*1=busy,answer:after=0.1",
    "*3=ring",
    "*=answer:after=0.1",
)


@pytest.fixture
def system_clock(tmp_path: Path) -> SettableClock:
    return SettableClock(tmp_path)


@pytest.fixture
def stage(
    tmp_path: Path, system_clock: SettableClock, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stage]:
    with Stage(
        folder(tmp_path, "stage"),
        rules=RULES,
        record=False,
        dialer={"ring_timeout": RING_TIMEOUT},
    ) as made:
        made.start_phone()
        for name, value in system_clock.environment.items():
            monkeypatch.setenv(name, value)
        made.start_service()
        monkeypatch.delenv("LD_PRELOAD")
        yield made


def seen(stage: Stage, number: str) -> Sequence[Seen]:
    found: Mapping[str, Sequence[Seen]] = phone_log.read(stage.phone_log)
    return found.get("+98" + number.removeprefix("0"), ())


def has(stage: Stage, number: str, event: str) -> bool:
    return any(event in call.events for call in seen(stage, number))


def metric(stage: Stage, name: str) -> float:
    page = httpx.get(f"{stage.url}/metrics").text
    found = re.search(rf"^{name} (\S+)$", page, re.MULTILINE)
    assert found, page
    return float(found[1])


def place(stage: Stage, key: str) -> tuple[str, dict[str, Call]]:
    """A call to each number; the recording and the calls."""
    with Client(key, stage.url) as client:
        voice = upload(stage, client, PLAYED)
        placed = {
            number: client.call(
                number,
                voice,
                retry_count=1 if number == BUSY_FIRST else 0,
                retry_interval=RETRY_INTERVAL,
                time_to_live=25,
            )
            for number in (BUSY_FIRST, ANSWERS, RINGS)
        }
    return voice, placed


@pytest.mark.parametrize("step", STEPS, ids=lambda step: f"{step:+g}")
def test_a_step_during_calls_changes_nothing(
    stage: Stage, system_clock: SettableClock, step: float
) -> None:
    key = token(stage)
    voice, placed = place(stage, key)
    wait_until(lambda: has(stage, BUSY_FIRST, "rejected") and has(stage, ANSWERS, "answered"))
    wait_until(lambda: bool(seen(stage, RINGS)))
    wait_until(lambda: bool(seen(stage, ANSWERS)[0].audio_at))
    system_clock.step(step)

    with Client(key, stage.url) as client:
        ended = {number: client.wait(call["id"], 40.0) for number, call in placed.items()}
        later = client.wait(client.call(LATER, voice, retry_count=0)["id"], 30.0)
    (played,) = seen(stage, ANSWERS)
    assert played.answered_at
    assert played.ended_at
    assert ended[ANSWERS]["status"] == "NORMAL"
    assert ended[ANSWERS]["billSec"] in (4, 5, 6)
    assert abs(played.ended_at - played.answered_at - ended[ANSWERS]["billSec"]) <= TOLERANCE

    first, second = seen(stage, BUSY_FIRST)
    assert first.ended_at
    assert ended[BUSY_FIRST]["status"] == "NORMAL"
    assert second.invited_at - first.ended_at == pytest.approx(RETRY_INTERVAL, abs=TOLERANCE)

    (rang,) = seen(stage, RINGS)
    assert rang.ended_at
    assert ended[RINGS]["status"] == "NO_ANSWER"
    assert rang.ended_at - rang.invited_at == pytest.approx(RING_TIMEOUT, abs=TOLERANCE)

    # What was shown before the step does not change; what comes after it is by the new time.
    assert all(ended[n]["requestDate"] == placed[n]["requestDate"] for n in placed)
    assert later["requestDate"] == pytest.approx(time.time() + step, abs=10.0)
    assert later["executionDate"] == pytest.approx(time.time() + step, abs=10.0)
    assert metric(stage, "bitel_clock_step_seconds") == pytest.approx(step, abs=1.0)
    log = stage.service_log.read_text()
    assert log.count("system_clock_set") == 1
    assert "lease" not in log
    with sqlite3.connect(stage.folder / "data" / "bitel.db") as database:
        assert database.execute("SELECT epoch FROM dialer").fetchall() == [(1,)]


@pytest.mark.parametrize("step", [HOUR, -HOUR], ids=lambda step: f"{step:+g}")
def test_a_step_while_the_service_is_down_changes_no_retry(
    stage: Stage,
    system_clock: SettableClock,
    monkeypatch: pytest.MonkeyPatch,
    step: float,
) -> None:
    key = token(stage)
    with Client(key, stage.url) as client:
        voice = upload(stage, client, 1.0)
        placed = client.call(BUSY_FIRST, voice, retry_count=1, retry_interval=12, time_to_live=60)
    wait_until(lambda: has(stage, BUSY_FIRST, "rejected"))
    assert stage.stop_service() == 0
    system_clock.step(step)
    monkeypatch.setenv("LD_PRELOAD", system_clock.environment["LD_PRELOAD"])
    stage.start_service()
    with Client(key, stage.url) as client:
        ended = client.wait(placed["id"], 40.0)
    first, second = seen(stage, BUSY_FIRST)
    assert first.ended_at
    assert ended["status"] == "NORMAL"
    assert ended["requestDate"] == placed["requestDate"]
    assert second.invited_at - first.ended_at == pytest.approx(12.0, abs=TOLERANCE)
