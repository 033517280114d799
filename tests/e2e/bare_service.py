"""The service as a process in a folder of its own, with settings of a few lines and no phone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.waiting import wait_until


def environment() -> dict[str, str]:
    """That of this process, without settings of the service."""
    return {name: value for name, value in os.environ.items() if not name.startswith("BITEL_")}


@contextmanager
def serving(
    folder: Path, settings: str, log: Path | None = None, umask: int = -1
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """`bitel serve` in that folder; its process and its log, by default `folder / "log"`."""
    (folder / "bitel.toml").write_text(settings)
    log = log or folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "bitel.cli", "serve"],
            cwd=folder,
            env=environment(),
            stdout=output,
            stderr=output,
            umask=umask,
        )
    try:
        yield process, log
    finally:
        process.kill()
        process.wait()


def logged(log: Path, says: str) -> str:
    """The log, once it has those words."""
    wait_until(lambda: says in log.read_text(), explain=log.read_text)
    return log.read_text()
