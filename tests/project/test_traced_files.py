"""How many files of ours one call runs through, traced in a real service."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

MOST = {"place": 24, "claim": 12, "settle": 16, "webhook": 13, "call": 60}
"""A part that needs more files than these has become harder to follow."""


def test_a_call_runs_through_few_files() -> None:
    traced = subprocess.run(
        [sys.executable, "-m", "scripts.trace_request"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = dict(re.findall(r"^(\w+): (\d+) files$", traced.stdout, re.MULTILINE))
    assert found.keys() == MOST.keys(), traced.stdout
    too_many = {part: count for part, count in found.items() if int(count) > MOST[part]}
    assert not too_many, traced.stdout
