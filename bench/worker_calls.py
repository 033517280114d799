"""Measures call set-ups of one and of two workers over PostgreSQL, with SIPp as the carrier.

`python -m bench.worker_calls` queues short calls as `bench.calls burst` does, and has them dialled
by `bitel serve --only dialer` with one worker, then with two, over the same PostgreSQL and the same
two cores, which SIPp and the server use too.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench import report
from bench.calls import HEAD_START, free_ports, place
from bench.carried import answering
from bench.database import postgresql
from bench.processes import cpu_seconds, tree
from bench.report import Result, Row, at_least, at_most, say
from bitel.client import Client
from bitel.demo.stage import Stage
from bitel.recordings.sample import write_sample
from bitel.store.database import Database
from tests.peers.sipp import Sipp

SPARE = 2000
PATIENCE = 120.0
CHANNELS = 4000
_ENDS = (
    "SELECT min(answered_at), max(answered_at), count(*) FILTER (WHERE outcome = 'answered') "
    "FROM attempt"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this bench."""
    parser.add_argument("--calls", type=int, default=12_000, help="calls of each run")
    parser.add_argument("--pace", type=float, default=2500.0, help="calls a second, at most")
    parser.add_argument("--talk", type=float, default=0.2, help="seconds that a recording lasts")


def measure(given: argparse.Namespace) -> Result:
    """Measures one worker, then two."""
    runs = [asyncio.run(_measure(given, workers)) for workers in (1, 2)]
    (rate, cost, _), (rate_of_two, cost_of_two, shares) = runs
    rows = [
        Row("set up by one worker", rate, "calls/s"),
        Row("set up by two", rate_of_two, "calls/s", rate, "one", at_least(1.15, "ratio")),
        Row("CPU of one worker", cost * 1e3, "ms/call"),
        Row("CPU of two", cost_of_two * 1e3, "ms/call", cost * 1e3, "one", at_most(1.1, "ratio")),
        Row("least of the two", min(shares) / max(1, sum(shares)) * 2, "of its fair share"),
    ]
    title = f"{given.calls:,} calls of {given.talk:g} s; PostgreSQL, durable"
    return Result(title, rows, ["SIPp, PostgreSQL and the workers share the cores."])


async def _measure(given: argparse.Namespace, workers: int) -> tuple[float, float, list[int]]:
    async with answering(given.calls + SPARE) as carrier:
        return await asyncio.to_thread(_run, given, carrier, workers)


def _run(given: argparse.Namespace, carrier: Sipp, workers: int) -> tuple[float, float, list[int]]:
    """Calls set up a second, CPU seconds a call, and the calls of each worker."""
    with tempfile.TemporaryDirectory(prefix="bitel-bench-") as name, postgresql(name) as url:
        stage = Stage(
            Path(name) / "stage", record=False, trunk=f"sip:127.0.0.1:{carrier.port}",
            extra=f'database_url = "{url}"',
            dialer={
                "calls_per_second": given.pace, "max_channels": CHANNELS,
                "rtp_ports": free_ports(16 * workers), "ping_interval": 0,
            },
        )  # fmt: skip
        with stage:
            stage.start_service("--only=api")
            sample = stage.folder / "sample.wav"
            write_sample(sample, given.talk)
            with Client(stage.token(), stage.url) as client:
                voice = client.upload(sample)
            with Database.open(url) as database, _dialers(stage, workers) as dialers:
                due_at = time.time() + HEAD_START + given.calls / 6000
                sum(place(database, given.calls, voice["id"], due_at))
                time.sleep(max(0.0, due_at - time.time()))
                before = _used(dialers.pid)
                _wait(database)
                used = _used(dialers.pid) - before
                first, last, answered = database.read_now(
                    lambda conn: conn.exec_driver_sql(_ENDS).one()
                )
                shares = database.read_now(
                    lambda conn: (
                        conn.exec_driver_sql("SELECT count(*) FROM attempt GROUP BY epoch")
                        .scalars()
                        .all()
                    )
                )
                if answered != given.calls:
                    say(f"{given.calls - answered} calls were not answered")
    rate = given.calls / (last - first)
    say(f"{workers} workers: {rate:.0f} calls/s, {used / given.calls * 1e3:.2f} ms a call")
    return rate, used / given.calls, [*shares, *[0] * (workers - len(shares))]


def _wait(database: Database) -> None:
    end = time.monotonic() + PATIENCE
    waiting = "SELECT count(*) FROM call WHERE status = 0"
    while database.read_now(lambda conn: conn.exec_driver_sql(waiting).scalar()):
        if time.monotonic() > end:
            raise SystemExit(f"calls were not over within {PATIENCE:.0f} s")
        time.sleep(0.5)


def _used(pid: int) -> float:
    """CPU seconds of the workers, without those of their senders."""
    used = 0.0
    for each in tree(pid):
        command = Path(f"/proc/{each}/cmdline").read_bytes()
        if b"rtp.sender" not in command:
            used += cpu_seconds(each)
    return used


@contextmanager
def _dialers(stage: Stage, workers: int) -> Iterator[subprocess.Popen[bytes]]:
    """The dialers of the stage, ready."""
    log = stage.folder / "dialers.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "bitel.cli", "serve", f"--config={stage.config}",
                "--only=dialer", f"--workers={workers}",
            ],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
        try:
            end = time.monotonic() + 30.0
            while log.read_text().count(" ready ") < workers and time.monotonic() < end:
                time.sleep(0.1)
            time.sleep(2.0)  # until the limits are shared
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


if __name__ == "__main__":
    report.main("worker_calls", __doc__, measure, add_arguments)
