"""Calls set up a second, and CPU per running call, of the whole service against SIPp.

`python -m bench.calls` runs the service as a user would, with SQLite on disk, and SIPp for a
carrier that answers at once. It prints one table, and writes the same as JSON with `--json FILE`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.processes import cpu_seconds, tree
from bitel.calls.call import Lane, NewCall
from bitel.calls.ids import new_id
from bitel.client import Client
from bitel.demo.stage import Stage
from bitel.store import placing, projects
from bitel.store.database import Database
from bitel.voices.sample import write_sample
from tests.peers.sipp import sipp


@dataclass(frozen=True, slots=True)
class Figure:
    """What one run measured. CPU is in seconds of one core, the carrier's not included."""

    name: str
    calls: int
    normal: int
    seconds: float
    set_ups_per_second: float
    most_at_once: int
    cpu_service: float
    cpu_sender: float
    cpu_ms_per_call: float
    cpu_percent_per_running_call: float


def main() -> None:
    """Run both measurements, print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--calls", type=int, default=3000, help="short calls, for set-ups")
    arguments.add_argument("--running", type=int, default=500, help="calls that run at once")
    arguments.add_argument("--talk", type=float, default=20.0, help="seconds that those last")
    arguments.add_argument("--json", type=Path, help="where to write the figures too")
    given = arguments.parse_args()
    figures = [
        asyncio.run(measure("set-ups", given.calls, 0.2, pace=100_000, channels=1000)),
        asyncio.run(
            measure("running", given.running, given.talk, pace=given.running / 4, channels=10_000)
        ),
    ]
    table = Table(title=f"bitel against SIPp, {os.cpu_count()} cores")
    columns = ("", "calls", "normal", "set-ups/s", "most at once", "CPU ms/call", "CPU %/running")
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    for figure in figures:
        table.add_row(
            figure.name,
            str(figure.calls),
            str(figure.normal),
            f"{figure.set_ups_per_second:.0f}",
            str(figure.most_at_once),
            f"{figure.cpu_ms_per_call:.2f}",
            f"{figure.cpu_percent_per_running_call:.4f}",
        )
    Console(width=100).print(table)
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps([asdict(figure) for figure in figures], indent=2))


async def measure(name: str, calls: int, talk: float, pace: float, channels: int) -> Figure:
    """Place `calls` calls of `talk` seconds and wait until the last is over."""
    with tempfile.TemporaryDirectory(prefix="bitel-bench-") as folder:
        carrier_folder = Path(folder) / "sipp"
        carrier_folder.mkdir()
        async with sipp("answering", calls, carrier_folder, timeout=170) as carrier:
            dialer = {
                "calls_per_second": pace,
                "max_channels": channels,
                # Few ports, shared by many calls: one system call then sends for all of them.
                "rtp_ports": "20000-20015",
            }
            trunk = f"sip:127.0.0.1:{carrier.port}"
            with Stage(Path(folder) / "stage", dialer=dialer, trunk=trunk) as stage:
                return await asyncio.to_thread(_run, stage, name, calls, talk)


def _run(stage: Stage, name: str, calls: int, talk: float) -> Figure:
    stage.start_service()
    assert stage.service is not None
    sample = stage.folder / "sample.wav"
    write_sample(sample, talk)
    with Client(stage.token(), stage.url) as client:
        voice = client.upload(sample)
    pids = tree(stage.service.pid)
    before = {pid: cpu_seconds(pid) for pid in pids}
    with Database.open(f"sqlite:///{stage.folder / 'data' / 'bitel.db'}") as database:
        place(database, calls, voice["id"], project="demo")
        most = _wait_until_over(database, calls, patience=160.0)
        after = {pid: cpu_seconds(pid) for pid in pids}
        first, last, normal, call_seconds = _ends(database)
    used = {pid: after[pid] - before[pid] for pid in pids}
    service = used.pop(stage.service.pid)
    sender = sum(used.values())
    assert stage.stop_service() == 0
    return Figure(
        name=name,
        calls=calls,
        normal=normal,
        seconds=last - first,
        set_ups_per_second=calls / max(last - first, 0.001),
        most_at_once=most,
        cpu_service=service,
        cpu_sender=sender,
        cpu_ms_per_call=(service + sender) / calls * 1000,
        cpu_percent_per_running_call=(service + sender) / call_seconds * 100,
    )


def place(database: Database, count: int, voice_id: str, project: str) -> None:
    """Put `count` calls of a project into the queue, past the API."""
    now = time.time()
    found = database.read_now(lambda conn: projects.find(conn, project))
    assert found is not None
    project_id = found.id
    new = [
        NewCall(
            id=new_id(now),
            project_id=project_id,
            dialer_id="main",
            phone_number=f"0912{n:07}",
            e164=f"+98912{n:07}",
            recording_id=voice_id,
            lane=Lane.BATCH,
            retry_count=0,
            retry_interval=60,
            requested_at=now,
            expires_at=now + 600,
        )
        for n in range(count)
    ]
    database.write_now(lambda conn: placing.place(conn, new))


def _wait_until_over(database: Database, calls: int, patience: float) -> int:
    end = time.monotonic() + patience
    most = 0
    while time.monotonic() < end:
        waiting, running = database.read_now(
            lambda conn: conn.exec_driver_sql(
                "SELECT (SELECT count(*) FROM call WHERE status = 0),"
                " (SELECT count(*) FROM attempt WHERE claim = 'heard')"
            ).one()
        )
        most = max(most, int(running))
        if not waiting:
            return most
        time.sleep(0.25)  # between two looks at a running service
    raise SystemExit(f"{calls} calls were not over within {patience:.0f} s")


def _ends(database: Database) -> tuple[float, float, int, float]:
    """First and last answer, calls that ended as NORMAL, and seconds that all ran together."""
    row = database.read_now(
        lambda conn: conn.exec_driver_sql(
            "SELECT min(answered_at), max(answered_at), count(*), sum(ended_at - answered_at)"
            " FROM attempt WHERE outcome = 'answered'"
        ).one()
    )
    return float(row[0]), float(row[1]), int(row[2]), float(Decimal(str(row[3])))


if __name__ == "__main__":
    main()
