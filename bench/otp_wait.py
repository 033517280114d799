"""Measures the wait of one-time passwords for their INVITE, without and during a campaign.

`python -m bench.otp_wait` runs the service against SIPp. A campaign keeps all channels busy while
one-time passwords of another project are placed. The wait is the time from the HTTP request to the
claim, from the database. With `--kept N`, N channels are reserved for them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sqlite3
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench import report
from bench.carried import answering, service
from bench.report import Result, Row, at_most, say
from bitel.client import Client
from bitel.demo.stage import Stage
from bitel.recordings.sample import write_sample

CHANNELS = 50
TALK = 2.0
CAMPAIGN = 5000  # calls, more than are dialled meanwhile
PAUSE = 0.57  # seconds between passwords, not synchronous with the ends of other calls
MOST_MORE = 100.0  # ms of additional wait during a campaign, at p99


@dataclass(frozen=True, slots=True)
class Waits:
    """Waits of one-time passwords, in milliseconds."""

    p50: float
    p99: float
    worst: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this bench."""
    parser.add_argument("--passwords", type=int, default=60, help="how many of each kind")
    parser.add_argument("--kept", type=int, default=5, help="channels kept free for them")


def measure(given: argparse.Namespace) -> Result:
    """Measures without a campaign, during one, and during one without reserved channels."""
    idle = asyncio.run(_measure(given.passwords, given.kept, campaign=0))
    busy = asyncio.run(_measure(given.passwords, given.kept, campaign=CAMPAIGN))
    unkept = asyncio.run(_measure(given.passwords, 0, campaign=CAMPAIGN))
    kept = f"in a campaign, {given.kept} channels kept"
    return Result(
        f"A one-time password's wait; {CHANNELS} channels, calls of {TALK:.0f} s",
        [
            Row("idle dialer, p50", idle.p50, "ms"),
            Row("idle dialer, p99", idle.p99, "ms"),
            Row(f"{kept}, p50", busy.p50, "ms", idle.p50, "idle"),
            Row(f"{kept}, p99", busy.p99, "ms", idle.p99, "idle"),
            Row(f"{kept}, p99 above idle", busy.p99 - idle.p99, "ms", bar=at_most(MOST_MORE)),
            Row(f"{kept}, worst", busy.worst, "ms", idle.worst, "idle"),
            Row("in a campaign, none kept, p99", unkept.p99, "ms", idle.p99, "idle"),
        ],
        [f"{given.passwords} passwords of each kind, {PAUSE} s apart."],
    )


async def _measure(passwords: int, kept: int, campaign: int) -> Waits:
    """Places the passwords in sequence, during a campaign of `campaign` calls."""
    dialer = {"calls_per_second": 500, "max_channels": CHANNELS, "otp_channels": kept}
    # More calls than are placed, so that SIPp runs until the block ends.
    async with answering(100_000) as carrier, service(carrier, dialer) as stage:
        waits = await asyncio.to_thread(_run, stage, passwords, campaign)
    say(f"{kept} kept, campaign of {campaign}: {waits}")
    return waits


def _run(stage: Stage, passwords: int, campaign: int) -> Waits:
    with tempfile.TemporaryDirectory(prefix="bitel-bench-") as folder:
        sample = Path(folder) / "sample.wav"
        write_sample(sample, TALK)
        with Client(stage.token("campaigner"), stage.url) as client:
            if campaign:
                voice = client.upload(sample)["id"]
                client.batch([f"0912{n:07}" for n in range(campaign)], voice, retry_count=0)
                time.sleep(TALK * 2)  # until all channels are busy
        with Client(stage.token("other"), stage.url) as client:
            for n in range(passwords):
                client.otp(f"09351{n:06}", "12", retry_count=0, repeat_count=1)
                time.sleep(PAUSE)
        time.sleep(TALK)
        found = _waits(stage.folder / "data" / "bitel.db")
    stage.kill_service()
    if len(found) < passwords:
        raise SystemExit(f"only {len(found)} of {passwords} passwords were dialled")
    milliseconds = np.array(found) * 1000
    p50, p99 = np.percentile(milliseconds, [50, 99])
    return Waits(float(p50), float(p99), float(milliseconds.max()))


def _waits(database: Path) -> list[float]:
    """Seconds from the request to the claim of each password."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connected:
        found = connected.execute(
            "SELECT attempt.started_at - call.requested_at FROM attempt"
            " JOIN call ON call.id = attempt.call_id WHERE call.lane = 0"
        )
        return [float(wait) for (wait,) in found]


if __name__ == "__main__":
    report.main("otp_wait", __doc__, measure, add_arguments)
