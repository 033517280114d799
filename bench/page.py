"""Generates docs/performance.md from results of `python -m bench`: `python -m bench.page [FILE]`.

All figures come from that file; the text is in `performance.md.in`. The plots are written beside
the page, one for each pair of axes.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from string import Template
from typing import Any

from bench import plot
from bench.report import Machine, Row, Series, cells, from_json

DOCS = Path(__file__).parents[1] / "docs"
TEMPLATE = Path(__file__).with_name("performance.md.in")
COLUMNS = ("", "figure", "unit", "peer", "ratio", "bar")


def main() -> None:
    """Writes the page and its plots."""
    parser = argparse.ArgumentParser(prog="python -m bench.page", description=__doc__)
    parser.add_argument("results", nargs="?", type=Path, default=Path("bench-results.json"))
    parser.add_argument("--docs", type=Path, default=DOCS, metavar="FOLDER")
    given = parser.parse_args()
    write(json.loads(given.results.read_text()), given.docs)


def write(written: dict[str, Any], docs: Path) -> None:
    """Writes the page and its plots into a folder."""
    docs.mkdir(parents=True, exist_ok=True)
    (docs / "performance.md").write_text(render(written))
    for name, series in plots(written).items():
        (docs / name).write_text(plot.svg(series))


def render(written: dict[str, Any]) -> str:
    """Returns the page."""
    machine = Machine(**written["machine"])
    shown = [f"![{series[0].y}]({name})" for name, series in plots(written).items()]
    return Template(TEMPLATE.read_text()).substitute(
        machine=(
            f"{machine.cores} cores of {machine.cpu}, {machine.memory_gb:.0f} GB, "
            f"{machine.kernel}, {machine.python}, {machine.date}"
        ),
        bars="\n".join(_bars(written)),
        results="\n\n".join(_result(one) for one in written["results"]),
        not_measured="\n".join(
            f"- `bench.{bench}` was not measured: {problem}"
            for bench, problem in written["not_measured"].items()
        ),
        plots="\n\n".join(shown),
    )


def plots(written: dict[str, Any]) -> dict[str, list[Series]]:
    """Groups the series of each plot by file name; those with one point are omitted."""
    found: dict[str, list[Series]] = {}
    for one in written["results"]:
        for series in from_json(one).series:
            if len(series.points) > 1:
                found.setdefault(_file_name(series), []).append(series)
    return found


def _file_name(series: Series) -> str:
    words = re.findall(r"[a-z]+", f"{series.y} {series.x}".lower())
    return f"performance-{'-'.join(words)}.svg"


def _bars(written: dict[str, Any]) -> list[str]:
    """All rows with a target; if a name repeats, with the arguments of the bench."""
    rows = [(one, row) for one in written["results"] for row in from_json(one).rows if row.bar]
    of_name = Counter(row.name for _, row in rows)
    return [
        *_head(),
        *(
            _line(cells(row if of_name[row.name] == 1 else _named(one["command"], row)))
            for one, row in rows
        ),
    ]


def _named(command: str, row: Row) -> Row:
    arguments = command.partition("bench.")[2].partition(" ")[2]
    return replace(row, name=f"{arguments}: {row.name}")


def _result(one: dict[str, Any]) -> str:
    result = from_json(one)
    return "\n".join(
        [
            f"### {result.title}",
            "",
            f"`{one['command']}`, {one['seconds']:.0f} s",
            "",
            *_head(),
            *(_line(cells(row)) for row in result.rows),
            "",
            *(f"- {note}" for note in result.notes),
        ]
    ).rstrip()


def _head() -> list[str]:
    return [_line(COLUMNS), _line(("---", "---:", "---", "---:", "---:", "---:"))]


def _line(words: tuple[str, ...]) -> str:
    return "| " + " | ".join(word.replace("|", r"\|") for word in words) + " |"


if __name__ == "__main__":
    main()
