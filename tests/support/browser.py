"""A headless Chromium that runs scripts in pages, by the DevTools protocol over a pipe."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TIMEOUT = 60.0
"""Seconds that a script may take."""


class Page:
    """A page of the browser."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands = commands
        self._answers = os.fdopen(answers, "rb", buffering=0)
        self._sent = 0
        self._left = b""
        self._session = ""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self._call("Page.enable")

    def open(self, url: str) -> None:
        """Load a page, so that scripts run in its origin."""
        found = self._call("Page.navigate", url=url)
        assert not found.get("errorText"), found
        while self._read().get("method") != "Page.loadEventFired":
            pass

    def run(self, script: str) -> Any:
        """The result of a JavaScript expression, awaited if it is a promise."""
        found = self._call(
            "Runtime.evaluate",
            expression=script,
            awaitPromise=True,
            returnByValue=True,
            timeout=TIMEOUT * 1000,
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def close(self) -> None:
        self._answers.close()

    def _call(self, method: str, **parameters: Any) -> Any:
        self._sent += 1
        command = {"id": self._sent, "method": method, "params": parameters}
        if self._session:
            command["sessionId"] = self._session
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while (answer := self._read()).get("id") != self._sent:
            pass
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def _read(self) -> Any:
        while b"\0" not in self._left:
            more = self._answers.read(1 << 16)
            assert more, "the browser has ended"
            self._left += more
        message, _, self._left = self._left.partition(b"\0")
        return json.loads(message)


@contextmanager
def browser() -> Iterator[Page]:
    """A page of a browser without a profile."""
    program = shutil.which("chromium")
    assert program, "the browser is missing: install Debian's chromium"
    # Of its own, since Chromium goes on to write into it while pytest removes old folders.
    folder = Path(tempfile.mkdtemp(prefix="bitel-browser-"))
    commands_in, commands = os.pipe()
    answers, answers_out = os.pipe()
    options = (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--disable-background-networking", "--no-first-run", f"--user-data-dir={folder}",
        "--remote-debugging-pipe",
    )  # fmt: skip
    with (folder / "log").open("wb") as log:
        # The protocol's descriptors are 3 and 4. Not sh: dash knows descriptors of one digit only.
        process = subprocess.Popen(
            ["bash", "-c", f'exec "$0" "$@" 3<&{commands_in} 4>&{answers_out}', program, *options],
            pass_fds=(commands_in, answers_out),
            stdout=log,
            stderr=log,
        )
    os.close(commands_in)
    os.close(answers_out)
    try:
        page = Page(commands, answers)
        yield page
        page.close()
    finally:
        os.close(commands)
        process.terminate()
        process.wait(20)
        shutil.rmtree(folder, ignore_errors=True)
