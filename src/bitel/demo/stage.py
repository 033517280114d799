"""`Stage`: a service and a phone as processes, in one folder, on free loopback ports.

Used by the demo, and by tests and benchmarks that need a real service.
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

START_TIMEOUT = 30.0
"""Seconds until a process must be ready."""


class StageError(BitelError):
    """A process of the stage did not start, or did not stop."""


@dataclass(frozen=True, slots=True)
class Ports:
    """The loopback ports that a stage uses."""

    http: int
    sip: int
    phone: int


def free_port() -> int:
    """Return a loopback port that is currently free for TCP and UDP.

    It is below Linux's ephemeral ports, so that other sockets do not get it before it is bound, or
    while its process restarts.
    """
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                probe = stack.enter_context(socket.socket(socket.AF_INET, kind))
                probe.bind(("127.0.0.1", port))
            return port


def free_ports() -> Ports:
    """Return different ports that are currently free."""
    ports: set[int] = set()
    while len(ports) < 3:
        ports.add(free_port())
    return Ports(*ports)


WITHOUT_LIMITS = ("--rate", "settings", "--call-rate", "settings")
"""Options of a project without rate limits."""


@dataclass
class Stage:
    """A service and a phone. As a context manager it kills both processes at the end.

    `dialer` has settings of the only dialer; `extra` is TOML that precedes its section.
    """

    folder: Path
    rules: Sequence[str] = ()
    dialer: Mapping[str, Any] = field(default_factory=dict)
    extra: str = ""
    log_level: str = "debug"
    record: bool = True
    ports: Ports = field(default_factory=free_ports)
    trunk: str = ""
    """The dialer's trunk; empty: the phone."""
    phone_options: Sequence[str] = ()
    data_dir: Path | None = None
    """The setting `data_dir`; None: in the folder."""
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
        """The folder of the phone's recordings."""
        return self.folder / "heard"

    @property
    def phone_log(self) -> Path:
        """The phone's log, one JSON object per line."""
        return self.folder / "phone.jsonl"

    @property
    def service_log(self) -> Path:
        """The service's log, of all its starts."""
        return self.folder / "serve.log"

    @property
    def url(self) -> str:
        """The base URL of the service."""
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
        """Start the service with options of `bitel serve`, and wait until it answers."""
        self.service = self._start("serve", f"--config={self.config}", *options)
        # One client for all attempts, as loading TLS takes much longer than a request.
        with httpx.Client(base_url=self.url, timeout=2.0) as http:
            self._wait_until("the service answers", self.service, lambda: _answers(http))

    def stop_service(self, timeout: float = 60.0) -> int:
        """Send SIGTERM and wait; returns the exit status."""
        assert self.service is not None, "the service was not started"
        self.service.send_signal(signal.SIGTERM)
        return self.service.wait(timeout)

    def kill_service(self) -> None:
        """Send SIGKILL, to simulate a crash."""
        assert self.service is not None, "the service was not started"
        self.service.kill()
        self.service.wait()

    def command(self, *arguments: str) -> str:
        """Run `bitel ARGUMENTS --config …`; returns its output. Raises StageError."""
        done = subprocess.run(
            [sys.executable, "-m", "bitel.cli", *arguments, f"--config={self.config}"],
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT,
            check=False,
            env=_environment(),
        )
        if done.returncode:
            raise StageError(f"bitel {' '.join(arguments)} failed: {done.stderr.strip()}")
        return done.stdout.strip()

    def token(self, name: str = "demo") -> str:
        """Create a project; returns a token of it."""
        project = self.command("project", "create", name, *WITHOUT_LIMITS)
        return self.command("token", "create", project)

    def client(self, token: str) -> httpx.Client:
        """Return an HTTP client of the service with a token."""
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
        end = time.monotonic() + START_TIMEOUT
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
            # Strings, numbers, booleans and lists have the same syntax in TOML and JSON.
            *(f"{key} = {json.dumps(value)}" for key, value in dialer.items()),
        ]
        return "\n".join(lines) + "\n"


def _answers(http: httpx.Client) -> bool:
    try:
        return http.get("/healthz").status_code == 200
    except httpx.HTTPError:
        return False


def _environment() -> dict[str, str]:
    # Variables of the caller's shell must not override the stage's settings.
    return {name: value for name, value in os.environ.items() if not name.startswith("BITEL_")}
