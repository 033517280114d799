"""A shell with settings of its own, and a service that answers what a test tells it to."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
import typer
import uvicorn

from bitel.api.server import config
from bitel.cli import main
from bitel.store.database import Database
from tests.cli.shell import Service, Shell
from tests.support.api_stage import Stage
from tests.support.clocks import FakeClock
from tests.support.waiting import wait_until


@pytest.fixture(scope="session")
def command() -> Callable[[], Any]:
    """All commands, put together once: a process does so at its start, and takes a while."""
    return typer.main.get_command(main.app)


@pytest.fixture(autouse=True)
def put_together(command: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main, "app", command)


@pytest.fixture
def shell(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    sqlite_template: Path,
) -> Shell:
    for name in [name for name in os.environ if name.startswith("BITEL_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "argv", [])
    monkeypatch.chdir(tmp_path)
    made = Shell(tmp_path, capsys)
    made.data_dir.mkdir(mode=0o700)
    # Only the first command of a new service has to make its database.
    shutil.copy(sqlite_template, made.data_dir / "bitel.db")
    return made


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, shell: Shell) -> Iterator[Service]:
    made = Service()
    threading.Thread(target=made.server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("BITEL_URL", made.url)
    monkeypatch.setenv("BITEL_TOKEN", "T")
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def live(
    monkeypatch: pytest.MonkeyPatch,
    shell: Shell,
    sqlite_database: Database,
    clock: FakeClock,
    tmp_path: Path,
) -> Iterator[Stage]:
    """The real API on a socket, at BITEL_URL; nothing dials its calls."""
    stage = Stage.make(sqlite_database, clock, tmp_path / "service")
    with structlog.testing.capture_logs(), socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(config(stage.app, stage.parts.settings.http))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        wait_until(lambda: server.started)
        monkeypatch.setenv("BITEL_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.setenv("BITEL_TOKEN", stage.token)
        yield stage
        server.should_exit = True
        thread.join(20)
