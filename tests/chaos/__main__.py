"""`python -m tests.chaos`: places calls at a real service, injects faults, and checks the results.

Prints each violation with its evidence and a summary in Markdown; the exit status is 1 if there was
any violation. The same seed gives the same calls and the same sequence of faults; when exactly each
happens depends on the machine.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.checks import check
from tests.chaos.evidence import Terms
from tests.chaos.report import summary, write_faults
from tests.chaos.run import Options, run

EVERYWHERE = (
    "kill", "stop", "term", "sender-kill", "sender-stop", "worker-kill", "worker-stop",
    "callee-unreachable", "callee-refuse", "db-freeze", "db-full",
)  # fmt: skip
DATABASE_FAULTS = {"sqlite": ("db-unwritable",), "postgresql": ("db-kill",)}
SECONDS_A_CALL = 0.48
"""Of a run, where no length is given: 500 calls are placed within four minutes."""


def main() -> int:
    """Run, report, and return the exit status: 0 if every rule held."""
    options, keep = _options()
    # What was started and mounted is ended and unmounted, also where the run is broken off.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(tempfile.mkdtemp(prefix="bitel-chaos-"))
    begun = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - begun:7.1f}  {line}", file=sys.stderr, flush=True)

    say(f"logs in {folder}")
    evidence = run(options, folder, say)
    violations = check(evidence)
    write_faults(evidence, folder / "faults.jsonl")
    for violation in violations:
        print(f"{violation.kind}: {violation.evidence}")
    print(summary(options, evidence, violations))
    if violations or keep:
        say(f"logs stay in {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if violations else 0


def _options() -> tuple[Options, bool]:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description="Place calls at a real service while faults are injected, and check the "
        "results against the log of the callee.",
    )
    parser.add_argument("--calls", type=int, default=500, help="calls to place (default 500)")
    parser.add_argument("--seed", type=int, default=1, help="of calls and faults (default 1)")
    parser.add_argument(
        "--faults",
        help="kinds of faults, separated by commas, or none; default: all that the database has "
        f"({', '.join(EVERYWHERE)}; SQLite: db-unwritable; PostgreSQL: db-kill)",
    )
    parser.add_argument("--database", choices=sorted(DATABASE_FAULTS), default="sqlite")
    parser.add_argument("--minutes", type=float, help="of placing calls and injecting faults")
    parser.add_argument("--gap", type=float, default=4.0, help="mean seconds between two faults")
    parser.add_argument("--longest", type=float, default=14.0, help="seconds of a fault, at most")
    parser.add_argument("--ring-timeout", type=float, default=5.0, help="of the dialer, in seconds")
    parser.add_argument(
        "--time-to-live", type=float, default=180.0, help="of each call, in seconds"
    )
    parser.add_argument(
        "--keep", action="store_true", help="keep the logs of a run without violations"
    )
    given = parser.parse_args()
    faults = (*EVERYWHERE, *DATABASE_FAULTS[given.database])
    if given.faults is not None:
        faults = tuple(name for name in given.faults.split(",") if name not in ("", "none"))
        unknown = set(faults) - {*EVERYWHERE, *sum(DATABASE_FAULTS.values(), ())}
        if unknown:
            parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    duration = given.minutes * 60 if given.minutes else max(10.0, given.calls * SECONDS_A_CALL)
    options = Options(
        calls=given.calls,
        seed=given.seed,
        faults=faults,
        database=given.database,
        duration=duration,
        gap=given.gap,
        longest=given.longest,
        time_to_live=given.time_to_live,
        terms=Terms(ring_timeout=given.ring_timeout),
    )
    return options, given.keep


if __name__ == "__main__":
    sys.exit(main())
