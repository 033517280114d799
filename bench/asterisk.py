"""Compares the CPU time per call of bitel and Asterisk, with SIPp as the carrier of both.

`python -m bench.asterisk` places the same number of calls with each and plays the same recording.
The CPU time of the processes is read twice while all calls run, and for whole calls from INVITE to
the end. SIPp's own CPU time is not included. `scripts/peers` installs Asterisk.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import report
from bench.asterisk_peer import calling, require
from bench.carried import answering, service
from bench.processes import cpu_seconds, tree
from bench.report import Result, Row, at_most, say
from bitel.client import Client
from bitel.demo.stage import Stage
from bitel.recordings.sample import write_sample
from tests.peers.asterisk import version
from tests.peers.sipp import Sipp

PACE = 50  # calls a second, of both
LOOK = 0.1  # seconds between readings
PATIENCE = 60.0  # seconds
SETTLE = 1.0  # seconds from the last answer to the first reading


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU seconds: `running` of a call each second that it runs; `minute` of a whole call, set-up
    and end included, each minute.
    """

    running: float
    minute: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this bench."""
    parser.add_argument("--running", type=int, default=500, help="calls that run at once")
    parser.add_argument("--window", type=float, default=12.0, help="seconds between two readings")


def measure(given: argparse.Namespace) -> Result:
    """Measures both."""
    require()
    return asyncio.run(_measure(given.running, given.window))


async def _measure(calls: int, window: float) -> Result:
    # Long enough that all calls run during the readings.
    talk = calls / PACE + SETTLE + window + 4.0
    with tempfile.TemporaryDirectory(prefix="bitel-bench-") as folder:
        sample, clip = Path(folder) / "sample.wav", Path(folder) / "clip.alaw"
        write_sample(sample, talk)
        async with answering(3 * calls) as carrier:
            ours = await _bitel(carrier, calls, talk, window, sample, clip, {})
            few_ports = {"rtp_ports": "20000-20015"}
            shared = await _bitel(carrier, calls, talk, window, sample, clip, few_ports)
            theirs = await asyncio.to_thread(_asterisk, carrier, calls, talk, window, clip)
    peer = version()
    bar = at_most(1 / 8, "ratio")
    each = ("% of a core", theirs.running * 100, peer, bar)
    return Result(
        f"{calls} running calls of {talk:.0f} s, G.711 in packets of 20 ms",
        [
            Row("CPU per running call", ours.running * 100, *each),
            Row("the same, RTP ports shared", shared.running * 100, *each),
            Row(
                "CPU per call minute, set-up and end included",
                ours.minute,
                "s",
                theirs.minute,
                peer,
            ),
        ],
        [f"Calls set up at {PACE} a second; readings {window:.0f} s apart with all calls running."],
    )


async def _bitel(
    carrier: Sipp,
    calls: int,
    talk: float,
    window: float,
    sample: Path,
    clip: Path,
    more: Mapping[str, Any],
) -> Cost:
    """Bitel's figures; leaves what it played in `clip`."""
    dialer = {"calls_per_second": PACE, "max_channels": calls, **more}
    async with service(carrier, dialer) as stage:
        return await asyncio.to_thread(_campaign, stage, calls, talk, window, sample, clip)


def _campaign(
    stage: Stage, calls: int, talk: float, window: float, sample: Path, clip: Path
) -> Cost:
    assert stage.service is not None
    with Client(stage.token(), stage.url) as client:
        voice = client.upload(sample)["id"]
        (played,) = stage.folder.glob(f"data/voices/**/*{voice}*.alaw")
        shutil.copyfile(played, clip)
        numbers = [f"0912{n:07}" for n in range(calls)]
        return _cost(
            stage.service.pid,
            lambda: client.batch(numbers, voice, retry_count=0),
            lambda: _heard(stage),
            calls,
            talk,
            window,
        )


def _heard(stage: Stage) -> int:
    """Number of calls that are answered and not over."""
    database = stage.folder / "data" / "bitel.db"
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connected:
        found = connected.execute("SELECT count(*) FROM attempt WHERE claim = 'heard'")
        return int(found.fetchone()[0])


def _asterisk(carrier: Sipp, calls: int, talk: float, window: float, clip: Path) -> Cost:
    with calling(carrier.port, clip) as caller:

        def place() -> None:
            due = time.monotonic()
            for n in range(calls):
                caller.call(f"0912{n:07}")
                due += 1 / PACE
                time.sleep(max(0.0, due - time.monotonic()))

        return _cost(caller.pid, place, caller.running, calls, talk, window)


def _cost(
    pid: int,
    place: Callable[[], object],
    running: Callable[[], int],
    calls: int,
    talk: float,
    window: float,
) -> Cost:
    """Places the calls and measures the process and its children."""
    before = _used(pid)
    place()
    _wait(lambda: running() == calls, f"{calls} calls do not run at once")
    time.sleep(SETTLE)
    first, own, began = _used(pid), cpu_seconds(pid), time.monotonic()
    time.sleep(window)
    last, own, span = _used(pid), cpu_seconds(pid) - own, time.monotonic() - began
    if running() != calls:
        raise SystemExit(f"only {running()} of {calls} calls still ran after {span:.0f} s")
    _wait(lambda: running() == 0, "the calls do not end")
    whole = _used(pid) - before
    say(
        f"{(last - first) / span:.3f} of a core with {calls} calls running, "
        f"{own / span:.3f} of it the first process; {whole:.2f} s in all"
    )
    return Cost((last - first) / span / calls, whole / (calls * talk / 60))


def _used(pid: int) -> float:
    return sum(map(cpu_seconds, tree(pid)))


def _wait(reached: Callable[[], bool], otherwise: str) -> None:
    end = time.monotonic() + PATIENCE
    while not reached():
        if time.monotonic() > end:
            raise SystemExit(otherwise)
        time.sleep(LOOK)


if __name__ == "__main__":
    report.main("asterisk", __doc__, measure, add_arguments)
