"""Measures call set-ups per second of the whole service, every state durable, with SIPp.

    python -m bench.calls burst     40,000 short calls: whether 2,000 a second are set up
    python -m bench.calls held      calls of 30 s, 10,000 running: whether 333 a second are set up
    python -m bench.calls long      200,000 short calls: whether memory stays constant

The service uses SQLite on disk. The calls are queued before the measurement. The peer is SIPp's
UAC, which places the same calls without audio and storage.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import re
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from bench import report
from bench.carried import answering, service
from bench.processes import cpu_seconds, resident, thread_seconds, tree
from bench.report import Result, Row, at_least, at_most, say
from bitel.client import Client
from bitel.demo.stage import Stage
from bitel.domain.calls import Lane, NewCall
from bitel.domain.ids import new_ids
from bitel.recordings.sample import write_sample
from bitel.store import placing, projects
from bitel.store.database import Database
from tests.peers.sipp import Sipp

HEAD_START = 0.5  # seconds from the last call placed to the first one due
CHUNK = 2000  # calls placed in one transaction
AT_FIRST = 40_000  # calls in the queue before the first is due; the rest follow meanwhile
PATIENCE = 110.0  # seconds of margin for the whole run
LOOK = 0.5  # seconds between measurements
SPARE = 1000
FLAT = 24.0  # MiB of growth that count as constant
PEER_CALLS = 20_000
PEER_AT_ONCE = 1000

CHANNELS = 10_200
"""Concurrent calls: 10,000 with audio, and those that begin or end."""


@dataclass(frozen=True, slots=True)
class Mode:
    """Calls for `seconds` at a `rate` per second; each lasts `talk` seconds.

    The dialer's limit is `pace` per second, above `rate`, so that it can catch up after a delay.
    """

    rate: float
    pace: float
    seconds: float
    talk: float


MODES = {
    "burst": Mode(rate=2000, pace=2500, seconds=20, talk=0.2),
    "held": Mode(rate=333, pace=400, seconds=60, talk=30),
    "long": Mode(rate=1400, pace=1400, seconds=143, talk=0.2),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """The calls to place: their number, duration `talk` in seconds, and rate limit `pace`."""

    calls: int
    pace: float
    talk: float
    channels: int


@dataclass(slots=True)
class Reading:
    """Resource usage of the service at a time. CPU in seconds, memory in bytes."""

    threads: dict[str, float]
    service: float
    sender: float
    memory: int
    lag: dict[float, int]
    """How often the loop was late, by upper bounds in seconds; cumulative."""
    pauses: dict[float, int]
    """How often the collector of garbage ran, by how long that took; as above."""

    @classmethod
    def of(cls, stage: Stage) -> Reading:
        """As it is now."""
        assert stage.service is not None
        pid, *children = tree(stage.service.pid)
        page = httpx.get(f"{stage.url}/metrics", timeout=10.0).text
        return cls(
            thread_seconds(pid),
            cpu_seconds(pid),
            sum(cpu_seconds(child) for child in children),
            resident(pid),
            _histogram(page, "bitel_event_loop_lag_seconds"),
            _histogram(page, "bitel_collector_pause_seconds"),
        )


@dataclass(slots=True)
class Watched:
    """Measurements of a run."""

    most_running: int = 0
    memory_then: int = 0
    """Bytes, when most of them ran."""
    memory: list[tuple[int, int]] = field(default_factory=list)
    """Calls that were over, and bytes."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this bench."""
    parser.add_argument("mode", choices=tuple(MODES))
    parser.add_argument("--rate", type=float, help="new calls a second, and no more than that")
    parser.add_argument("--seconds", type=float, help="how long calls are placed")
    parser.add_argument("--talk", type=float, help="seconds that a recording lasts")
    parser.add_argument("--no-peer", action="store_true", help="leave SIPp's own UAC out")


def measure(given: argparse.Namespace) -> Result:
    """Measures the chosen mode, then SIPp's UAC."""
    mode = MODES[given.mode]
    rate, pace = mode.rate, mode.pace
    if given.rate:
        rate = pace = given.rate
    seconds, talk = given.seconds or mode.seconds, given.talk or mode.talk
    plan = Plan(int(rate * seconds), pace, talk, channels=max(CHANNELS, int(rate * (talk + 0.5))))
    with_peer = not given.no_peer and given.mode != "long"
    return asyncio.run(_measure(given.mode, plan, with_peer))


async def _measure(mode: str, plan: Plan, with_peer: bool) -> Result:
    dialer = {
        "calls_per_second": plan.pace,
        "max_channels": plan.channels,
        # Few ports, shared by many calls, so that one system call sends for all of them.
        "rtp_ports": free_ports(16),
    }
    # SIPp ends after this many calls; it counts OPTIONS and retransmissions as calls.
    async with answering(plan.calls + SPARE) as carrier, service(carrier, dialer) as stage:
        rows, notes = await asyncio.to_thread(_run, stage, carrier, mode, plan)
    if with_peer:
        async with answering(PEER_CALLS) as carrier:
            rate, cost = await asyncio.to_thread(_sipp_uac, carrier)
        rows = [_beside(row, rate, cost) for row in rows]
    title = (
        f"{plan.calls:,} calls of {plan.talk:g} s, at most {plan.pace:,.0f} a second "
        f"and {plan.channels:,} at once; SQLite, durable"
    )
    return Result(title, rows, notes)


def _run(stage: Stage, carrier: Sipp, mode: str, plan: Plan) -> tuple[list[Row], list[str]]:
    sample = stage.folder / "sample.wav"
    write_sample(sample, plan.talk)
    with Client(stage.token(), stage.url) as client:
        voice = client.upload(sample)
    with Database.open(f"sqlite:///{stage.folder / 'data' / 'bitel.db'}") as database:
        # Long enough in advance to queue them.
        due_at = time.time() + HEAD_START + min(plan.calls, AT_FIRST) / 8000
        placed = place(database, plan.calls, voice["id"], due_at)
        at_first = sum(itertools.islice(placed, AT_FIRST // CHUNK))
        if time.time() > due_at:
            say("the first calls were due before the last were placed")
        rest = threading.Thread(target=sum, args=(placed,))
        before = Reading.of(stage)
        say(f"{at_first} calls are placed")
        time.sleep(max(0.0, due_at - time.time()))
        rest.start()
        carrier_before = cpu_seconds(carrier.process.pid)
        watched = _watch(stage, database, plan, rest)
        after = Reading.of(stage)
        first, last, normal, talked = _ends(database)
        full_at = _answered_at(database, plan.channels) if mode == "held" else first
    carrier_used = cpu_seconds(carrier.process.pid) - carrier_before
    assert stage.stop_service() == 0
    rows = _rows(mode, plan, before, after, watched, (first, last, normal, talked))
    if mode == "held" and plan.calls > plan.channels:
        rate = (plan.calls - plan.channels) / max(last - full_at, 0.001)
        bar = at_least(MODES[mode].rate * 0.99)
        rows.insert(1, Row(f"set up from the {plan.channels:,}th on", rate, "calls/s", bar=bar))
    loop, writer = _split(before, after)
    service = after.service - before.service
    notes = [
        f"CPU a call: event loop {loop / plan.calls * 1e3:.2f} ms, "
        f"database writer {writer / plan.calls * 1e3:.2f} ms, "
        f"the service's other threads {(service - loop - writer) / plan.calls * 1e3:.2f} ms, "
        f"carrier {carrier_used / plan.calls * 1e3:.2f} ms.",
        "The loop is late by what a timer finds ten times a second; lateness and pauses are "
        "the upper bounds of the classes that they fall into.",
    ]
    return rows, notes


def _rows(
    mode: str,
    plan: Plan,
    before: Reading,
    after: Reading,
    watched: Watched,
    ends: tuple[float, float, int, float],
) -> list[Row]:
    first, last, normal, talked = ends
    held = mode == "held"
    more: list[Row] = []
    if mode == "long":
        name = "memory, most in the last quarter above the second's"
        more = [Row(name, _growth(watched) / 2**20, "MiB", bar=at_most(FLAT))]
    used = after.service - before.service
    sender = after.sender - before.sender
    p99, worst = _percentiles(before.lag, after.lag)
    pause, longest = _percentiles(before.pauses, after.pauses)
    return [
        Row("set up", plan.calls / max(last - first, 0.001), "calls/s",
            bar=at_least(MODES[mode].rate * 0.99) if mode == "burst" else None),
        Row("not ended as NORMAL", plan.calls - normal, "calls", bar=at_most(0)),
        Row("most at once", watched.most_running, "calls",
            bar=at_least(9_900) if held and plan.talk >= 30 else None),
        Row("CPU of the service", used / plan.calls * 1e3, "ms/call", bar=at_most(0.45)),
        Row("CPU of the sender", sender / plan.calls * 1e3, "ms/call"),
        Row("CPU of both", (used + sender) / max(talked, 0.001) * 100, "% of a core/running call"),
        Row("loop late, p99", p99 * 1e3, "ms", bar=at_most(50)),
        Row("loop late, most", worst * 1e3, "ms"),
        Row("collector's pauses, p99", pause * 1e3, "ms", bar=at_most(10)),
        Row("collector's pauses, longest", longest * 1e3, "ms"),
        Row("memory", (watched.memory_then - before.memory) / max(watched.most_running, 1)
            / 1024, "KiB/running call", bar=at_most(16) if held else None),
        *more,
    ]  # fmt: skip


def _beside(row: Row, rate: float, cost: float) -> Row:
    """Adds SIPp's figure to the row, if any."""
    peer = {"set up": rate, "CPU of the service": cost * 1e3}.get(row.name)
    if peer is None:
        return row
    return Row(row.name, row.value, row.unit, peer, "SIPp's UAC", row.bar)


def place(
    database: Database, count: int, voice_id: str, due_at: float, first: int = 0
) -> Iterator[int]:
    """Queues calls of the demo's project without the API, all due at `due_at` (Unix s).

    The numbers ascend from `first`. Yields the count after each transaction.
    """
    found = database.read_now(lambda conn: projects.find(conn, "demo"))
    assert found is not None
    project_id = found.id
    for begin in range(0, count, CHUNK):
        numbers = range(first + begin, first + min(begin + CHUNK, count))
        new = [
            NewCall(
                id=call_id,
                project_id=project_id,
                dialer_id="main",
                phone_number=f"0912{n:07}",
                e164=f"+98912{n:07}",
                recording_id=voice_id,
                lane=Lane.BATCH,
                retry_count=0,
                retry_interval=60,
                requested_at=due_at,
                expires_at=due_at + 600,
            )
            for n, call_id in zip(numbers, new_ids(time.time(), len(numbers)), strict=True)
        ]
        database.write_now(lambda conn, new=new: placing.place_each(conn, [new]))  # type: ignore[misc]
        yield len(new)


def free_ports(count: int) -> str:
    """Returns a range of UDP ports that is currently free."""
    for first in range(20_000, 40_000, count):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    probe = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                    probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return f"{first}-{first + count - 1}"
    raise SystemExit("there are no free UDP ports from 20000 to 39999")


def _watch(stage: Stage, database: Database, plan: Plan, rest: threading.Thread) -> Watched:
    """Measures the service until all calls are over."""
    assert stage.service is not None
    calls = plan.calls
    patience = calls / plan.pace + PATIENCE
    end = time.monotonic() + patience
    watched = Watched()
    while time.monotonic() < end:
        all_placed = not rest.is_alive()
        placed, waiting, running = database.read_now(
            lambda conn: conn.exec_driver_sql(
                "SELECT (SELECT count(*) FROM call),"
                " (SELECT count(*) FROM call WHERE status = 0),"
                " (SELECT count(*) FROM attempt WHERE claim = 'heard')"
            ).one()
        )
        memory = resident(stage.service.pid)
        watched.memory.append((int(placed) - int(waiting), memory))
        if int(running) > watched.most_running:
            watched.most_running, watched.memory_then = int(running), memory
        if all_placed and not waiting:
            return watched
        time.sleep(LOOK)
    raise SystemExit(f"{waiting} of {calls} calls were not over within {patience:.0f} s")


def _ends(database: Database) -> tuple[float, float, int, float]:
    """First and last answer, number of NORMAL calls, and seconds during which all ran."""
    row = database.read_now(
        lambda conn: conn.exec_driver_sql(
            "SELECT min(answered_at), max(answered_at), sum(call.status = 1),"
            " sum(ended_at - answered_at)"
            " FROM attempt JOIN call ON call.id = call_id WHERE outcome = 'answered'"
        ).one()
    )
    return float(row[0]), float(row[1]), int(row[2]), float(row[3])


def _answered_at(database: Database, calls: int) -> float:
    """When this many calls, or all, had been answered, so that all channels were in use."""
    return float(
        database.read_now(
            lambda conn: conn.exec_driver_sql(
                "SELECT max(answered_at) FROM (SELECT answered_at FROM attempt"
                " WHERE outcome = 'answered' ORDER BY answered_at LIMIT ?)",
                (calls,),
            ).scalar_one()
        )
    )


def _histogram(page: str, name: str) -> dict[float, int]:
    found = re.findall(name + r'_bucket\{le="([^"]+)"\} ([0-9.e+]+)', page)
    return {float(bound): int(float(count)) for bound, count in found}


def _percentiles(before: dict[float, int], after: dict[float, int]) -> tuple[float, float]:
    """99th percentile and maximum, as upper bounds in seconds, between two readings."""
    seen = {bound: count - before.get(bound, 0) for bound, count in sorted(after.items())}
    total = max(seen.values(), default=0)
    p99 = next((bound for bound, count in seen.items() if count >= total * 0.99), 0.0)
    worst = next((bound for bound, count in seen.items() if count >= total), 0.0)
    return p99, worst


def _split(before: Reading, after: Reading) -> tuple[float, float]:
    """CPU seconds of the event loop's thread and of the database writer's."""
    return (
        after.threads["main"] - before.threads["main"],
        after.threads["store-writer"] - before.threads["store-writer"],
    )


def _growth(watched: Watched) -> float:
    """Growth in bytes of the memory maximum from the second to the last quarter of the calls.

    In the first quarter memory grows: transactions are kept for 32 s, and page caches fill.
    """
    total = watched.memory[-1][0]

    def most(begin: float, end: float) -> int:
        return max(memory for over, memory in watched.memory if begin <= over / total <= end)

    return most(0.75, 1.0) - most(0.25, 0.5)


def _sipp_uac(carrier: Sipp) -> tuple[float, float]:
    """Runs SIPp's UAC; returns calls per second and CPU seconds per call."""
    host, port = carrier.address
    with tempfile.TemporaryDirectory(prefix="bitel-bench-") as folder:
        command = ["sipp", "-sn", "uac", f"{host}:{port}", "-i", host, "-d", "200", "-nostdin"]
        command += ["-buff_size", "4194304"]
        command += ["-r", "10000", "-l", str(PEER_AT_ONCE), "-m", str(PEER_CALLS)]
        began = time.monotonic()
        with (Path(folder) / "screen").open("wb") as screen:
            process = subprocess.Popen(command, cwd=folder, stdout=screen, stderr=screen)
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - began
    if process.returncode:
        say(f"SIPp's UAC ended with {process.returncode}: some of its calls failed")
    return PEER_CALLS / seconds, (used.ru_utime + used.ru_stime) / PEER_CALLS


if __name__ == "__main__":
    report.main("calls", __doc__, measure, add_arguments)
