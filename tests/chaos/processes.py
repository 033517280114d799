"""Runs the service as a supervised process: restarts it when it ends, as systemd does."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from tests.chaos.evidence import Exit

RESTART_DELAY = 0.1
"""Seconds from an end to the next start: systemd's default."""


def children(process: int) -> list[int]:
    """The processes that a process has begun, and those of these."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                parents.setdefault(int(fields[1]), []).append(int(entry.name))
    found: list[int] = []
    waiting = [process]
    while waiting:
        below = parents.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def is_alive(process: int) -> bool:
    """Whether a process runs, and is not merely waited for by its parent."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def find_child(process: int, module: str) -> int | None:
    """A process begun by another that runs a module of Python, if there is one."""
    for child in children(process):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            if module.encode() in words:
                return child
    return None


def environment() -> dict[str, str]:
    """The environment without settings of the service: its file decides."""
    return {name: value for name, value in os.environ.items() if not name.startswith("BITEL_")}


class Service:
    """`bitel serve`, kept running until `stop`. Its ends and the lines of its log are kept."""

    def __init__(
        self,
        config: Path,
        drain_timeout: float,
        options: Sequence[str] = (),
        delay: Callable[[], float] = lambda: RESTART_DELAY,
        machine: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        """`options` are of `bitel serve`; `delay` gives the seconds until it is started again.

        `machine` is entered by the thread that starts it; see `Machine.entered`.
        """
        self.exits: list[Exit] = []
        self.log: list[str] = []
        self.pids: set[int] = set()
        """Of all processes that were started."""
        self._options = options
        self._delay = delay
        self._machine = machine
        self._config = config
        self._patience = drain_timeout + 40.0
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = threading.Event()
        self._ended = threading.Condition()
        self._asked: tuple[str, float] = ("", 0.0)
        self._is_over = False
        self._thread = threading.Thread(target=self._supervise, daemon=True)

    def start(self) -> None:
        """Begin to keep it running."""
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """The process that now runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    @property
    def is_ready(self) -> bool:
        """Whether the process that now runs has said that it is ready."""
        return self._ready.is_set() and self.pid is not None

    def wait_ready(self, timeout: float) -> bool:
        """Wait until it is ready; False if it is not in time."""
        return self._ready.wait(timeout)

    def kill(self) -> None:
        """SIGKILL, as a crash would; returns when the process is gone."""
        process = self._process
        if process is not None and process.poll() is None:
            self._asked = ("kill", time.monotonic())
            process.kill()
            process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the main process."""
        process = self.pid
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def terminate(self) -> None:
        """SIGTERM; returns when the process is gone. It is killed if it takes too long."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        self._asked = ("term", time.monotonic())
        process.terminate()
        try:
            process.wait(self._patience + 5.0)
        except subprocess.TimeoutExpired:
            self._asked = ("hung", self._asked[1])
            process.kill()
            process.wait()

    def stop(self) -> None:
        """SIGTERM, and no start after it."""
        self._is_over = True
        self.terminate()
        self._thread.join(10.0)

    def abandon(self) -> None:
        """SIGKILL, and no start after it: however a run ends, nothing of it stays."""
        self._is_over = True
        self.kill()

    def _supervise(self) -> None:
        while not self._is_over:
            self._ready.clear()
            self._asked = ("by itself", 0.0)
            process = self._process = self._begin()
            self.pids.add(process.pid)
            reader = threading.Thread(target=self._read_log, args=(process,), daemon=True)
            reader.start()
            status = process.wait()
            now = time.monotonic()
            why, since = self._asked
            self.exits.append(Exit(now, status, why, now - since if since else 0.0))
            if not self._is_over:
                time.sleep(self._delay())

    def _begin(self) -> subprocess.Popen[bytes]:
        command = (sys.executable, "-m", "bitel.cli", "serve", f"--config={self._config}")
        with self._machine():
            return subprocess.Popen(
                (*command, *self._options),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=environment(),
                cwd=self._config.parent,
            )

    def _read_log(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        with process.stderr as stream, self._config.with_name("serve.log").open("ab") as file:
            for line in stream:
                file.write(line)
                file.flush()
                text = line.decode("utf-8", "replace").rstrip()
                self.log.append(text)
                if "ready" in text.split() and process is self._process:
                    self._ready.set()


def wait_for(condition: Callable[[], bool], timeout: float, pause: float = 0.05) -> bool:
    """Wait until a condition holds; whether it did in time."""
    until = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > until:
            return False
        time.sleep(pause)
    return True
