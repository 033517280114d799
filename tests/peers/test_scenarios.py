"""The scenarios themselves: each is run by a test, and each says what its name promises."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.peers.interop import scenario_case
from tests.peers.scenario_recorder import RECORD
from tests.peers.sipp import SCENARIOS

ROOT = Path(__file__).parent.parent.parent
NAMED = re.compile(r"rfc(?P<rfc>\d+)_(?P<section>[0-9.]+)_[\w.]+\Z")
PATHS = sorted(SCENARIOS.glob("*.xml"))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_scenario_says_what_it_checks(path: Path) -> None:
    ET.parse(path)
    case = scenario_case(path.stem)
    if named := NAMED.match(path.stem):
        assert f"RFC {named['rfc']} §" in case.rfc
        assert named["section"] in case.rfc


def test_each_scenario_is_run_by_a_test(tmp_path: Path) -> None:
    record = tmp_path / "scenarios"
    record.touch()
    users = [
        path
        for path in SCENARIOS.parent.glob("test_*.py")
        if path != Path(__file__) and "tests.peers.sipp" in path.read_text()
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.peers.scenario_recorder",
         "-p", "no:cacheprovider", *map(str, users)],
        cwd=ROOT,
        env={**os.environ, RECORD: str(record)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert set(record.read_text().split()) == {path.stem for path in PATHS}
