"""Runs all benches: `python -m bench [NAME…] [--json FILE] [--docs FOLDER]`.

Prints one table and writes `bench-results.json`. NAMEs select the benches of these modules.
`--docs docs` also writes docs/performance.md (see `bench.page`).
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import page
from bench.report import MISSING, WIDTH, Machine, cells, from_json, say, write_json

BENCHES = (
    "streams",
    "calls burst",
    "calls held",
    "calls long",
    "asterisk",
    "otp_wait",
    "api",
    "database",
    "loss",
)
"""Each with its arguments; modes of one module are benches of their own."""

PATIENCE = 240.0  # seconds; a bench should take less than 180


def main() -> int:
    """Returns 1 if a bench failed; a missed target or a missing peer is no failure."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("names", nargs="*", help="only the benches of these modules")
    parser.add_argument("--json", type=Path, default=Path("bench-results.json"), metavar="FILE")
    parser.add_argument("--docs", type=Path, metavar="FOLDER", help="write the docs' page too")
    given = parser.parse_args()
    chosen = [bench for bench in BENCHES if not given.names or bench.split()[0] in given.names]
    if not chosen:
        parser.error(f"no such bench; there are {', '.join(BENCHES)}")
    machine = Machine.here()
    results: list[dict[str, Any]] = []
    missing: dict[str, str] = {}
    failed = False
    for bench in chosen:
        say(f"== bench.{bench}")
        began = time.monotonic()
        result, problem, is_missing = run(bench)
        say(f"   {time.monotonic() - began:.0f} s")
        if result is None:
            say(f"   {problem}")
            missing[bench] = problem
            failed = failed or not is_missing
        else:
            results.append(result)
    written = {"machine": asdict(machine), "results": results, "not_measured": missing}
    write_json(given.json, written)
    if given.docs:
        page.write(written, given.docs)
    Console(width=WIDTH).print(as_table(written))
    return int(failed)


def run(bench: str) -> tuple[dict[str, Any] | None, str, bool]:
    """Runs one bench; returns its result, or the error and whether a peer was missing."""
    name, *arguments = bench.split()
    with tempfile.TemporaryDirectory(prefix="bitel-bench-") as folder:
        file = Path(folder) / "result.json"
        command = [sys.executable, "-m", f"bench.{name}", *arguments, "--json", str(file)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            _, said = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            # SIGINT, so that it ends its child processes.
            process.send_signal(signal.SIGINT)
            process.communicate()
            return None, f"took more than {PATIENCE:.0f} s", False
        if process.returncode or not file.exists():
            last = said.decode(errors="replace").strip().splitlines()[-1:]
            return None, "".join(last) or "failed", process.returncode == MISSING
        written: dict[str, Any] = json.loads(file.read_text())
        return written, "", False


def as_table(written: dict[str, Any]) -> Table:
    """Returns the figures of all benches as one table."""
    machine = Machine(**written["machine"])
    table = Table(title=f"bitel on {machine.cores} cores of {machine.cpu}, {machine.date}")
    for column in ("", "figure", "unit", "peer", "ratio", "bar"):
        table.add_column(column, justify="left" if column in ("", "unit") else "right")
    for one in written["results"]:
        result = from_json(one)
        table.add_section()
        table.add_row(f"[bold]{one['bench']}[/]: {result.title}")
        for row in result.rows:
            table.add_row(*cells(row))
    for bench, problem in written["not_measured"].items():
        table.add_section()
        table.add_row(f"[bold]bench.{bench}[/]: not measured: {problem}")
    return table


if __name__ == "__main__":
    sys.exit(main())
