"""Schema migrations, and checks of the schema's revision and the role's rights."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import Connection, inspect, select, text
from sqlalchemy.exc import DBAPIError

from bitel.errors import SettingsError
from bitel.store import db_errors, engines
from bitel.store.database import Database
from bitel.store.db_errors import Fault, StoreUnavailable
from bitel.store.schema import metadata, schema_compatibility

NEWEST: Final = "0016"
"""The schema's revision that this program works with."""

_INSUFFICIENT_PRIVILEGE: Final = "42501"
_LACKING: Final = text(
    """
    SELECT name FROM unnest(CAST(:tables AS text[])) AS name
    WHERE CASE WHEN to_regclass(name) IS NULL THEN false ELSE NOT (
        has_table_privilege(name, 'SELECT') AND has_table_privilege(name, 'INSERT')
        AND has_table_privilege(name, 'UPDATE') AND has_table_privilege(name, 'DELETE')
        AND coalesce(
            has_sequence_privilege(
                CASE WHEN name = 'placed_number' THEN pg_get_serial_sequence(name, 'id') END,
                'USAGE'
            ),
            true
        )
    ) END
    ORDER BY name
    """
)
_SCRIPTS: Final = Path(__file__).parent / "migrations"
_ADVISORY_LOCK: Final = 0x62697465_6C
"""Key of the lock that all processes take: the bytes of the project's name."""


def upgrade(url: str) -> bool:
    """Upgrade the database at `url` to the newest schema; only one process does so at a time.

    True: there was no schema, and it was created. Raises SettingsError when the schema is newer
    than this program or the URL can't be used, and StoreUnavailable when the database can't be
    reached.
    """
    parsed = engines.parse_url(url)
    if engines.is_sqlite(parsed):
        engines.prepare_file(parsed)
    engine = engines.make_engine(parsed, "migration")
    revision: str | None = None
    try:
        with engine.begin() as conn:
            if not engines.is_sqlite(parsed):
                conn.execute(text("SET LOCAL lock_timeout = 0"))
                conn.execute(text("SET LOCAL statement_timeout = 0"))
                conn.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
            revision = _revision(conn)
            _refuse_newer(conn, revision)
            if revision is None or revision < NEWEST:
                _run_migrations(conn)
            if not engines.is_sqlite(parsed):
                _check_rights(conn, parsed.username)
    except DBAPIError as error:
        if _is_privilege_missing(error):
            raise _lacks_right(parsed.username, db_errors.first_line(error)) from None
        if db_errors.classify(error) is Fault.OURS:
            raise
        raise StoreUnavailable(
            f"the database can't be used: {db_errors.first_line(error)}"
        ) from error
    return revision is None


def _check_rights(conn: Connection, role: str | None) -> None:
    """Raises SettingsError if the role lacks rights on the tables."""
    tables = {"tables": sorted(table.name for table in metadata.sorted_tables)}
    lacking = [row.name for row in conn.execute(_LACKING, tables)]
    if lacking:
        raise _lacks_right(role, f"permission denied for table {lacking[0]}")


def _is_privilege_missing(error: BaseException) -> bool:
    code = getattr(error.orig, "sqlstate", None) if isinstance(error, DBAPIError) else None
    return code == _INSUFFICIENT_PRIVILEGE


def _lacks_right(role: str | None, what: str) -> SettingsError:
    """The error for a missing right, with the statement that grants it."""
    name = f'"{role}"' if role else "its role"
    if "must be owner" in what:
        return SettingsError(
            f"the role {name} of database_url may not upgrade the schema ({what}); start bitel "
            "once with the owner of the tables in database_url"
        )
    if "schema" in what:
        grant = f"GRANT USAGE, CREATE ON SCHEMA public TO {name}"
    elif "database" in what:
        grant = f"GRANT CONNECT ON DATABASE … TO {name}"
    else:
        grant = (
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {name}; "
            f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {name}"
        )
    return SettingsError(
        f"the role {name} of database_url lacks a right ({what}); the owner of the database "
        f"grants it with: {grant}"
    )


def open_current(url: str) -> Database:
    """Open an existing database that has the newest schema, without changing it.

    Raises SettingsError where it does not exist, or has another schema.
    """
    parsed = engines.parse_url(url)
    place = engines.place(parsed)
    missing = f"there is no database of bitel at {place}; `bitel init` or `bitel serve` makes it"
    if engines.is_sqlite(parsed) and not Path(str(parsed.database)).exists():
        raise SettingsError(missing)
    database = Database(parsed)
    try:
        revision = database.read_now(_revision)
        database.read_now(lambda conn: _refuse_newer(conn, revision))
        if revision is None:
            raise SettingsError(missing)
        if revision < NEWEST:
            raise SettingsError(
                f"the database at {place} is of an earlier version; start the service, which "
                "upgrades it, or run `bitel init`"
            )
        if not engines.is_sqlite(parsed):
            database.read_now(lambda conn: _check_rights(conn, parsed.username))
    except BaseException as error:
        database.close()
        if isinstance(error, StoreUnavailable):
            why = db_errors.first_line(error.__cause__ or error)
            raise StoreUnavailable(f"the database at {place} can't be used: {why}") from error
        if _is_privilege_missing(error):
            raise _lacks_right(parsed.username, db_errors.first_line(error)) from None
        raise
    return database


def _revision(conn: Connection) -> str | None:
    if not inspect(conn).has_table("alembic_version"):
        return None
    return conn.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def _refuse_newer(conn: Connection, revision: str | None) -> None:
    """Raises SettingsError for a schema that only newer programs can use.

    In an upgrade of several machines one after the other, the first of the new version upgrades the
    schema, in ways that the version before can use. Revisions are numbers that only grow.
    """
    if revision is None or revision <= NEWEST:
        return
    usable_since = conn.execute(select(schema_compatibility.c.usable_since)).scalar()
    if usable_since is None or usable_since > NEWEST:
        raise SettingsError(
            f"the database has schema {revision} and this program knows none after {NEWEST}; "
            "run the newer bitel that made it"
        )


def _run_migrations(conn: Connection) -> None:
    # Imported here: Alembic is slow to import, and most starts need no migration.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
    config.attributes["connection"] = conn
    command.upgrade(config, NEWEST)
    if conn.dialect.name == "sqlite":
        broken = conn.exec_driver_sql("PRAGMA foreign_key_check").all()
        if broken:
            raise RuntimeError(f"a migration left rows that refer to nothing: {broken[:3]}")
