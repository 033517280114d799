"""A service and a phone as processes of their own, in one folder, on free loopback ports.

Used by the demo, and by tests and benchmarks that kill and restart a real service.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx

from bitel.errors import BitelError

START_PATIENCE = 30.0
"""Seconds that a process may take until it answers."""


class StageError(BitelError):
    """A process of the stage did not start, or did not stop."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The loopback ports that a stage uses."""

    http: int
    sip: int
    phone: int


def free_port() -> int:
    """A loopback port that was free a moment ago, for TCP and for UDP.

    It is below the ports that Linux gives to sockets without one of their own, which could take it
    before the process that it is meant for binds it, or while that process is restarted.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                probe = stack.enter_context(socket.socket(socket.AF_INET, kind))
                probe.bind(("127.0.0.1", port))
            return port


def free_ports() -> Ports:
    """Ports that were free a moment ago, all different."""
    ports: set[int] = set()
    while len(ports) < 3:
        ports.add(free_port())
    return Ports(*ports)


WITHOUT_LIMITS = ("--rate", "settings", "--call-rate", "settings")
"""Options of a project whose calls come as fast as a test or a benchmark places them."""


@dataclass
class Stage:
    """The service and the phone. Use it as a context manager: it kills what still runs at the end.

    `dialer` holds settings of the one dialer and `extra` is TOML put before its section.
    """

    folder: Path
    rules: Sequence[str] = ()
    dialer: Mapping[str, Any] = field(default_factory=dict)
    extra: str = ""
    log_level: str = "debug"
    record: bool = True
    ports: Ports = field(default_factory=free_ports)
    trunk: str = ""
    """The dialer's trunk; empty: the phone itself."""
    phone_options: Sequence[str] = ()
    data_dir: Path | None = None
    """Where the service keeps its data; None: in the folder."""
    service: subprocess.Popen[bytes] | None = None
    phone: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.config.write_text(self._settings())
        return self

    def __exit__(self, *exception: object) -> None:
        for process in (self.service, self.phone):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()

    @property
    def config(self) -> Path:
        """The settings file."""
        return self.folder / "bitel.toml"

    @property
    def heard(self) -> Path:
        """The folder of what the phone recorded."""
        return self.folder / "heard"

    @property
    def phone_log(self) -> Path:
        """What the phone saw, a JSON object a line."""
        return self.folder / "phone.jsonl"

    @property
    def service_log(self) -> Path:
        """What the service logged, over all its starts."""
        return self.folder / "serve.log"

    @property
    def url(self) -> str:
        """Where the service answers HTTP."""
        return f"http://127.0.0.1:{self.ports.http}"

    def start_phone(self) -> None:
        """Start the phone and wait until it listens."""
        options = [f"--rule={rule}" for rule in self.rules]
        options += [f"--log={self.phone_log}", *self.phone_options]
        if self.record:
            options.append(f"--record={self.heard}")
        listen = f"--listen=127.0.0.1:{self.ports.phone}"
        log = self.folder / "phone.log"
        before = log.stat().st_size if log.exists() else 0
        self.phone = self._start("phone", listen, *options)
        self._wait_until(
            "the phone listens", self.phone, lambda: b"phone ready" in log.read_bytes()[before:]
        )

    def start_service(self, *options: str) -> None:
        """Start the service, with more options of `bitel serve`, and wait until it answers."""
        self.service = self._start("serve", f"--config={self.config}", *options)
        # One client for all tries: it prepares for TLS when it is made, which takes far longer
        # than asking does.
        with httpx.Client(base_url=self.url, timeout=2.0) as http:
            self._wait_until("the service answers", self.service, lambda: _answers(http))

    def stop_service(self, timeout: float = 60.0) -> int:
        """SIGTERM; the exit status once it has drained."""
        assert self.service is not None, "the service was not started"
        self.service.send_signal(signal.SIGTERM)
        return self.service.wait(timeout)

    def kill_service(self) -> None:
        """SIGKILL, as a crash or a power cut would."""
        assert self.service is not None, "the service was not started"
        self.service.kill()
        self.service.wait()

    def command(self, *arguments: str) -> str:
        """What `bitel ARGUMENTS --config …` prints, without its newline."""
        done = subprocess.run(
            [sys.executable, "-m", "bitel.cli", *arguments, f"--config={self.config}"],
            capture_output=True,
            text=True,
            timeout=START_PATIENCE,
            check=False,
            env=_environment(),
        )
        if done.returncode:
            raise StageError(f"bitel {' '.join(arguments)} failed: {done.stderr.strip()}")
        return done.stdout.strip()

    def token(self, name: str = "demo") -> str:
        """A token of a new project."""
        project = self.command("project", "create", name, *WITHOUT_LIMITS)
        return self.command("token", "create", project)

    def client(self, token: str) -> httpx.Client:
        """An HTTP client of the service, with a token."""
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30.0)

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.folder / f"{arguments[0]}.log").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "bitel.cli", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=_environment(),
                cwd=self.folder,
            )

    def _wait_until(
        self, what: str, process: subprocess.Popen[bytes], ready: Callable[[], bool]
    ) -> None:
        end = time.monotonic() + START_PATIENCE
        while not ready():
            if process.poll() is not None or time.monotonic() > end:
                raise StageError(f"{what} not, after all; see the logs in {self.folder}")
            time.sleep(0.02)  # polls another process

    def _settings(self) -> str:
        ports = self.ports
        dialer: dict[str, Any] = {
            "id": "main",
            "trunks": [self.trunk or f"sip:127.0.0.1:{ports.phone}"],
            "bind": f"127.0.0.1:{ports.sip}",
            "caller_id": "02191000000",
            **self.dialer,
        }
        lines = [
            f'data_dir = "{self.data_dir or self.folder / "data"}"',
            f'log_level = "{self.log_level}"',
            self.extra,
            "[http]",
            f"port = {ports.http}",
            "[[dialers]]",
            # Texts, numbers, booleans and lists are written alike in TOML and in JSON.
            *(f"{key} = {json.dumps(value)}" for key, value in dialer.items()),
        ]
        return "\n".join(lines) + "\n"


def _answers(http: httpx.Client) -> bool:
    try:
        return http.get("/healthz").status_code == 200
    except httpx.HTTPError:
        return False


def _environment() -> dict[str, str]:
    # The stage's own file decides, not what the caller's shell happens to set.
    return {name: value for name, value in os.environ.items() if not name.startswith("BITEL_")}
