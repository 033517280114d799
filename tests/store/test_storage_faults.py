"""Disks and servers that go and come back: writing resumes within a second, without a restart."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Connection, insert, make_url, select

from bitel.store import migrate
from bitel.store.database import Database
from bitel.store.db_errors import StoreUnavailable
from bitel.store.schema import dialer
from tests.support.postgres_server import OwnPostgres, own_postgres
from tests.support.small_disk import empty, fill, remount, small_disk
from tests.support.waiting import until

RESUMES_WITHIN = 1.0
"""Seconds from the storage's return to the next write."""

_numbers = itertools.count()


def add(conn: Connection) -> None:
    row = {"id": f"{next(_numbers)}{'x' * 50}", "epoch": 1, "worker": "w", "seen_at": 0.0}
    conn.execute(insert(dialer).values(row))


def count(conn: Connection) -> int:
    return len(conn.execute(select(dialer.c.id)).all())


def until_written(database: Database) -> float:
    """Seconds until a write succeeds, tried ten times a second."""
    begun = time.monotonic()
    while True:
        try:
            database.write_now(add)
        except StoreUnavailable:
            assert time.monotonic() - begun < 10
            threading.Event().wait(0.1)  # the storage's affair, no clock of ours drives it
        else:
            database.read_now(count)
            return time.monotonic() - begun


class Load:
    """Writers and readers that go on whatever happens."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._stop = False
        self.written_at: list[float] = []
        self.failed = 0

    async def write(self) -> None:
        while not self._stop:
            try:
                await self._database.write(add)
                self.written_at.append(time.monotonic())
            except StoreUnavailable:
                self.failed += 1
                await asyncio.sleep(0.05)

    async def read(self) -> None:
        while not self._stop:
            try:
                await self._database.read(count)
            except StoreUnavailable:
                await asyncio.sleep(0.05)
            await asyncio.sleep(0.02)

    async def until_failing(self) -> None:
        await until(lambda: self.failed, 20)

    async def resumes_after(self, at: float) -> float:
        """Seconds from `at` to the first write after it."""
        await until(lambda: self.written_at and self.written_at[-1] > at, 20)
        return next(each for each in self.written_at if each > at) - at

    async def __aenter__(self) -> Load:
        self._tasks = [asyncio.create_task(self.write()) for _ in range(20)]
        self._tasks += [asyncio.create_task(self.read()) for _ in range(3)]
        await self.resumes_after(0.0)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._stop = True
        await asyncio.gather(*self._tasks)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk") as made:
        yield made


def test_a_file_that_was_read_only_for_a_while_is_written_again(disk: Path) -> None:
    path = disk / "bitel.db"
    migrate.upgrade(f"sqlite:///{path}")
    # Somebody's connection, read-only, with which the write-ahead log outlives the writer's.
    with Database.open(f"sqlite:///{path}") as first:
        first.write_now(add)
    reader = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    reader.execute("SELECT count(*) FROM dialer").fetchall()
    with Database.open(f"sqlite:///{path}") as database:
        reader.close()
        remount(disk, "ro")
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                database.write_now(add)
            for _ in range(6):  # every reader opens the file anew, and keeps it
                database.read_now(count)
        remount(disk, "rw")
        assert until_written(database) < RESUMES_WITHIN


async def test_a_disk_that_was_full_under_load_is_written_again(disk: Path) -> None:
    url = f"sqlite:///{disk / 'bitel.db'}"
    migrate.upgrade(url)
    with Database.open(url) as database:
        async with Load(database) as load:
            for _ in range(3):
                load.failed = 0
                fill(disk)
                await load.until_failing()
                await asyncio.sleep(1.0)  # as long as it is full
                empty(disk)
                assert await load.resumes_after(time.monotonic()) < RESUMES_WITHIN
        assert database.read_now(count) == len(load.written_at)


@pytest.mark.soak
async def test_a_file_that_another_process_locks_for_long_is_written_again(
    sqlite_url: str,
) -> None:
    holder = sqlite3.connect(str(make_url(sqlite_url).database), isolation_level=None)
    with Database.open(sqlite_url) as database:
        async with Load(database) as load:
            holder.execute("BEGIN IMMEDIATE")
            await asyncio.sleep(10.0)  # longer than SQLite waits for a lock
            holder.execute("ROLLBACK")
            assert await load.resumes_after(time.monotonic()) < RESUMES_WITHIN
    holder.close()


@pytest.fixture(scope="module")
def server() -> Iterator[OwnPostgres]:
    with own_postgres() as own:
        yield own


async def test_a_server_that_was_killed_is_written_to_again(server: OwnPostgres) -> None:
    with Database.open(server.url) as database:
        async with Load(database) as load:
            server.kill()
            await load.until_failing()
            await asyncio.to_thread(server.start)
            assert await load.resumes_after(time.monotonic()) < RESUMES_WITHIN


@pytest.mark.parametrize("seconds", [2.0, pytest.param(10.0, marks=pytest.mark.soak)])
async def test_a_server_that_was_frozen_is_written_to_again(
    server: OwnPostgres, seconds: float
) -> None:
    with Database.open(server.url) as database:
        async with Load(database) as load:
            server.freeze()
            await asyncio.sleep(seconds)
            server.thaw()
            assert await load.resumes_after(time.monotonic()) < RESUMES_WITHIN


async def test_a_server_that_was_read_only_is_written_to_again(server: OwnPostgres) -> None:
    with Database.open(server.url) as database:
        async with Load(database) as load:
            try:
                server.administer(
                    "ALTER SYSTEM SET default_transaction_read_only = on",
                    "SELECT pg_reload_conf()",
                )
                await load.until_failing()
            finally:
                with psycopg.connect(server.url, autocommit=True) as connection:
                    connection.execute("SET default_transaction_read_only = off")
                    connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
                    connection.execute("SELECT pg_reload_conf()")
            assert await load.resumes_after(time.monotonic()) < RESUMES_WITHIN


async def test_a_server_that_hangs_does_not_keep_the_database_from_closing(
    server: OwnPostgres,
) -> None:
    database = Database.open(server.url)
    await database.write(add)
    await database.read(count)
    server.freeze()
    try:
        hanging: list[asyncio.Task[int | None]] = []
        hanging += [asyncio.create_task(database.write(add)) for _ in range(5)]
        hanging += [asyncio.create_task(database.read(count)) for _ in range(5)]
        await asyncio.sleep(0.2)  # until they hang in the middle of their statements
        begun = time.monotonic()
        assert not await asyncio.to_thread(database.close, 0.5)
        assert time.monotonic() - begun < 3
        told = await asyncio.gather(*hanging, return_exceptions=True)
        assert [type(each) for each in told] == [StoreUnavailable] * 10
        # A reader may still be connecting, which libpq gives up by itself.
        assert not database._threads[0].is_alive()
    finally:
        server.thaw()


async def test_a_lock_that_is_not_released_does_not_keep_the_database_from_closing(
    sqlite_url: str,
) -> None:
    holder = sqlite3.connect(str(make_url(sqlite_url).database), isolation_level=None)
    database = Database.open(sqlite_url)
    holder.execute("BEGIN IMMEDIATE")
    hanging = [asyncio.create_task(database.write(add)) for _ in range(5)]
    await asyncio.sleep(0.2)  # until they hang in the middle of their statements
    begun = time.monotonic()
    assert not await asyncio.to_thread(database.close, 0.2)
    assert time.monotonic() - begun < 3
    told = await asyncio.gather(*hanging, return_exceptions=True)
    assert [type(each) for each in told] == [StoreUnavailable] * 5
    holder.close()
