"""A small run with faults, as a part of every test run; `make soak` makes the long ones."""

from __future__ import annotations

from pathlib import Path

from tests.chaos.checks import check
from tests.chaos.evidence import Terms
from tests.chaos.run import Options, run

SMALL = Options(
    calls=60,
    seed=4,
    faults=("kill", "stop", "sender-kill", "callee-refuse", "db-freeze"),
    duration=8.0,
    gap=1.5,
    longest=3.0,
    time_to_live=42.0,
    terms=Terms(ring_timeout=2.5, drain_timeout=5.0),
)


def test_sixty_calls_with_faults_break_no_rule(tmp_path: Path) -> None:
    said: list[str] = []
    evidence = run(SMALL, tmp_path, said.append)
    assert len(evidence.placed) == SMALL.calls
    assert evidence.faults, "no fault was injected, so nothing was shown"
    assert check(evidence) == []
