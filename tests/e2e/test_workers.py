"""`bitel serve --only dialer --workers N`: processes that dial together, restarts and drains."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bitel.client import Client
from bitel.demo.stage import Stage
from tests.support import phone_log
from tests.support.service_calls import token, upload
from tests.support.waiting import wait_until


@contextmanager
def dialers(stage: Stage, workers: int) -> Iterator[subprocess.Popen[bytes]]:
    """The dialers of the stage, as processes of one machine."""
    with (stage.folder / "dialers.log").open("ab") as output:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "bitel.cli", "serve", f"--config={stage.config}",
                "--only=dialer", f"--workers={workers}",
            ],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=stage.folder,
        )  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(60)


def listed(stage: Stage) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(stage.command("workers", "--json"))
    return found


def pid_of(worker: dict[str, Any]) -> int:
    return int(worker["name"].split("-")[-2])


def stage_for(tmp_path: Path, url: str, **dialer: Any) -> Stage:
    rules = ["*=answer:after=0.1"]
    return Stage(
        tmp_path, rules=rules, record=False, extra=f'database_url = "{url}"',
        dialer={"calls_per_second": 40, "ring_timeout": 10, "max_channels": 12, **dialer},
    )  # fmt: skip


def test_workers_dial_together_and_one_that_is_killed_comes_back(
    tmp_path: Path, postgres_url: str
) -> None:
    with stage_for(tmp_path, postgres_url) as stage, dialers(stage, 3) as process:
        stage.start_phone()
        log = stage.folder / "dialers.log"
        wait_until(lambda: "ready" in log.read_text() and "workers=3" in log.read_text(), 30)
        stage.start_service("--only=api")
        key = token(stage)
        found = listed(stage)
        assert sorted(each["slot"] for each in found) == [1, 2, 3]
        assert {each["state"] for each in found} == {"up"}
        assert len({each["address"] for each in found}) == 3
        with Client(key, stage.url) as client:
            [server] = client.servers()
            assert (server["up"], server["workers"]) == (True, 3)
            voice = upload(stage, client, 1.0)
            numbers = [f"0912000{n:04}" for n in range(60)]
            campaign = client.batch(numbers, voice, retry_count=0)["campaignId"]
            wait_until(lambda: client.campaign(campaign)["answered"] >= 6, 20)
            os.kill(pid_of(found[1]), signal.SIGKILL)
            wait_until(lambda: client.campaign(campaign)["state"] == "FINISHED", 60)
            counts = client.campaign(campaign)["byStatus"]
        again = listed(stage)
        assert sorted(each["slot"] for each in again) == [1, 2, 3]
        assert found[1]["name"] not in {each["name"] for each in again}
        # One is asked to stop, and is not started again; then all are.
        stage.command("drain", again[0]["name"], "--wait")
        assert len(listed(stage)) == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert listed(stage) == []
        seen = phone_log.read(stage.phone_log)
    assert counts["NORMAL"] + counts["UNKNOWN"] == 60
    assert counts["UNKNOWN"] <= 6
    assert phone_log.in_two_calls_at_once(seen) == []
    said = log.read_text()
    assert said.count("attempt_ended") >= 50
    assert "Traceback" not in said


def test_children_end_with_their_parent(tmp_path: Path, postgres_url: str) -> None:
    with stage_for(tmp_path, postgres_url) as stage, dialers(stage, 2) as process:
        log = stage.folder / "dialers.log"
        wait_until(lambda: "workers=2" in log.read_text(), 30)
        pids = [pid_of(each) for each in listed(stage)]
        process.kill()
        process.wait()
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 20)
        assert listed(stage) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--workers=2"], "--workers is for `serve --only dialer`"),
        (["--only=dialer", "--workers=2"], "set database_url to a PostgreSQL"),
        (["--only=dialer", "--workers=0"], "should be greater than or equal to 1"),
        (["--only=dialer", "--workers=65"], "should be less than or equal to 64"),
    ],
)
def test_workers_that_can_not_run_are_refused(
    tmp_path: Path, options: list[str], said: str
) -> None:
    (tmp_path / "bitel.toml").write_text(
        '[[dialers]]\nid = "main"\ntrunks = ["sip:127.0.0.1:9"]\nbind = "127.0.0.1:0"\n'
    )
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "bitel.cli", "serve", *options],
        cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert said in " ".join(done.stderr.replace("│", " ").split())
    assert time.monotonic() - begun < 20
