"""A shell to run commands in, and a service that answers what a test tells it to."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

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
