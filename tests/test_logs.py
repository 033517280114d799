"""Logs: what they hold, and that they never break what they tell of."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.small_disk import empty, fill, small_disk

SCRIPT = """
import sys, logging, structlog
from bitel import logs
logs.configure("info", json=False)
log = structlog.get_logger("x")
for line in sys.stdin:
    log.warning(line.strip(), of="structlog")
    logging.getLogger("y").error(line.strip())
    print("went on", flush=True)
"""


@pytest.mark.parametrize("closed", [False, True], ids=["full disk", "closed pipe"])
def test_a_log_that_can_not_be_written_ends_nothing(tmp_path: Path, closed: bool) -> None:
    with small_disk(tmp_path / "disk") as disk:
        path = disk / "serve.log"
        read_end, write_end = os.pipe()
        target = write_end if closed else os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=target,
            text=True,
            bufsize=1,
        )
        os.close(target)
        assert process.stdin is not None
        assert process.stdout is not None

        def say(words: str) -> None:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(words + "\n")
            assert process.stdout.readline() == "went on\n"

        say("first")
        os.close(read_end)
        fill(disk)
        for _ in range(100):
            say("lost" * 50)
        if not closed:
            empty(disk)
            say("last")
            fill(disk)
        process.stdin.close()
        assert process.wait(20) == 0
        process.stdout.close()
        if not closed:
            written = path.read_text()
            assert written.count("first") == 2
            assert written.count("last") == 2
