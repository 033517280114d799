"""`scripts/setup` takes the interpreter that is named, or says why it can't."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_setup(folder: Path, python: str) -> str:
    """The message with which it fails in a checkout without anything else."""
    (folder / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "setup", folder / "scripts" / "setup")
    done = subprocess.run(
        ["scripts/setup", "run"],
        cwd=folder,
        env={**os.environ, "PYTHON": python},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    assert not (folder / ".venv" / ".bitel-run").exists()
    return done.stderr


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("content", [None, "exit 127", "exit 1"])
def test_no_other_interpreter_is_taken_for_the_one_that_is_named(
    tmp_path: Path, content: str | None
) -> None:
    """It is missing, a launcher without that version, or too old."""
    named = tmp_path / "bin" / "python3.99"
    if content is not None:
        program(named, content)
    message = run_setup(tmp_path, str(named))
    assert message.startswith(f"bitel: PYTHON={named} is not Python 3.11 or newer")
    assert not (tmp_path / ".venv").exists()


def test_an_environment_of_another_version_is_not_used(tmp_path: Path) -> None:
    program(tmp_path / ".venv" / "bin" / "pip", "exit 0")
    program(tmp_path / ".venv" / "bin" / "python", "echo 3.99")
    message = run_setup(tmp_path, sys.executable)
    assert message == (
        f"bitel: .venv is of Python 3.99, not of PYTHON={sys.executable}: "
        "`make clean`, then try again\n"
    )
