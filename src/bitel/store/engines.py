"""Engines and connection settings for SQLite and PostgreSQL."""

from __future__ import annotations

import os
import socket
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from bitel.errors import SettingsError
from bitel.store import sql_batch

Role = Literal["writer", "reader", "migration"]

BUSY_TIMEOUT: Final = 30.0
"""Seconds that SQLite waits for another process, such as the command line, to end its write."""

STATEMENTS: Final = 512
"""Compiled statements that a connection to SQLite caches."""

PAGE_CACHE: Final = 8192
"""KiB of a SQLite file that a connection keeps in memory."""

_SCHEMES: Final = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}

# A commit is on disk when it returns, and no statement waits forever for a lock or a dead peer.
# Plans are cached, since planning takes longer than most statements. They must use indexes: a plan
# that reads a whole table, made while it was small, would be slow after a batch has come.
_POSTGRES_PARAMETERS: Final = {
    "synchronous_commit": "on",
    "lock_timeout": "10s",
    "statement_timeout": "60s",
    "idle_in_transaction_session_timeout": "60s",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
}
_SHOWN: Final = {"60s": "1min"}
_OF_ROLE: Final[Mapping[Role, Mapping[str, str]]] = {
    # A process that is cut off or stopped in a transaction keeps its locks until the server ends
    # its session. Others wait for these locks to renew their leases, which lapse after 5 s.
    "writer": {"idle_in_transaction_session_timeout": "3s"},
    "reader": {"default_transaction_read_only": "on"},
    "migration": {},
}

# Memory-mapped reads stay off: with them an I/O error would end the process by SIGBUS.
_SQLITE_PRAGMAS: Final = (
    "PRAGMA synchronous = FULL",
    f"PRAGMA cache_size = -{PAGE_CACHE}",
    "PRAGMA journal_size_limit = 67108864",
    "PRAGMA temp_store = MEMORY",
)


def parse_url(text: str) -> URL:
    """Parse the URL of a SQLite file or a PostgreSQL database.

    Raises SettingsError, without the URL, which may contain a password.
    """
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise SettingsError(
            "database_url is not a database's URL, as in sqlite:////var/lib/bitel/bitel.db "
            "or postgresql://user@host/name"
        ) from None
    scheme = _SCHEMES.get(url.drivername)
    if scheme is None:
        raise SettingsError(
            f"database_url names {url.drivername}; sqlite and postgresql are what can be used"
        )
    url = url.set(drivername=scheme)
    if is_sqlite(url):
        if not url.database or url.database == ":memory:":
            raise SettingsError("database_url names no SQLite file, as in sqlite:///bitel.db")
    else:
        _need_psycopg()
    return url


def is_sqlite(url: URL) -> bool:
    """Whether the database is a SQLite file; else it is PostgreSQL."""
    return url.get_backend_name() == "sqlite"


def place(url: URL) -> str:
    """The place of a database for messages: a file's absolute path, or a URL without password."""
    if is_sqlite(url):
        return str(Path(str(url.database)).absolute())
    shown = URL.create("postgresql", url.username, None, url.host, url.port, url.database)
    return shown.render_as_string()


def make_engine(url: URL, role: Role) -> Engine:
    """An engine without a pool: each thread of the store keeps its own connection.

    Its errors show no parameters, which contain phone numbers.
    """
    if is_sqlite(url):
        return _sqlite_engine(url, role)
    parameters = {**_POSTGRES_PARAMETERS, **_OF_ROLE[role]}
    arguments = {
        "application_name": "bitel",
        "connect_timeout": 5,
        "keepalives_idle": 30,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 15_000,
        "options": " ".join(f"-c {name}={value}" for name, value in parameters.items()),
    }
    for name in set(arguments) & set(url.query):
        del arguments[name]  # the URL takes precedence
    engine = create_engine(url, poolclass=NullPool, connect_args=arguments, hide_parameters=True)
    # Insert many rows with one statement also without RETURNING: fewer round trips.
    engine.dialect.use_insertmanyvalues_wo_returning = True
    if "options" in arguments:
        _support_poolers(engine, parameters)
    return engine


def _support_poolers(engine: Engine, parameters: Mapping[str, str]) -> None:
    """Let the engine work through a connection pooler, such as PgBouncer.

    A pooler refuses or ignores `options`, and in transaction mode each transaction gets another
    connection to the server, without the session's settings and prepared statements. If the
    parameters of a connection are not in force, they are set in each transaction, and nothing is
    prepared.
    """
    expected = dict(parameters)
    begin = "BEGIN" + "".join(
        f"; SET LOCAL {name} = '{value}'" for name, value in parameters.items()
    )
    if "default_transaction_read_only" in parameters:
        begin = begin.replace("BEGIN", "BEGIN READ ONLY", 1)

    @event.listens_for(engine, "do_connect")
    def _connect(dialect: Any, record: Any, given: Any, arguments: dict[str, Any]) -> Any:
        try:
            connection = dialect.connect(*given, **arguments)
        except dialect.loaded_dbapi.OperationalError as error:
            if "unsupported startup parameter" not in str(error):
                raise
        else:
            if _are_in_force(connection, expected):
                return connection
            connection.close()
        arguments = {name: value for name, value in arguments.items() if name != "options"}
        # In autocommit the driver begins no transaction; `_begin` below does.
        return dialect.connect(*given, **arguments, autocommit=True, prepare_threshold=None)

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        driver_connection: Any = connection.connection.driver_connection
        if driver_connection.autocommit:
            sql_batch.execute_outside(connection, begin)


def _are_in_force(connection: Any, parameters: Mapping[str, str]) -> bool:
    """Whether a new connection to PostgreSQL has these settings."""
    columns = ", ".join(f"current_setting('{name}') = %s" for name in parameters)
    with connection.cursor() as cursor:
        # A value is shown in the largest unit that fits, so 60s is shown as 1min.
        values = [_SHOWN.get(value, value) for value in parameters.values()]
        found = cursor.execute(f"SELECT {columns}", values).fetchone()
    connection.rollback()
    return all(found)


def is_in_transaction(connection: Connection) -> bool:
    """Whether SQLite is in a transaction; it must not be after a rollback."""
    driver_connection: Any = connection.connection.driver_connection
    return isinstance(driver_connection, sqlite3.Connection) and driver_connection.in_transaction


def interrupt(connection: Connection) -> None:
    """Make the work of another thread on `connection` fail soon.

    A statement of SQLite is interrupted, unless it waits for a lock. A connection to PostgreSQL is
    shut down, which also wakes a thread that waits for a dead server.
    """
    if connection.closed or connection.invalidated:
        return
    driver_connection: Any = connection.connection.driver_connection
    if isinstance(driver_connection, sqlite3.Connection):
        driver_connection.interrupt()
        return
    with socket.socket(fileno=os.dup(driver_connection.fileno())) as shared:
        shared.shutdown(socket.SHUT_RDWR)


def prepare_file(url: URL) -> None:
    """Create the folder and the file of a SQLite database, readable by the owner only.

    Raises SettingsError when that fails.
    """
    path = Path(str(url.database))
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except OSError as fault:
        raise SettingsError(
            f"the database file {path} can't be made or opened: {fault.strerror}"
        ) from None


def _need_psycopg() -> None:
    try:
        import psycopg  # noqa: F401  (optional)
    except ImportError:
        raise SettingsError(
            "database_url names PostgreSQL, which needs psycopg; install bitel[postgres]"
        ) from None


def _sqlite_engine(url: URL, role: Role) -> Engine:
    arguments = {"timeout": BUSY_TIMEOUT, "cached_statements": STATEMENTS}
    engine = create_engine(url, poolclass=NullPool, connect_args=arguments, hide_parameters=True)
    begin = "BEGIN" if role == "reader" else "BEGIN IMMEDIATE"

    @event.listens_for(engine, "connect")
    def _set_up(connection: sqlite3.Connection, record: Any) -> None:
        # Disables the driver's own BEGIN: a write transaction must take the write lock at its
        # begin, or it could fail halfway with SQLITE_BUSY.
        connection.isolation_level = None
        try:
            _use_wal(connection)
            for pragma in _SQLITE_PRAGMAS:
                connection.execute(pragma)
            # A migration rebuilds tables; foreign keys would delete rows that refer to them.
            connection.execute(f"PRAGMA foreign_keys = {'OFF' if role == 'migration' else 'ON'}")
            connection.execute(f"PRAGMA query_only = {'ON' if role == 'reader' else 'OFF'}")
        except sqlite3.Error:
            # An open connection would keep others read-only, see `database._Writer._reopen`.
            connection.close()
            raise

    sql_batch.begin_with(engine, begin)
    return engine


def _use_wal(connection: sqlite3.Connection) -> None:
    # The change to WAL does not wait for other connections, unlike statements.
    give_up = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() > give_up:
                raise
            time.sleep(0.02)
        else:
            return
