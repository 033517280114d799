"""The unit for systemd: accepted by systemd, closed off, with times that agree with the code."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from bitel.service.shutdown import SHUTDOWN_MARGIN
from bitel.settings import Settings
from tests.support.prerequisites import need

UNIT = Path(__file__).parent.parent.parent / "deploy" / "bitel.service"
MOST_EXPOSED = 3.0


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    need(shutil.which("systemd-analyze") is not None, "systemd-analyze is missing: install systemd")
    command = ["systemd-analyze", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def test_systemd_accepts_it(tmp_path: Path) -> None:
    # The path of an installation; here any program will do.
    text = UNIT.read_text().replace("/opt/bitel/.venv/bin/bitel", "/bin/true")
    assert "/bin/true" in text
    copy = tmp_path / "bitel.service"
    copy.write_text(text)
    done = analyze("verify", str(copy))
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_it_is_closed_off() -> None:
    done = analyze("security", "--offline=true", str(UNIT))
    level = re.search(r"Overall exposure level for bitel.service: ([0-9.]+)", done.stdout)
    assert level is not None, done.stderr
    assert float(level[1]) < MOST_EXPOSED


def test_it_waits_for_the_drain() -> None:
    wait = re.search(r"^TimeoutStopSec=(\d+)$", UNIT.read_text(), re.MULTILINE)
    assert wait is not None
    drain = Settings.model_fields["drain_timeout"].default
    assert int(wait[1]) >= drain + SHUTDOWN_MARGIN
    assert f"({drain:g} s) + {SHUTDOWN_MARGIN:g} s" in UNIT.read_text()
