"""Group commit: shared by many, harmful to none, and honest about what is stored."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import stat
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import Connection, insert, make_url, select, text, update

from bitel.errors import SettingsError, UnavailableError
from bitel.store import database as store
from bitel.store import engines, projects
from bitel.store.database import MOST_UNITS, READERS, Database
from bitel.store.db_errors import StoreUnavailable
from bitel.store.schema import dialer

if TYPE_CHECKING:
    from collections.abc import Callable


def add(name: str) -> Callable[[Connection], str]:
    """Work that stores a row named `name`."""

    def work(conn: Connection) -> str:
        conn.execute(insert(dialer).values(id=name, epoch=1, worker="w", seen_at=0.0))
        return name

    return work


def names(conn: Connection) -> set[str]:
    return set(conn.execute(select(dialer.c.id)).scalars())


class Gate:
    """Work that keeps the writer busy until it is opened, so that others have to queue."""

    def __init__(self) -> None:
        self.reached, self._open = threading.Event(), threading.Event()

    def __call__(self, conn: Connection) -> None:
        self.reached.set()
        assert self._open.wait(10)

    def open(self) -> None:
        self._open.set()


async def behind_gate(database: Database, *works: Callable[[Connection], Any]) -> list[Any]:
    """What became of works that all wait when the writer looks at its queue again."""
    gate = Gate()
    first = asyncio.create_task(database.write(gate))
    await asyncio.to_thread(gate.reached.wait, 10)
    tasks = [asyncio.create_task(database.write(work)) for work in works]
    await asyncio.sleep(0)
    gate.open()
    await first
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_many_writers_share_a_commit(database: Database) -> None:
    before = database.stats
    answers = await behind_gate(database, *(add(str(n)) for n in range(100)))

    assert answers == [str(n) for n in range(100)]
    assert database.stats.units - before.units == 101
    assert database.stats.batches - before.batches == 2
    assert database.stats.largest_batch == 100
    assert database.stats.commit_seconds > 0
    assert await database.read(names) == set(answers)


async def test_a_transaction_is_bounded(sqlite_database: Database) -> None:
    await behind_gate(sqlite_database, *([lambda conn: None] * (MOST_UNITS + 1)))
    assert sqlite_database.stats.largest_batch == MOST_UNITS
    assert sqlite_database.stats.batches == 3


async def test_a_unit_that_fails_is_undone_alone(database: Database) -> None:
    def raises(conn: Connection) -> None:
        add("undone")(conn)
        raise ValueError("no")

    def breaks_a_rule(conn: Connection) -> None:
        add("undone too")(conn)
        add("first")(conn)

    answers = await behind_gate(database, add("first"), raises, breaks_a_rule, add("last"))

    assert answers[0] == "first"
    assert isinstance(answers[1], ValueError)
    assert type(answers[2]).__name__ == "IntegrityError"
    assert answers[3] == "last"
    assert await database.read(names) == {"first", "last"}


def test_a_unit_that_fails_alone_leaves_nothing(database: Database) -> None:
    def raises(conn: Connection) -> None:
        add("undone")(conn)
        raise StopIteration

    with pytest.raises(RuntimeError, match="StopIteration"):
        database.write_now(raises)
    assert database.write_now(add("kept")) == "kept"
    assert database.read_now(names) == {"kept"}


async def test_a_unit_sees_what_those_before_it_wrote(database: Database) -> None:
    answers = await behind_gate(database, add("a"), names, add("b"), names)
    assert answers == ["a", {"a"}, "b", {"a", "b"}]


async def test_a_cancelled_caller_disturbs_nobody(database: Database) -> None:
    gate = Gate()
    first = asyncio.create_task(database.write(gate))
    await asyncio.to_thread(gate.reached.wait, 10)
    left = asyncio.create_task(database.write(add("left")))
    stayed = asyncio.create_task(database.write(add("stayed")))
    await asyncio.sleep(0)
    left.cancel()
    gate.open()
    await first

    assert await stayed == "stayed"
    with pytest.raises(asyncio.CancelledError):
        await left
    assert await database.read(names) == {"left", "stayed"}


def test_callers_may_come_from_several_event_loops(sqlite_database: Database) -> None:
    def client(prefix: str) -> None:
        async def run() -> None:
            await asyncio.gather(*(sqlite_database.write(add(f"{prefix}{n}")) for n in range(20)))

        asyncio.run(run())

    threads = [threading.Thread(target=client, args=(prefix,)) for prefix in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(sqlite_database.read_now(names)) == 60


def test_a_caller_whose_loop_is_gone_disturbs_nobody(sqlite_database: Database) -> None:
    gate = Gate()

    async def leave() -> None:
        task = asyncio.create_task(sqlite_database.write(gate))
        await asyncio.to_thread(gate.reached.wait, 10)
        task.cancel()

    asyncio.run(leave())
    gate.open()
    assert sqlite_database.write_now(add("next")) == "next"


async def test_a_reader_cannot_write(database: Database) -> None:
    with pytest.raises(StoreUnavailable) as refused:
        await database.read(add("forbidden"))
    assert re.search("read-?only", str(refused.value.__cause__))
    assert await database.read(names) == set()


async def test_a_reader_sees_every_write_that_was_answered(database: Database) -> None:
    for n in range(20):
        await database.write(add(str(n)))
        seen = await asyncio.gather(*(database.read(names) for _ in range(5)))
        assert all(str(n) in one for one in seen)


async def test_a_read_that_fails_does_not_hurt_the_next(database: Database) -> None:
    def wrong(conn: Connection) -> None:
        conn.execute(text("SELECT nothing FROM nowhere"))

    answers = await asyncio.gather(
        *(database.read(work) for work in (wrong, names, wrong, names)), return_exceptions=True
    )
    assert answers[1] == answers[3] == set()
    assert isinstance(answers[0], Exception)
    assert isinstance(answers[2], Exception)


async def test_when_the_disk_is_full_nothing_is_stored_and_all_are_told(
    sqlite_database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    database = sqlite_database
    pages = database.write_now(lambda conn: conn.exec_driver_sql("PRAGMA page_count").scalar_one())
    database.write_now(lambda conn: conn.exec_driver_sql(f"PRAGMA max_page_count = {pages}").all())
    names_of_60_bytes = [f"{n:060}" for n in range(200)]

    answers = await behind_gate(database, *(add(name) for name in names_of_60_bytes))

    told = [isinstance(answer, StoreUnavailable) for answer in answers]
    stored = await database.read(names)
    assert any(told)
    assert "is full" in caplog.text
    # Whoever was told that it is stored finds it, and nobody else does.
    assert stored == {
        name for name, failed in zip(names_of_60_bytes, told, strict=True) if not failed
    }

    database.write_now(lambda conn: conn.exec_driver_sql("PRAGMA max_page_count = 100000").all())
    assert await database.write(add("again")) == "again"


async def test_a_commit_that_fails_stores_nothing(database: Database) -> None:
    dialect: Any = database._writer._engine.dialect
    commit = dialect.do_commit

    def fail_once(_connection: Any) -> None:
        dialect.do_commit = commit
        if dialect.name == "sqlite":
            full = sqlite3.OperationalError("database or disk is full")
            full.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise full
        raise psycopg.errors.DiskFull("could not extend file")

    def arm(_conn: Connection) -> None:
        dialect.do_commit = fail_once

    answers = await behind_gate(database, *(add(str(n)) for n in range(10)), arm)

    assert [type(answer) for answer in answers] == [StoreUnavailable] * 11
    assert issubclass(StoreUnavailable, UnavailableError)
    assert await database.read(names) == set()
    assert await database.write(add("next")) == "next"
    assert await database.read(names) == {"next"}
    assert database.stats.failed_batches == 1


def test_a_locked_database_is_said_to_be_unavailable(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "BUSY_TIMEOUT", 0.05)
    holder = sqlite3.connect(str(make_url(sqlite_url).database), isolation_level=None)
    with Database.open(sqlite_url) as database:
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailable):
            database.write_now(add("blocked"))
        assert database.read_now(names) == set()
        holder.execute("ROLLBACK")
        assert database.write_now(add("free")) == "free"
    holder.close()


def test_a_lost_connection_is_replaced(postgres_url: str) -> None:
    def pid(conn: Connection) -> int:
        found: int = conn.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        return found

    with Database.open(postgres_url) as database:
        first = database.write_now(pid)
        with psycopg.connect(postgres_url, autocommit=True) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        assert database.write_now(add("after")) == "after"
        assert database.read_now(names) == {"after"}
        assert database.write_now(pid) != first


def test_a_connection_lost_while_work_runs_makes_it_run_again(postgres_url: str) -> None:
    tries: list[int] = []

    def work(conn: Connection) -> int:
        add("once")(conn)
        pid: int = conn.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        tries.append(pid)
        if len(tries) == 1:
            with psycopg.connect(postgres_url, autocommit=True) as other:
                other.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
        conn.exec_driver_sql("SELECT 1")
        return len(tries)

    with Database.open(postgres_url) as database:
        assert database.write_now(work) == 2
        assert database.read_now(names) == {"once"}


def test_a_deadlock_makes_the_transaction_run_again(postgres_url: str) -> None:
    met = threading.Barrier(2)
    tries: dict[str, int] = {"a": 0, "b": 0}

    def crossing(mine: str, other: str) -> Callable[[Connection], None]:
        def bump(conn: Connection, name: str) -> None:
            conn.execute(update(dialer).where(dialer.c.id == name).values(epoch=dialer.c.epoch + 1))

        def work(conn: Connection) -> None:
            tries[mine] += 1
            conn.exec_driver_sql("SET LOCAL deadlock_timeout = '20ms'")
            bump(conn, mine)
            if tries[mine] == 1:
                met.wait(10)
            bump(conn, other)

        return work

    with Database.open(postgres_url) as one, Database.open(postgres_url) as two:
        one.write_now(add("a"))
        one.write_now(add("b"))
        thread = threading.Thread(target=two.write_now, args=(crossing("b", "a"),))
        thread.start()
        one.write_now(crossing("a", "b"))
        thread.join(10)
        epochs = one.read_now(lambda conn: conn.execute(select(dialer.c.epoch)).scalars().all())
    assert sum(tries.values()) == 3
    assert epochs == [3, 3]


def test_a_process_cut_off_in_a_transaction_lets_others_write(postgres_url: str) -> None:
    reached, back = threading.Event(), threading.Event()

    def bump(conn: Connection) -> None:
        conn.execute(update(dialer).values(epoch=dialer.c.epoch + 1))

    def cut_off(conn: Connection) -> None:
        bump(conn)
        if not reached.is_set():
            reached.set()
            assert back.wait(30)
        conn.execute(select(dialer.c.epoch)).all()

    with Database.open(postgres_url) as cut, Database.open(postgres_url) as other:
        other.write_now(add("shared"))
        thread = threading.Thread(target=cut.write_now, args=(cut_off,))
        thread.start()
        assert reached.wait(10)
        try:
            other.write_now(bump)
        finally:
            back.set()
            thread.join(10)
        [epoch] = other.read_now(lambda conn: conn.execute(select(dialer.c.epoch)).scalars().all())
    assert epoch == 3, "both have written, the one that was cut off after the other"


def test_a_server_out_of_reach_is_said_to_be_unavailable(tmp_path: Path) -> None:
    with Database.open(f"postgresql://nobody@/nothing?host={tmp_path}") as database:
        with pytest.raises(StoreUnavailable):
            database.write_now(add("nowhere"))
        with pytest.raises(StoreUnavailable):
            database.read_now(names)


async def test_closing_finishes_what_is_queued(database: Database) -> None:
    gate = Gate()
    tasks = [asyncio.create_task(database.write(gate))]
    await asyncio.to_thread(gate.reached.wait, 10)
    tasks += [asyncio.create_task(database.write(add(str(n)))) for n in range(5)]  # type: ignore[arg-type]
    await asyncio.sleep(0)
    threading.Timer(0.05, gate.open).start()
    await asyncio.to_thread(database.close)

    assert (await asyncio.gather(*tasks))[1:] == [str(n) for n in range(5)]
    with pytest.raises(StoreUnavailable, match="closed"):
        await database.write(add("late"))
    with pytest.raises(StoreUnavailable, match="closed"):
        database.read_now(names)
    database.close()


def test_more_than_can_wait_is_refused(
    sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MOST_WAITING", 5)
    gate = Gate()
    thread = threading.Thread(target=sqlite_database.write_now, args=(gate,))
    thread.start()
    gate.reached.wait(10)
    waiting = [threading.Thread(target=sqlite_database.write_now, args=(names,)) for _ in range(5)]
    for one in waiting:
        one.start()
    while sqlite_database._writes._queue.qsize() < 5:
        threading.Event().wait(0.001)
    with pytest.raises(StoreUnavailable, match="keep up"):
        sqlite_database.write_now(names)
    gate.open()
    for one in [thread, *waiting]:
        one.join(10)


def test_a_new_file_is_for_nobody_else_to_read(tmp_path: Path) -> None:
    path = tmp_path / "new" / "bitel.db"
    with Database.open(f"sqlite:///{path}") as database:
        database.write_now(lambda conn: conn.exec_driver_sql("CREATE TABLE t (x)"))
        for file in path.parent.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_sqlite_is_set_up_to_survive_a_power_cut(sqlite_database: Database) -> None:
    def setting(name: str) -> Any:
        return sqlite_database.write_now(
            lambda conn: conn.exec_driver_sql(f"PRAGMA {name}").scalar_one()
        )

    assert setting("journal_mode") == "wal"
    assert setting("synchronous") == 2  # FULL
    assert setting("foreign_keys") == 1


def test_a_commit_on_postgresql_is_on_disk_whatever_the_servers_default(
    blank_postgres_url: str,
) -> None:
    name = make_url(blank_postgres_url).database
    with psycopg.connect(blank_postgres_url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {name} SET synchronous_commit = off".encode())
    show = text("SHOW synchronous_commit")
    with psycopg.connect(blank_postgres_url) as connection:
        assert connection.execute("SHOW synchronous_commit").fetchone() == ("off",)
    with Database.open(blank_postgres_url) as database:
        assert database.write_now(lambda conn: conn.execute(show).scalar_one()) == "on"


def test_what_sqlite_keeps_of_its_pages_is_bounded(sqlite_database: Database) -> None:
    def cache(conn: Connection) -> int:
        return -int(conn.exec_driver_sql("PRAGMA cache_size").scalar_one())

    kept = sqlite_database.write_now(cache) + READERS * sqlite_database.read_now(cache)
    assert 0 < kept <= 32 * 1024  # KiB of all connections


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "not a database's URL"),
        ("secret", "not a database's URL"),
        ("mysql://secret@host/db", "mysql"),
        ("postgresql+asyncpg://secret@host/db", "asyncpg"),
        ("sqlite://", "no SQLite file"),
        ("sqlite:///:memory:", "no SQLite file"),
        ("sqlite:////proc/nowhere/secret.db", "can't be made or opened"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused_in_one_sentence(url: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says) as refused:
        Database.open(url)
    assert "\n" not in str(refused.value)
    assert "secret@" not in str(refused.value)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_every_way_to_write_postgresql_is_understood(scheme: str) -> None:
    url = engines.parse_url(f"{scheme}://u:p@h/d")
    assert url.drivername == "postgresql+psycopg"
    assert url.password == "p"


def test_without_psycopg_the_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(SettingsError, match=r"bitel\[postgres\]"):
        Database.open("postgresql://h/d")


def test_what_was_answered_survives_kill_9(database_url: str) -> None:
    script = textwrap.dedent(
        """
        import sys, threading
        from bitel.store import projects
        from bitel.store.database import Database
        database = Database.open(sys.argv[1])
        for n in range(30):
            database.write_now(lambda conn: projects.create(conn, f"p{n}", 1.0))
        print("committed", flush=True)
        def never_committed(conn):
            projects.create(conn, "unanswered", 1.0)
            print("in work", flush=True)
            threading.Event().wait()
        database.write_now(never_committed)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, database_url], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    said = [process.stdout.readline().strip() for _ in range(2)]
    process.kill()
    process.wait()
    process.stdout.close()

    assert said == ["committed", "in work"]
    with Database.open(database_url) as database:
        found = {project.name for project in database.read_now(projects.listing)}
    assert found == {f"p{n}" for n in range(30)}


async def test_two_processes_write_at_once(database_url: str) -> None:
    # As the command line does beside the service; neither ever meets "database is locked".
    script = textwrap.dedent(
        """
        import sys
        from bitel.store import projects
        from bitel.store.database import Database
        for n in range(8):
            with Database.open(sys.argv[1]) as database:
                database.write_now(lambda conn: projects.create(conn, f"cli{n}", 1.0))
        """
    )
    with Database.open(database_url) as database:
        process = subprocess.Popen([sys.executable, "-c", script, database_url])
        written = 0
        while process.poll() is None:
            await asyncio.gather(*(database.write(add(f"{written + n}")) for n in range(20)))
            written += 20
        assert process.returncode == 0
        assert len(await database.read(projects.listing)) == 8
        assert len(await database.read(names)) == written
