"""The page of figures says what was measured, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import page
from bench.report import Machine, Result, Row, Series, as_json, at_least, at_most, cells, from_json

RESULT = Result(
    "Packets",
    [
        Row("cost", 3.0, "µs", 2.0, "loop", at_most(1.6, "ratio")),
        Row("set-ups", 1500, "calls/s", bar=at_least(2000)),
        Row("no peer", 1.0, bar=at_most(1.0, "ratio")),
    ],
    ("the machine was full",),
    [Series("ours", "streams", "CPU, µs", ((100.0, 7.0), (10_000.0, 2.0)))],
)


def test_a_row_says_whether_its_bar_is_reached() -> None:
    assert [row.reached for row in RESULT.rows] == [True, False, None]
    assert cells(RESULT.rows[0]) == ("cost", "3", "µs", "2 loop", "1.50 x", "≤ 1.60 x ✓")
    assert cells(RESULT.rows[1])[-1] == "≥ 2,000 ✗"


def test_what_is_written_can_be_read() -> None:
    written = as_json("bench.packets", Machine.here(), RESULT, 1.0)
    assert from_json(json.loads(json.dumps(written))) == RESULT


def test_the_page_has_every_figure_and_a_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "--seconds", "3", "--json", "out.json"])
    machine = Machine.here()
    result = as_json("bench.packets", machine, RESULT, 12.0)
    assert result["command"] == "python -m bench.packets --seconds 3"
    page.write(
        {
            "machine": result["machine"],
            "results": [result],
            "not_measured": {"asterisk": "there is none"},
        },
        tmp_path,
    )
    text = (tmp_path / "performance.md").read_text()
    for words in ("| cost | 3 | µs | 2 loop | 1.50 x | ≤ 1.60 x ✓ |", machine.cpu, "there is none"):
        assert words in text
    (plot,) = tmp_path.glob("*.svg")
    assert plot.name in text
    ElementTree.parse(plot)
