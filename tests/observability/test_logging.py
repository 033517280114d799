"""Logs: what they hold, and that they never break what they tell of."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from bitel.observability import logging as logs
from tests.support.small_disk import empty, fill, small_disk

SCRIPT = """
import sys, logging, structlog
from bitel.observability import logging as logs
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


JSON_SCRIPT = """
import logging, sys, threading, warnings
from bitel.observability import logging as logs
logs.configure("info", json=True)
logging.getLogger("library").error("two\\nlines %s", "of text", exc_info=ValueError("why"))
warnings.warn("a warning")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
class Broken:
    def __del__(self):
        raise KeyError("gone")
Broken()
raise RuntimeError("the end")
"""


def test_everything_is_json_where_json_is_asked_for() -> None:
    done = subprocess.run(
        [sys.executable, "-c", JSON_SCRIPT], capture_output=True, text=True, check=False
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["level"] for line in lines] == ["error", "warning", "error", "error", "critical"]
    assert all(line["timestamp"].endswith("Z") for line in lines)
    first, warned, thread, ignored, end = lines
    assert (first["event"], first["logger"]) == ("two\nlines of text", "library")
    assert "ValueError: why" in first["exception"]
    assert "a warning" in warned["event"]
    assert "ZeroDivisionError" in thread["exception"]
    assert "KeyError" in ignored["exception"]
    assert "RuntimeError: the end" in end["exception"]
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("phoneNumbers[3]: 09121234567 is wrong", "phoneNumbers[3]: 0912*****67 is wrong"),
        ("+44 20 7946-0958, 1234", "+44 2*********58, 1234"),
        ("۰۹۱۲۱۲۳۴۵۶۷", "۰۹۱۲*****۶۷"),
        ("12345", "*****"),
        ("at most 1000 characters", "at most 1000 characters"),
    ],
)
def test_numbers_in_a_message_are_masked(text: str, shown: str) -> None:
    assert logs.without_numbers(text) == shown


def test_a_flood_of_records_is_cut_and_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr("bitel.observability.logging.time.monotonic", lambda: now)
    logs.configure("warning", json=False)
    try:
        for number in range(1000):
            logging.getLogger("uvicorn.error").warning("malformed %s", number)
        logging.getLogger("uvicorn.error").error("broken")
        logging.getLogger("another").warning("fine")
        now += 1
        logging.getLogger("uvicorn.error").warning("malformed again")
        written = capsys.readouterr().err
    finally:
        logging.basicConfig(handlers=[], force=True)
        logging.captureWarnings(False)
        structlog.reset_defaults()
    assert written.count("malformed") == logs.RECORD_BURST + 1
    assert "broken" in written
    assert "fine" in written
    assert "malformed again (800 lines before it were left out)" in written
