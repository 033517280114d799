"""docs/sip-states.md says what the transaction tables say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from bitel.sip.transaction_tables import (
    INVITE_CLIENT,
    INVITE_SERVER,
    NON_INVITE_CLIENT,
    NON_INVITE_SERVER,
)

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "draw-states"
PAGE = ROOT / "docs" / "sip-states.md"


def draw(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=False
    )


def test_the_page_is_true() -> None:
    done = draw("--check")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_page_that_is_not_is_named(tmp_path: Path) -> None:
    page = tmp_path / "states.md"
    assert draw("--check", str(page)).returncode == 1
    assert draw(str(page)).returncode == 0
    assert draw("--check", str(page)).returncode == 0
    page.write_text(page.read_text().replace("timer B", "timer C", 1))
    done = draw("--check", str(page))
    assert done.returncode == 1
    assert str(page) in done.stderr


def test_every_arrow_of_the_tables_is_drawn() -> None:
    text = PAGE.read_text()
    for table in (INVITE_CLIENT, NON_INVITE_CLIENT, INVITE_SERVER, NON_INVITE_SERVER):
        for (state, _), (after, _) in table.items():
            assert f"    {state.value} --> {after.value} : " in text
