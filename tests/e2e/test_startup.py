"""What a service says when it starts: where its data is, and that it can place no calls."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import httpx

from tests.e2e.bare_service import logged, serving
from tests.support.waiting import wait_until


def test_without_dialers_it_warns(tmp_path: Path) -> None:
    with serving(tmp_path, "[http]\nport = 0\n") as (process, log):
        text = logged(log, "ready")
        assert "[warning  ] no_dialers" in text
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def test_a_database_that_is_made_is_named(tmp_path: Path) -> None:
    where = tmp_path / "bitel-data" / "bitel.db"
    for made in (True, False):
        with serving(tmp_path, "[http]\nport = 0\n") as (process, log):
            text = logged(log, "ready")
            assert (f"database_created at={where}" in text) is made
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0


def test_sighup_never_ends_it(tmp_path: Path) -> None:
    """Not while it starts, nor while it drains, however often it comes."""
    with serving(tmp_path, "[http]\nport = 0\n") as (process, log):
        # Python is told to ignore it by the first line of the command, which is there by then.
        wait_until(lambda: ignores(process.pid, signal.SIGHUP))
        for _ in range(50):
            process.send_signal(signal.SIGHUP)
            time.sleep(0.01)  # so that they come at many moments of the start
        logged(log, "ready")
        process.send_signal(signal.SIGHUP)
        logged(log, "reloaded")
        process.send_signal(signal.SIGTERM)
        for _ in range(20):
            process.send_signal(signal.SIGHUP)
        assert process.wait(20) == 0
        assert "Traceback" not in log.read_text()


def test_readiness_says_what_calls_cost_and_what_is_amiss(tmp_path: Path) -> None:
    settings = "[http]\nport = 0\n[notifications]\ndisk_megabytes = 100000000\n"
    with serving(tmp_path, settings + "[retention]\ncalls = 90\n") as (process, log):
        port = re.search(r"http://127.0.0.1:(\d+)", logged(log, "ready"))
        assert port is not None
        logged(log, "storage_pressure")
        answer = httpx.get(f"http://127.0.0.1:{port[1]}/readyz")
        body = answer.json()
        assert (answer.status_code, body["status"]) == (200, "ready")
        assert body["storage"] == (
            "calls are kept for 90 days, and each takes 650 B to 1.5 kB of the database"
        )
        [warning] = body["warnings"]
        assert warning.startswith("the disk of data_dir has ")
        page = httpx.get(f"http://127.0.0.1:{port[1]}/metrics").text
        assert float(re.search(r"^bitel_database_bytes (\S+)$", page, re.M)[1]) > 0  # type: ignore[index]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0


def ignores(pid: int, number: signal.Signals) -> bool:
    """Whether a process ignores or handles a signal."""
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    return bool((int(fields["SigIgn"], 16) | int(fields["SigCgt"], 16)) >> (number - 1) & 1)
