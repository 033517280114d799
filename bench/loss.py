"""Measures the share of calls with the right result over a lossy link: `python -m bench.loss`.

The service calls the built-in phone over UDP with the default timers of RFC 3261 (T1 = 500 ms). A
relay drops 0, 5, 10 or 20 % of the SIP datagrams per direction, and duplicates and reorders 10 %.
Phones answer, answer and hang up, are busy, reject, or ring. A result is right if the client sees
the matching status, the ledger has billed the call once if it was answered and else not, and the
phone received it as often, never in two calls at once. The four rates run concurrently.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench import report
from bench.report import Result, Row, at_least, say
from tests.support.lossy_calls import Played, play
from tests.support.lossy_relay import Loss

RATES = (0.0, 0.05, 0.1, 0.2)
ALL_RIGHT_UP_TO = 0.1
DOUBLED = REORDERED = 0.1
PATIENCE = 150.0  # seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this bench."""
    parser.add_argument("--calls", type=int, default=1000, help="calls at each rate")
    parser.add_argument("--pace", type=float, default=25.0, help="new calls a second at each rate")


def measure(given: argparse.Namespace) -> Result:
    """Measures all rates; a row for each."""
    played = asyncio.run(_play_all(given.calls, given.pace))
    rows = []
    for rate, one in zip(RATES, played, strict=True):
        say(f"{rate:.0%} lost: {dict(one.statuses)}, {one.passed.came} datagrams")
        for sentence in one.wrong:
            say(f"  {sentence}")
        bar = at_least(100) if rate <= ALL_RIGHT_UP_TO else None
        rows.append(Row(f"calls that end right, {rate:.0%} lost", one.right * 100, "%", bar=bar))
    note = (
        f"{given.calls} calls at each rate, both directions alike; "
        f"{DOUBLED:.0%} of the datagrams doubled, {REORDERED:.0%} reordered."
    )
    return Result("Calls over a lossy link", rows, [note])


async def _play_all(calls: int, pace: float) -> Sequence[Played]:
    starting = asyncio.Lock()
    with tempfile.TemporaryDirectory(prefix="bitel-bench-") as folder:
        return await asyncio.gather(
            *(
                play(
                    Path(folder) / f"lost-{rate:.0%}",
                    Loss(rate, DOUBLED, REORDERED, seed=number),
                    calls,
                    pace,
                    PATIENCE,
                    starting,
                )
                for number, rate in enumerate(RATES)
            )
        )


if __name__ == "__main__":
    report.main("loss", __doc__, measure, add_arguments)
