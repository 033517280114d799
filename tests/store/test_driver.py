"""What the driver says of a statement is told as SQLAlchemy tells it, without what was in it."""

from __future__ import annotations

import psycopg
import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError, OperationalError, ProgrammingError

from bitel.store import sql_batch
from bitel.store.database import Database

ADD = "INSERT INTO dialer (id, epoch, worker, seen_at) VALUES ('main', 1, 'w', 1.0)"


def test_a_statement_that_breaks_a_rule_is_an_integrity_error(database: Database) -> None:
    database.write_now(lambda conn: sql_batch.execute(conn, ADD))
    with pytest.raises(IntegrityError):
        database.write_now(lambda conn: sql_batch.execute(conn, ADD))


def test_a_statement_that_is_none_is_refused_and_shows_no_parameters(database: Database) -> None:
    with pytest.raises((OperationalError, ProgrammingError)) as told:
        database.write_now(lambda conn: sql_batch.execute(conn, "SELEKT", ("0912 123",)))
    assert "0912" not in str(told.value)


def test_what_is_changed_is_counted_and_read(database: Database) -> None:
    assert database.write_now(lambda conn: sql_batch.execute(conn, ADD).rowcount) == 1
    read = database.read_now(
        lambda conn: sql_batch.execute(conn, "SELECT id FROM dialer").fetchall()
    )
    assert [tuple(row) for row in read] == [("main",)]


def test_a_connection_lost_in_a_statement_is_replaced(postgres_url: str) -> None:
    pids: list[int] = []

    def work(conn: Connection) -> int:
        pids.append(sql_batch.execute(conn, "SELECT pg_backend_pid()").fetchone()[0])
        if len(pids) == 1:
            with psycopg.connect(postgres_url) as other:
                other.execute("SELECT pg_terminate_backend(%s, 5000)", (pids[0],))
        sql_batch.execute(conn, ADD)
        return pids[-1]

    with Database.open(postgres_url) as database:
        assert database.write_now(work) == pids[1] != pids[0]
        count = "SELECT count(*) FROM dialer"
        assert database.read_now(lambda conn: sql_batch.execute(conn, count).fetchone()[0]) == 1
