"""Migrations: the same schema as the tables in code, at once or twice at once."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Connection, make_url, text

from bitel.domain.pricing import day_of
from bitel.errors import SettingsError
from bitel.store import calls, claims, engines, migrate, projects, recordings, recovery
from bitel.store.database import Database
from bitel.store.db_errors import StoreUnavailable
from bitel.store.leases import Slot
from bitel.store.schema import metadata

if TYPE_CHECKING:
    from pathlib import Path


def catalogue(conn: Connection) -> set[Any]:
    """Everything the database says about its tables, except what Alembic keeps for itself."""
    if conn.dialect.name == "sqlite":
        rows = conn.exec_driver_sql("SELECT tbl_name, sql FROM sqlite_master").all()
        found = {(table, _parts(sql)) for table, sql in rows if sql}
    else:
        queries = (
            "SELECT table_name, column_name, data_type, character_maximum_length, is_nullable "
            "FROM information_schema.columns WHERE table_schema = 'public'",
            "SELECT tablename, indexdef FROM pg_indexes WHERE schemaname = 'public'",
            "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) "
            "FROM pg_constraint WHERE connamespace = 'public'::regnamespace",
        )
        found = {tuple(row) for query in queries for row in conn.exec_driver_sql(query)}
    return {row for row in found if row[0] != "alembic_version"}


def _parts(sql: str) -> frozenset[str]:
    """A statement's parts, whatever their order, white space and quotes."""
    plain = re.sub(r"\s+", " ", sql.replace('"', ""))
    parts, depth = [""], 0
    for letter in plain:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if (letter == "," and depth == 1) or (letter in "()" and depth + (letter == ")") == 1):
            parts.append("")
        else:
            parts[-1] += letter
    return frozenset(part.strip() for part in parts)


def test_migrations_make_the_tables_that_the_code_knows(blank_url: str) -> None:
    engine = engines.make_engine(engines.parse_url(blank_url), "migration")
    with engine.begin() as conn:
        metadata.create_all(conn)
        from_code = catalogue(conn)
        metadata.drop_all(conn)

    migrate.upgrade(blank_url)

    with engine.connect() as conn:
        assert catalogue(conn) == from_code
        assert compare_metadata(MigrationContext.configure(conn), metadata) == []


def test_the_newest_revision_is_the_one_the_program_names() -> None:
    config = Config()
    config.set_main_option("script_location", str(migrate._SCRIPTS))
    scripts = ScriptDirectory.from_config(config)
    assert scripts.get_heads() == [migrate.NEWEST]
    revisions = [script.revision for script in scripts.walk_revisions()]
    assert revisions == sorted(revisions, reverse=True)


def test_an_upgrade_twice_is_an_upgrade_once(blank_url: str) -> None:
    migrate.upgrade(blank_url)
    migrate.upgrade(blank_url)
    migrate.open_current(blank_url).close()


def test_several_processes_may_start_at_once(blank_url: str) -> None:
    script = "import sys; from bitel.store import migrate; migrate.upgrade(sys.argv[1])"
    processes = [
        subprocess.Popen([sys.executable, "-c", script, blank_url], stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    errors = [process.communicate(timeout=30)[1].decode() for process in processes]
    assert errors == ["", ""]
    migrate.open_current(blank_url).close()


def test_a_migration_that_fails_leaves_nothing(
    blank_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alembic import command

    upgrade = command.upgrade

    def halfway(config: Config, revision: str) -> None:
        upgrade(config, revision)
        raise RuntimeError("power cut")

    monkeypatch.setattr(command, "upgrade", halfway)
    with pytest.raises(RuntimeError, match="power cut"):
        migrate.upgrade(blank_url)
    with engines.make_engine(engines.parse_url(blank_url), "migration").connect() as conn:
        assert catalogue(conn) == set()


def test_what_was_there_before_is_there_after(
    blank_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrate, "NEWEST", "0001")
    migrate.upgrade(blank_url)
    with Database.open(blank_url) as database:
        database.write_now(_fill_first_schema)
    monkeypatch.undo()

    migrate.upgrade(blank_url)

    with Database.open(blank_url) as database:
        shop = database.read_now(lambda conn: projects.by_id(conn, "p"))
        assert shop is not None
        assert (shop.name, shop.balance, shop.reserved) == ("shop", Decimal("1.5"), Decimal(0))
        assert (shop.allowed_prefixes, shop.forbidden_prefixes) == (None, ())
        recording = database.read_now(lambda conn: recordings.find(conn, "p", "r"))
        assert recording is not None
        assert (recording.kind, recording.speech_key) == ("upload", None)
        used_on = database.read_now(
            lambda conn: conn.execute(text("SELECT used_on FROM recording")).scalar_one()
        )
        assert abs(used_on - day_of(time.time())) <= 1, "the day of the upgrade"
        lease, _ = database.write_now(
            lambda conn: recovery.take_over(conn, Slot("main"), "w", 5.0, 77)
        )
        (claimed,) = database.write_now(lambda conn: claims.claim(conn, lease, 9, 5.0))
        assert (claimed.call_id, claimed.recording_id, claimed.digits) == ("c", "r", "")
        assert (claimed.repeat_count, claimed.language) == (1, "")
        found = database.read_now(lambda conn: calls.attempts(conn, "c"))
        assert [row.media for row in found] == [None, None]


def _fill_first_schema(conn: Connection) -> None:
    for statement in (
        "INSERT INTO project VALUES ('p', 'shop', 1, 15000, NULL, false)",
        "INSERT INTO recording VALUES ('r', 'p', 'hello', 1, 1, 1, NULL)",
        "INSERT INTO call VALUES ('c', 'p', NULL, 'main', '0912', '+98912', 'r', 1, 0, 1, 1, 60,"
        " 1, 1000, 2, 0, 1, 0, 0, 0, '')",
        "INSERT INTO attempt VALUES ('a', 'c', 1, 'main', 1, 'settled', 1, NULL, 2, 'busy', 486,"
        " NULL, '', '')",
    ):
        conn.exec_driver_sql(statement)


def test_a_newer_schema_that_this_program_can_use_is_left_as_it_is(database_url: str) -> None:
    with Database.open(database_url) as database:
        newer = text("UPDATE alembic_version SET version_num = '9998'")
        database.write_now(lambda conn: conn.execute(newer))
    migrate.open_current(database_url).close()
    assert not migrate.upgrade(database_url)


def test_a_schema_for_newer_programs_alone_is_refused(database_url: str) -> None:
    with Database.open(database_url) as database:
        for statement in (
            "UPDATE alembic_version SET version_num = '9999'",
            "UPDATE schema_compatibility SET usable_since = '9998'",
        ):
            database.write_now(lambda conn, one=statement: conn.execute(text(one)))  # type: ignore[misc]
    with pytest.raises(SettingsError, match="9999"):
        migrate.open_current(database_url)
    with pytest.raises(SettingsError, match="9999"):
        migrate.upgrade(database_url)


def test_a_schema_older_than_the_program_is_refused(
    blank_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SettingsError, match=r"no database of bitel at .*`bitel init`"):
        migrate.open_current(blank_url)
    monkeypatch.setattr(migrate, "NEWEST", "0001")
    assert migrate.upgrade(blank_url), "the schema was made"
    monkeypatch.undo()
    with pytest.raises(SettingsError, match="is of an earlier version; start the service"):
        migrate.open_current(blank_url)
    assert not migrate.upgrade(blank_url), "it was there"


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "away" / "bitel.db"
    with pytest.raises(SettingsError, match=f"no database of bitel at {path}"):
        migrate.open_current(f"sqlite:///{path}")
    assert not path.parent.exists()


def test_a_server_out_of_reach_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="can't be used") as unreachable:
        migrate.upgrade(f"postgresql://nobody:secret@/nothing?host={tmp_path}")
    assert "secret" not in str(unreachable.value)
    assert "\n" not in str(unreachable.value)


@pytest.fixture
def ordinary(postgres: URL, blank_postgres_url: str) -> Iterator[tuple[URL, URL]]:
    """An empty database: as its owner, and as a role that may only connect to it."""
    role = f"clerk_{uuid.uuid4().hex[:8]}"
    owner = make_url(blank_postgres_url)
    administer(postgres, f"CREATE ROLE {role} LOGIN PASSWORD 'hunter2'")
    # The server's socket trusts whoever connects.
    yield owner, owner.set(username=role, password="hunter2")
    administer(owner, f"DROP OWNED BY {role}")
    administer(postgres, f"DROP ROLE {role}")


def administer(url: URL, *statements: str) -> None:
    with psycopg.connect(
        url.set(drivername="postgresql").render_as_string(hide_password=False), autocommit=True
    ) as connection:
        for statement in statements:
            connection.execute(statement)


def refusal(url: URL) -> str:
    with pytest.raises(SettingsError) as refused:
        migrate.upgrade(url.render_as_string(hide_password=False))
    said = str(refused.value)
    assert "\n" not in said
    assert "hunter2" not in said
    return said


def test_a_role_without_a_right_is_told_the_statement_that_grants_it(
    ordinary: tuple[URL, URL],
) -> None:
    owner, clerk = ordinary
    administer(owner, "REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    grant = f'GRANT USAGE, CREATE ON SCHEMA public TO "{clerk.username}"'
    said = refusal(clerk)
    assert "permission denied for schema public" in said
    assert said.endswith(grant)
    administer(owner, grant)
    migrate.upgrade(clerk.render_as_string(hide_password=False))


def test_a_role_that_is_not_the_owner_is_told_what_to_grant(ordinary: tuple[URL, URL]) -> None:
    owner, clerk = ordinary
    migrate.upgrade(owner.render_as_string(hide_password=False))
    said = refusal(clerk)
    assert "permission denied for table" in said
    administer(owner, f'GRANT SELECT ON ALL TABLES IN SCHEMA public TO "{clerk.username}"')
    said = refusal(clerk)
    assert "permission denied for table" in said
    _, _, grants = said.partition("grants it with: ")
    for n, grant in enumerate(grants.split("; ")):
        administer(owner, grant)
        if not n:
            assert "placed_number" in refusal(clerk)  # whose sequence is a right of its own
    url = clerk.render_as_string(hide_password=False)
    migrate.upgrade(url)
    with Database.open(url) as database:
        database.write_now(lambda conn: projects.create(conn, "shop", 1.0))
