"""What lets the database grow, with real ones, and the sentence that names the cause."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from bitel.maintenance import storage_pressure
from bitel.maintenance.storage_pressure import StoragePressure, warnings
from bitel.store import projects
from bitel.store.database import Database
from bitel.store.monitoring import StorageState, read_state

MIB = 1024 * 1024


async def test_a_reader_that_holds_sqlites_log_is_named(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_pressure, "LARGE_WAL", 2 * MIB)
    path = make_url(sqlite_url).database
    with Database.open(sqlite_url) as database:
        watch = StoragePressure(database, tmp_path, lambda: 0)
        await watch.look()
        assert watch.state.database > 0
        assert not list(watch.warnings)
        reader = sqlite3.connect(str(path), isolation_level=None)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM project").fetchone()
        name = 0
        while watch.state.wal < 2 * MIB:
            for _ in range(200):
                name += 1
                await database.write(lambda conn: projects.create(conn, f"p{name}", 1.0))  # noqa: B023
            await watch.look()
            assert name < 20_000
        [warning] = list(watch.warnings)
        assert warning.startswith("SQLite's write-ahead log has 2 MiB: another program")
        reader.close()


async def test_a_transaction_that_holds_postgresqls_rows_is_named(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_pressure, "OLD_SNAPSHOT", 0.2)
    with Database.open(postgres_url) as database:
        watch = StoragePressure(database, tmp_path, lambda: 0)
        with psycopg.connect(postgres_url) as other:
            other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            # Older than what is found to be old, by the server's own clock.
            row: Any = other.execute("SELECT pg_backend_pid(), pg_sleep(0.3)").fetchone()
            await watch.look()
            assert watch.state.oldest_pid == row[0]
            assert watch.state.oldest_transaction >= 0.3
            [warning] = watch.warnings
            assert f"(server process {row[0]})" in warning
        await watch.look()
        assert watch.warnings == ()
        assert watch.state.database > MIB


def test_every_cause_has_its_sentence() -> None:
    calm = StorageState(database=1, live_rows=5)
    assert warnings(calm, 2 * MIB, 1) == []
    assert warnings(calm, 0, 0) == []
    [disk] = warnings(calm, MIB // 2, 1)
    assert disk == "the disk of data_dir has 0 MiB left; make room"
    [dead] = warnings(StorageState(dead_rows=2_000_000, live_rows=1_000_000), MIB, 0)
    assert dead.startswith("PostgreSQL keeps 2000000 dead rows: an old snapshot")
    assert warnings(StorageState(dead_rows=2_000_000, live_rows=3_000_000), MIB, 0) == []


async def test_what_can_not_be_read_stays_as_it_was(sqlite_url: str, tmp_path: Path) -> None:
    database = Database.open(sqlite_url)
    watch = StoragePressure(database, tmp_path, lambda: 0)
    await watch.look()
    before = watch.state
    database.close()
    await watch.look()
    assert watch.state == before


def test_the_state_is_read_from_both_kinds(database: Database) -> None:
    assert database.read_now(read_state).database > 0
