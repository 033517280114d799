"""Measures whether memory and disk usage stay constant over 200,000 calls with retention.

    python -m bench.retention

Calls of 0.2 s are placed at the rate of dialling and deleted 30 s after their end. SIPp is the
carrier; SQLite is on disk, and every state is durable.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench import report
from bench.calls import free_ports, place
from bench.carried import answering, service
from bench.processes import resident, tree
from bench.report import Result, Row, at_least, at_most, say
from bitel.client import Client
from bitel.demo.stage import Stage
from bitel.recordings.sample import write_sample
from bitel.store.database import Database

RATE = 700.0
KEPT = 30.0  # seconds
TALK = 0.2
LOOK = 1.0
SPARE = 1000
FLAT_MEMORY = 24.0  # MiB
FLAT_DISK = 16.0  # MiB


@dataclass(frozen=True, slots=True)
class Look:
    """A measurement; sizes in bytes."""

    ended: int
    memory: int
    disk: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this bench."""
    parser.add_argument("--calls", type=int, default=200_000)
    parser.add_argument("--rate", type=float, default=RATE, help="calls a second")


def measure(given: argparse.Namespace) -> Result:
    """Runs the calls and measures the growth of the service."""
    return asyncio.run(_measure(given.calls, given.rate))


async def _measure(calls: int, rate: float) -> Result:
    dialer = {
        "calls_per_second": rate * 1.2,
        "max_channels": int(rate * (TALK + 1)),
        "rtp_ports": free_ports(16),
    }
    extra = f"[retention]\ncalls = {KEPT / 86_400}\n"
    async with answering(calls + SPARE) as carrier, service(carrier, dialer, extra) as stage:
        looks, normal = await asyncio.to_thread(_run, stage, calls, rate)
    quarter = len(looks) // 4
    second, last = looks[quarter : 2 * quarter], looks[3 * quarter :]

    def growth(name: str) -> float:
        return float(
            max(getattr(each, name) for each in last) - max(getattr(each, name) for each in second)
        )

    kept = "most in the last quarter above the second's"
    rows = [
        Row("ended as NORMAL", normal / calls * 100, "% of the calls", bar=at_least(100)),
        Row(f"memory, {kept}", growth("memory") / 2**20, "MiB", bar=at_most(FLAT_MEMORY)),
        Row(
            f"database with its log, {kept}", growth("disk") / 2**20, "MiB", bar=at_most(FLAT_DISK)
        ),
        Row("database and its log, at the end", looks[-1].disk / 2**20, "MiB"),
    ]
    title = f"{calls:,} calls, {rate:,.0f} a second, each kept for {KEPT:g} s; SQLite, durable"
    return Result(title, rows, [])


def _run(stage: Stage, calls: int, rate: float) -> tuple[list[Look], int]:
    sample = stage.folder / "sample.wav"
    write_sample(sample, TALK)
    with Client(stage.token(), stage.url) as client:
        voice = client.upload(sample)["id"]
    looks: list[Look] = []
    database_file = stage.folder / "data" / "bitel.db"
    with Database.open(f"sqlite:///{database_file}") as database:
        begun, placed = time.monotonic(), 0
        until = begun + calls / rate + 60
        while time.monotonic() < until:
            due = min(calls, int((time.monotonic() - begun + LOOK) * rate))
            if due > placed:
                sum(place(database, due - placed, voice, time.time(), placed))
                placed = due
            looks.append(_look(stage, database_file))
            if looks[-1].ended >= calls:
                break
            if len(looks) % 30 == 0:
                say(f"{looks[-1].ended} calls are over, {looks[-1].disk / 2**20:.0f} MiB")
            time.sleep(LOOK)
    assert stage.stop_service() == 0
    return looks, looks[-1].ended


def _look(stage: Stage, database: Path) -> Look:
    assert stage.service is not None
    page = httpx.get(f"{stage.url}/metrics", timeout=10.0).text
    ended = sum(
        int(float(line.rpartition(" ")[2]))
        for line in page.splitlines()
        if line.startswith("bitel_calls_ended_total{") and 'status="NORMAL"' in line
    )
    disk = sum(
        path.stat().st_size
        for path in (database, database.with_name("bitel.db-wal"))
        if path.exists()
    )
    pid = tree(stage.service.pid)[0]
    return Look(ended, resident(pid), disk)


if __name__ == "__main__":
    report.main("retention", __doc__, measure, add_arguments)
