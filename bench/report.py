"""The report of a bench: a table, and the same as JSON.

A bench is `python -m bench.NAME [ITS OPTIONS] [--json FILE]`. Its module has a function that
measures and returns a `Result`, and ends in

    if __name__ == "__main__":
        report.main("NAME", __doc__, measure, add_arguments)

Progress goes to stderr, only the table to stdout. A bench takes less than 3 minutes. A missed
target is marked in the table; the bench still exits with 0.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NoReturn

from rich.console import Console
from rich.table import Table

from bench.processes import stolen_seconds

WIDTH = 120  # columns of the table
TELLING = 0.005  # share of steal time from which there is a note
MISSING = 3  # exit status if a peer is not installed

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Bar:
    """Target of a figure, or of its ratio to a peer: at most or at least `limit`."""

    kind: Literal["at most", "at least"]
    limit: float
    of: Literal["value", "ratio"] = "value"

    def __str__(self) -> str:
        sign = "≤" if self.kind == "at most" else "≥"
        return f"{sign} {number(self.limit)}" + (" x" if self.of == "ratio" else "")


def at_most(limit: float, of: Literal["value", "ratio"] = "value") -> Bar:
    """An upper limit."""
    return Bar("at most", limit, of)


def at_least(limit: float, of: Literal["value", "ratio"] = "value") -> Bar:
    """A lower limit."""
    return Bar("at least", limit, of)


@dataclass(frozen=True, slots=True)
class Row:
    """A figure. `peer` is that of `peer_name` in the same run and unit."""

    name: str
    value: float
    unit: str = ""
    peer: float | None = None
    peer_name: str = ""
    bar: Bar | None = None

    @property
    def ratio(self) -> float | None:
        """Ratio of our figure to the peer's."""
        return self.value / self.peer if self.peer else None

    @property
    def reached(self) -> bool | None:
        """Whether the target is met; None without a target or a peer."""
        figure = self.ratio if self.bar and self.bar.of == "ratio" else self.value
        if self.bar is None or figure is None:
            return None
        return figure <= self.bar.limit if self.bar.kind == "at most" else figure >= self.bar.limit


@dataclass(frozen=True, slots=True)
class Series:
    """Points of a plot. The names of the axes include units."""

    name: str
    x: str
    y: str
    points: Points


@dataclass(frozen=True, slots=True)
class Result:
    """Results of a bench. `notes` are sentences about the figures."""

    title: str
    rows: Sequence[Row]
    notes: Sequence[str] = ()
    series: Sequence[Series] = ()


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine and time of a run."""

    cpu: str
    cores: int
    memory_gb: float
    kernel: str
    python: str
    date: str
    load: float = field(default=0.0)  # average of the minute before

    @classmethod
    def here(cls) -> Machine:
        """Describes this machine."""
        pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
        return cls(
            _cpu_model(),
            os.cpu_count() or 1,
            round(pages * size / 2**30, 1),
            f"{platform.system()} {platform.release()}",
            f"{platform.python_implementation()} {platform.python_version()}",
            datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            round(os.getloadavg()[0], 2),
        )


def main(
    bench: str,
    doc: str | None,
    measure: Callable[[argparse.Namespace], Result],
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
) -> None:
    """Runs the command line of a bench: its options and `--json FILE`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m bench.{bench}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures too")
    given = parser.parse_args()
    machine = Machine.here()
    began, stolen = time.monotonic(), stolen_seconds()
    result = measure(given)
    seconds = time.monotonic() - began
    stolen = (stolen_seconds() - stolen) / seconds / machine.cores
    if stolen >= TELLING:
        note = f"The host kept {stolen:.0%} of the cores' time for other machines of its own."
        result = replace(result, notes=(*result.notes, note))
    written = as_json(f"bench.{bench}", machine, result, seconds)
    Console(width=WIDTH).print(as_table(result))
    for note in result.notes:
        print(note)
    if given.json:
        write_json(given.json, written)


def missing(sentence: str) -> NoReturn:
    """Ends the bench because a peer is missing. `sentence` says which, and how to install it."""
    say(sentence)
    raise SystemExit(MISSING)


def say(text: str) -> None:
    """Prints a line of progress to stderr."""
    print(text, file=sys.stderr, flush=True)


def as_table(result: Result) -> Table:
    """Returns the results as a table."""
    table = Table(title=result.title)
    for column in ("", "figure", "unit", "peer", "ratio", "bar"):
        table.add_column(column, justify="left" if column in ("", "unit") else "right")
    for row in result.rows:
        table.add_row(*cells(row))
    return table


def cells(row: Row) -> tuple[str, ...]:
    """Returns the cells of a row: name, figure, unit, peer, ratio, target and whether it is met."""
    peer = "" if row.peer is None else f"{number(row.peer)} {row.peer_name}".strip()
    ratio = "" if row.ratio is None else f"{number(row.ratio)} x"
    bar = "" if row.bar is None else str(row.bar)
    if row.reached is not None:
        bar += " ✓" if row.reached else " ✗"
    return row.name, number(row.value), row.unit, peer, ratio, bar


def number(value: float) -> str:
    """Formats with three significant digits and thousands separators; ∞ if out of range."""
    if math.isinf(value):
        return "∞"
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{digits}f}" if abs(value) >= 0.01 else f"{value:.2g}"


def as_json(bench: str, machine: Machine, result: Result, seconds: float) -> dict[str, Any]:
    """Returns the content of `--json`."""
    return {
        "bench": bench,
        "command": shlex.join(["python", "-m", bench, *_without_json(sys.argv[1:])]),
        "seconds": round(seconds, 1),
        "machine": asdict(machine),
        "title": result.title,
        "rows": [asdict(row) | {"ratio": row.ratio, "reached": row.reached} for row in result.rows],
        "notes": list(result.notes),
        "series": [asdict(series) for series in result.series],
    }


def from_json(written: dict[str, Any]) -> Result:
    """Inverse of `as_json`."""
    rows = [
        Row(
            row["name"],
            row["value"],
            row["unit"],
            row["peer"],
            row["peer_name"],
            Bar(**row["bar"]) if row["bar"] else None,
        )
        for row in written["rows"]
    ]
    series = [
        Series(one["name"], one["x"], one["y"], tuple((x, y) for x, y in one["points"]))
        for one in written["series"]
    ]
    return Result(written["title"], rows, tuple(written["notes"]), series)


def write_json(path: Path, written: dict[str, Any]) -> None:
    """Writes the JSON file; makes its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n")


def _without_json(arguments: Sequence[str]) -> list[str]:
    kept = [word for word in arguments if not word.startswith("--json=")]
    if "--json" in kept:
        at = kept.index("--json")
        del kept[at : at + 2]
    return kept


def _cpu_model() -> str:
    """CPU model from /proc/cpuinfo, else from Python."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
