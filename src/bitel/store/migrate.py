"""The schema, brought to what this program needs."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import DBAPIError

from bitel.errors import SettingsError
from bitel.store import engines, faults
from bitel.store.database import Database
from bitel.store.faults import Fault, StoreUnavailable

NEWEST: Final = "0007"
"""The schema's revision that this program works with."""

_SCRIPTS: Final = Path(__file__).parent / "migrations"
_ADVISORY_LOCK: Final = 0x62697465_6C
"""Any number that all processes agree on; these are the bytes of the project's name."""


def upgrade(url: str) -> None:
    """Bring the database at `url` to the newest schema, waiting for whoever is doing so already.

    Raises SettingsError when its schema is newer than this program or the URL can't be used, and
    StoreUnavailable when it can't be reached.
    """
    parsed = engines.parse_url(url)
    if engines.is_sqlite(parsed):
        engines.prepare_file(parsed)
    engine = engines.make_engine(parsed, "migration")
    try:
        with engine.begin() as conn:
            if not engines.is_sqlite(parsed):
                conn.execute(text("SET LOCAL lock_timeout = 0"))
                conn.execute(text("SET LOCAL statement_timeout = 0"))
                conn.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
            revision = _revision(conn)
            _refuse_newer(revision)
            if revision != NEWEST:
                _run_migrations(conn)
    except DBAPIError as error:
        if faults.sort(error) is Fault.OURS:
            raise
        raise StoreUnavailable(f"the database can't be used: {faults.first_line(error)}") from error


def check_version(database: Database) -> None:
    """Raises SettingsError unless the database has the schema that this program needs."""
    revision = database.read_now(_revision)
    _refuse_newer(revision)
    if revision != NEWEST:
        raise SettingsError("the database is older than this program; start the service to upgrade")


def _revision(conn: Connection) -> str | None:
    if not inspect(conn).has_table("alembic_version"):
        return None
    return conn.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def _refuse_newer(revision: str | None) -> None:
    # Revisions are numbers that only grow.
    if revision is not None and revision > NEWEST:
        raise SettingsError(
            f"the database has schema {revision} and this program knows none after {NEWEST}; "
            "run the newer bitel that made it"
        )


def _run_migrations(conn: Connection) -> None:
    # Here, because most starts need no migration, and Alembic takes a while to import.
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
