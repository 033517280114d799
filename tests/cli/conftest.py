"""A shell to run commands in, and a service that answers what a test tells it to."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer

from bitel.cli import main
from bitel.store.database import Database


class Shell:
    """Runs `bitel` with a settings file of its own."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.data_dir = folder / "data"
        self.config = folder / "settings.toml"
        self.config.write_text(f'data_dir = "{self.data_dir}"\n')
        self._capsys = capsys

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """The exit status, and what went to stdout and stderr."""
        self._capsys.readouterr()
        sys.argv = ["bitel", *arguments]
        umask = os.umask(0o022)  # the command sets it for its process, which is this one here
        try:
            main.main()
            status: Any = 0
        except SystemExit as stop:
            status = stop.code or 0
        finally:
            os.umask(umask)
        out, err = self._capsys.readouterr()
        return status, out, err

    def admin(self, *arguments: str) -> str:
        """What a command that must succeed prints, in the one line that it prints."""
        status, out, err = self.run(*arguments, "--config", str(self.config))
        assert status == 0, err
        return out.strip()

    def look(self, work: Callable[[Any], Any]) -> Any:
        with Database.open(f"sqlite:///{self.data_dir / 'bitel.db'}") as database:
            return database.read_now(work)


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


class Service:
    """Answers what it is told to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, list[tuple[int, Any]]] = {}
        self.asked: list[tuple[str, str, str, bytes]] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do(self) -> None:
                body = self.read()
                key = f"{self.command} {self.path}"
                token = self.headers["Authorization"]
                service.asked.append((self.command, self.path, token, body))
                left = service.answers[key]
                status, result = left.pop(0) if len(left) > 1 else left[0]
                content = result if isinstance(result, bytes) else json.dumps(result).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def read(self) -> bytes:
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))

            do_GET = do_POST = do_DELETE = do

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def on(self, key: str, *results: Any) -> None:
        self.answers[key] = [(200, {"result": result, "error": None}) for result in results]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, shell: Shell) -> Iterator[Service]:
    made = Service()
    threading.Thread(target=made.server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("BITEL_URL", made.url)
    monkeypatch.setenv("BITEL_TOKEN", "T")
    yield made
    made.server.shutdown()
    made.server.server_close()
