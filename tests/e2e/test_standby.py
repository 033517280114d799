"""Several processes for one dialer: they dial together, or one waits for the end of another."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bitel.client import Client
from bitel.demo.stage import Stage
from tests.support import phone_log
from tests.support.service_calls import folder, token, upload
from tests.support.waiting import wait_until


def logged(stage: Stage, event: str, start: int = 0) -> list[str]:
    """The lines of that event in the service's log, from byte `start` on."""
    lines = stage.service_log.read_text()[start:].splitlines()
    return [line for line in lines if f" {event} " in f"{line} "]


def alone(tmp_path: Path, **more: Any) -> Stage:
    """A service of its own, on SQLite."""
    return Stage(tmp_path, record=False, **more)


class Place:
    """A phone, and services that share a PostgreSQL database and its dialer `main`."""

    def __init__(self, tmp_path: Path, database_url: str, rule: str = "*=answer:after=0.1") -> None:
        self._tmp_path = tmp_path
        self._url = database_url
        self._rule = rule
        self.first = self.stage("first")
        self.first.start_phone()

    def stage(self, name: str, data_dir: Path | None = None) -> Stage:
        """A service with a `data_dir` of its own, or with that one."""
        if data_dir is None:
            # Two machines would share a bucket.
            data_dir = folder(self._tmp_path, f"{name}-data")
            shared = self._tmp_path / "shared"
            (shared / "voices").mkdir(parents=True, exist_ok=True)
            (data_dir / "voices").symlink_to(shared / "voices")
        made = Stage(
            folder(self._tmp_path, name),
            rules=[self._rule],
            record=False,
            dialer={"calls_per_second": 50, "ring_timeout": 10},
            extra=f'database_url = "{self._url}"',
            data_dir=data_dir,
            trunk="" if name == "first" else f"sip:127.0.0.1:{self.first.ports.phone}",
        )
        return made.__enter__()


def place_calls(stage: Stage, key: str, count: int, seconds: float = 1.0) -> list[str]:
    with Client(key, stage.url) as client:
        voice = upload(stage, client, seconds)
        return [client.call(f"0912000{n:04}", voice, retry_count=0)["id"] for n in range(count)]


def wait_for(stage: Stage, key: str, calls: list[str], timeout: float = 60.0) -> list[str]:
    with Client(key, stage.url) as client:
        return [str(client.wait(call, timeout)["status"]) for call in calls]


def end(*stages: Stage) -> None:
    for stage in stages:
        stage.__exit__(None, None, None)


def test_processes_with_data_dirs_of_their_own_dial_together(
    tmp_path: Path, postgres_url: str
) -> None:
    place = Place(tmp_path, postgres_url)
    first, second = place.first, place.stage("second")
    same = place.stage("same", first.data_dir)
    try:
        for stage in (first, second, same):
            stage.start_service()
        wait_until(lambda: bool(logged(same, "ready")))
        assert logged(first, "standby") + logged(second, "standby") == []
        # Of two processes with one data_dir one waits.
        [standby] = logged(same, "standby")
        assert "dialer=main" in standby
        assert "--take-over" in standby
        assert f"-{first.service.pid}-" in standby if first.service else False
        assert "standby=main" in logged(same, "ready")[0]
        key = token(first)
        with Client(key, same.url) as client:
            voice = upload(same, client, 1.0)
            numbers = [f"0912000{n:04}" for n in range(40)]
            campaign = client.batch(numbers, voice, retry_count=0)["campaignId"]
            # Each worker has a part of the rate, so none can take all of them.
            wait_until(lambda: client.campaign(campaign)["state"] == "FINISHED", 30)
            assert client.campaign(campaign)["answered"] == 40
        # The messages of each call are shown on any machine.
        [ended, *_] = logged(first, "attempt_ended")
        call = ended.partition(" call=")[2].split()[0]
        assert "INVITE" in first.command("trace", call)
        assert second.command("trace", call) == first.command("trace", call)
        assert min(len(logged(stage, "attempt_ended")) for stage in (first, second)) >= 1
        assert first.stop_service() == 0
        wait_until(lambda: bool(logged(same, "active")), 10)
        assert (second.stop_service(), same.stop_service()) == (0, 0)
        before = second.service_log.stat().st_size
        second.start_service()
        assert wait_for(second, key, place_calls(second, key, 2)) == ["NORMAL"] * 2
        assert logged(second, "worker_dead", before) == []
        assert second.stop_service() == 0
    finally:
        end(first, second, same)


def test_a_restart_after_a_crash_dials_at_once(tmp_path: Path) -> None:
    with alone(tmp_path) as stage:
        stage.start_service()
        for _ in range(2):
            stage.kill_service()
            before = stage.service_log.stat().st_size
            stage.start_service()
            wait_until(lambda start=before: bool(logged(stage, "ready", start)))  # type: ignore[misc]
            assert logged(stage, "standby", before) == []
        assert stage.stop_service() == 0


def test_a_forced_take_over_stops_the_worker_that_is_alive(
    tmp_path: Path, postgres_url: str
) -> None:
    place = Place(tmp_path, postgres_url)
    first = place.first
    second = place.stage("second", first.data_dir)
    try:
        first.start_service()
        second.start_service("--take-over")
        assert first.service is not None
        assert first.service.wait(30) == 1
        said = first.service_log.read_text().splitlines()[-1]
        assert said == "bitel: another process took over the dialer 'main', so this one stops"
        assert logged(second, "standby") == []
        key = token(second)
        assert wait_for(second, key, place_calls(second, key, 2)) == ["NORMAL"] * 2
        # Its supervisor starts it again: it waits now.
        before = first.service_log.stat().st_size
        first.start_service()
        assert len(logged(first, "standby", before)) == 1
        assert wait_for(first, key, place_calls(second, key, 2)) == ["NORMAL"] * 2
    finally:
        end(first, second)


def test_a_process_that_restarts_in_a_loop_cuts_no_calls_of_another(
    tmp_path: Path, postgres_url: str
) -> None:
    place = Place(tmp_path, postgres_url)
    first, second = place.first, place.stage("second")
    calls_over = threading.Event()
    restarts = 0

    def restart_second() -> None:
        nonlocal restarts
        second.service_log.touch()
        while not calls_over.is_set():
            ready = partial(logged, second, "ready", second.service_log.stat().st_size)
            second.start_service()
            wait_until(lambda: bool(ready()))  # noqa: B023
            second.kill_service()
            restarts += 1

    try:
        first.start_service()
        key = token(first)
        calls = place_calls(first, key, 24, seconds=8.0)
        wait_until(lambda: first.phone_log.read_text().count('"audio"') >= 24)
        loop = threading.Thread(target=restart_second)
        loop.start()
        try:
            assert wait_for(first, key, calls) == ["NORMAL"] * 24
        finally:
            calls_over.set()
            loop.join(60)
        assert restarts >= 1
        assert logged(second, "active") == []
        assert first.stop_service() == 0
    finally:
        end(first, second)


@pytest.mark.soak
def test_processes_that_are_restarted_in_turn_leave_their_calls_whole(
    tmp_path: Path, postgres_url: str
) -> None:
    place = Place(tmp_path, postgres_url)
    first, second = place.first, place.stage("second")
    try:
        first.start_service()
        key = token(first)
        second.start_service()
        calls: list[str] = []
        for stage, other in ((first, second), (second, first), (first, second)):
            calls += place_calls(stage, key, 12, seconds=3.0)
            heard = len(calls) - 12
            wait_until(lambda: first.phone_log.read_text().count('"audio"') > heard)  # noqa: B023
            assert stage.stop_service() == 0
            assert other.service is not None
            assert other.service.poll() is None
            stage.start_service()
        assert wait_for(second, key, calls) == ["NORMAL"] * 36
        seen = phone_log.read(first.phone_log)
        assert {len(each) for each in seen.values()} == {3}
        assert phone_log.in_two_calls_at_once(seen) == []
        assert (first.stop_service(), second.stop_service()) == (0, 0)
    finally:
        end(first, second)


def test_a_phone_that_rang_when_the_process_crashed_has_been_tried(tmp_path: Path) -> None:
    with alone(tmp_path, rules=["*=ring"], dialer={"ring_timeout": 30}) as stage:
        stage.start_phone()
        stage.start_service()
        key = token(stage)
        calls = place_calls(stage, key, 3)

        def rang() -> list[str]:
            return [stage.command("attempts", call) for call in calls]

        wait_until(lambda: all("rings, under way" in each for each in rang()))
        stage.kill_service()
        stage.start_service()
        assert wait_for(stage, key, calls, 10.0) == ["NO_ANSWER"] * 3
        assert stage.stop_service() == 0
        seen = phone_log.read(stage.phone_log)
        assert [len(each) for each in seen.values()] == [1, 1, 1]


def test_a_port_that_is_taken_stops_the_start_while_the_lease_is_free(tmp_path: Path) -> None:
    with alone(tmp_path) as stage:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", stage.ports.sip))
            done = subprocess.run(
                [sys.executable, "-m", "bitel.cli", "serve", f"--config={stage.config}"],
                capture_output=True,
                text=True,
                timeout=30,
            )
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith("bitel: SIP can't be spoken from 127.0.0.1:")
        stage.start_service()
        assert logged(stage, "standby") == []


def test_the_calls_of_a_worker_that_is_stopped_are_made_by_another(
    tmp_path: Path, postgres_url: str
) -> None:
    place = Place(tmp_path, postgres_url)
    first = place.first
    same, other = place.stage("same", first.data_dir), place.stage("other")
    try:
        for stage in (first, same, other):
            stage.start_service()
        assert first.service is not None
        first.service.send_signal(signal.SIGSTOP)
        begun = time.monotonic()
        wait_until(lambda: bool(logged(other, "worker_dead")), 15)
        assert time.monotonic() - begun < 10
        assert logged(same, "active") == []
        key = token(other)
        assert wait_for(other, key, place_calls(other, key, 2)) == ["NORMAL"] * 2
        first.service.send_signal(signal.SIGCONT)
        assert first.service.wait(30) == 1
        said = first.service_log.read_text().splitlines()[-1]
        assert (
            said == "bitel: other workers of the dialer 'main' ended its lease, so this one stops"
        )
        # The lock of the data_dir is free now.
        wait_until(lambda: bool(logged(same, "active")), 10)
        assert wait_for(same, key, place_calls(other, key, 4)) == ["NORMAL"] * 4
    finally:
        if first.service is not None and first.service.poll() is None:
            first.service.send_signal(signal.SIGCONT)
        end(first, same, other)


@pytest.mark.soak
def test_a_stopped_process_on_the_same_data_dir_is_not_forced_out(tmp_path: Path) -> None:
    with alone(tmp_path) as stage:
        stage.start_service()
        assert stage.service is not None
        stage.service.send_signal(signal.SIGSTOP)
        done = subprocess.run(
            [sys.executable, "-m", "bitel.cli", "serve", f"--config={stage.config}", "--take-over"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1
        said = done.stderr.splitlines()[-1]
        assert said.startswith("bitel: the dialer 'main' can't be taken over: its worker ")
        assert f"-{stage.service.pid}-" in said
        stage.service.send_signal(signal.SIGCONT)
        assert stage.service.wait(30) == 1


@pytest.mark.soak
def test_a_crash_loop_rings_a_phone_once_and_once_for_each_retry(tmp_path: Path) -> None:
    with alone(tmp_path, rules=["*=ring"], dialer={"ring_timeout": 15}) as stage:
        stage.start_phone()
        stage.start_service()
        key = token(stage)
        with Client(key, stage.url) as client:
            voice = upload(stage, client, 1.0)
            call = client.call("09120000001", voice, retry_count=1, retry_interval=5)
        for number in (1, 2):

            def rings(at: str = f"{number}  ") -> bool:
                lines = stage.command("attempts", call["id"]).splitlines()
                return lines[-1].startswith(at) and lines[-1].endswith("rings, under way")

            # The second one 15 + 32 s after the crash.
            wait_until(lambda: phone_rang(stage) >= number, 60)  # noqa: B023
            wait_until(rings)
            stage.kill_service()
            stage.start_service()
        assert wait_for(stage, key, [call["id"]], 10.0) == ["NO_ANSWER"]
        assert stage.stop_service() == 0
        assert phone_rang(stage) == 2


def phone_rang(stage: Stage) -> int:
    seen = phone_log.read(stage.phone_log) if stage.phone_log.exists() else {}
    return sum(len(calls) for calls in seen.values())
