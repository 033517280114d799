"""The scenarios themselves: each is run by a test, and each says what its name promises."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.peers.sipp import SCENARIOS

TESTS = "\n".join(path.read_text() for path in SCENARIOS.parent.glob("test_*.py"))
NAMED = re.compile(r"rfc(?P<rfc>\d+)_(?P<section>[0-9.]+)_[\w.]+\Z")


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.xml")), ids=lambda path: path.stem)
def test_a_scenario_is_run_and_says_what_it_checks(path: Path) -> None:
    name = path.stem
    text = path.read_text()
    ET.fromstring(text)
    assert f'"{name}"' in TESTS, "no test runs it"
    comment = " ".join(text.partition("<!--")[2].partition("-->")[0].split())
    assert comment, "it does not say what it is for"
    if named := NAMED.match(name):
        assert f"RFC {named['rfc']} §" in comment
        assert named["section"] in comment
