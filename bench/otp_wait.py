"""How long a one-time password waits for its INVITE: at an idle dialer, and in a campaign's midst.

`python -m bench.otp_wait` runs the service against SIPp. A campaign keeps every channel busy while
one-time passwords of another project come in; each one's wait is the time from its HTTP request to
the claim of its attempt, read from the database. With `--kept N`, N channels are kept for them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.calls import place
from bitel.client import Client
from bitel.demo.stage import Stage
from bitel.store.database import Database
from bitel.voices.sample import write_sample
from tests.peers.sipp import sipp

CHANNELS = 50
TALK = 2.0


@dataclass(frozen=True, slots=True)
class Waits:
    """Waits of one-time passwords, in milliseconds."""

    name: str
    passwords: int
    p50: float
    p99: float
    worst: float


def main() -> None:
    """Measure both, print the table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--passwords", type=int, default=60, help="how many of each kind")
    arguments.add_argument("--kept", type=int, default=5, help="channels kept free for them")
    arguments.add_argument("--json", type=Path, help="where to write the figures too")
    given = arguments.parse_args()
    waits = [
        asyncio.run(measure("idle dialer", given.passwords, given.kept, campaign=0)),
        asyncio.run(measure("in a campaign", given.passwords, given.kept, campaign=5000)),
        asyncio.run(measure("in a campaign, none kept", given.passwords, 0, campaign=5000)),
    ]
    table = Table(title=f"A one-time password's wait, {CHANNELS} channels, calls of {TALK:.0f} s")
    for column in ("", "passwords", "p50 ms", "p99 ms", "worst ms"):
        table.add_column(column, justify="right" if column else "left")
    for each in waits:
        table.add_row(
            each.name,
            str(each.passwords),
            f"{each.p50:.0f}",
            f"{each.p99:.0f}",
            f"{each.worst:.0f}",
        )
    Console(width=100).print(table)
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps([asdict(each) for each in waits], indent=2))


async def measure(name: str, passwords: int, kept: int, campaign: int) -> Waits:
    """Place the passwords one after another, in the midst of `campaign` other calls."""
    with tempfile.TemporaryDirectory(prefix="bitel-bench-") as folder:
        carrier_folder = Path(folder) / "sipp"
        carrier_folder.mkdir()
        # More calls than come, so that SIPp stays; it ends with the block.
        async with sipp("answering", 100_000, carrier_folder, timeout=170) as carrier:
            dialer = {"calls_per_second": 500, "max_channels": CHANNELS, "otp_channels": kept}
            trunk = f"sip:127.0.0.1:{carrier.port}"
            with Stage(Path(folder) / "stage", dialer=dialer, trunk=trunk) as stage:
                return await asyncio.to_thread(_run, stage, name, passwords, campaign)


def _run(stage: Stage, name: str, passwords: int, campaign: int) -> Waits:
    stage.start_service()
    sample = stage.folder / "sample.wav"
    write_sample(sample, TALK)
    campaigner, other = stage.token("campaigner"), stage.token("other")
    with (
        Client(campaigner, stage.url) as client,
        Database.open(f"sqlite:///{stage.folder / 'data' / 'bitel.db'}") as database,
    ):
        if campaign:
            place(database, campaign, client.upload(sample)["id"], project="campaigner")
            time.sleep(TALK * 2)  # until every channel is busy
        with Client(other, stage.url) as passwords_client:
            for n in range(passwords):
                passwords_client.otp(f"09351{n:06}", "12", retry_count=0, repeat_count=1)
                time.sleep(0.57)  # not in step with the ends of other calls
        time.sleep(TALK)
        waits = database.read_now(
            lambda conn: (
                conn.exec_driver_sql(
                    "SELECT attempt.started_at - call.requested_at FROM attempt"
                    " JOIN call ON call.id = attempt.call_id WHERE call.lane = 0"
                )
                .scalars()
                .all()
            )
        )
    stage.kill_service()
    milliseconds = np.array(waits) * 1000
    p50, p99 = np.percentile(milliseconds, [50, 99])
    return Waits(name, len(waits), float(p50), float(p99), float(milliseconds.max()))


if __name__ == "__main__":
    main()
