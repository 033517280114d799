"""What holds for the tree as a whole: who imports whom, what is documented."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from scripts import interop_docs
from scripts.settings_docs import PAGE, render

ROOT = Path(__file__).parent.parent.parent


def test_every_room_imports_only_what_it_may() -> None:
    found = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stdout


def test_the_page_of_settings_is_the_settings() -> None:
    assert PAGE.read_text() == render(), "run: python -m scripts.settings_docs"


def test_the_page_of_interoperability_lists_the_cases_of_the_tests() -> None:
    listed = interop_docs.cases_of(interop_docs.PAGE.read_text())
    assert sorted(listed) == interop_docs.collect(), "run: make peers"
