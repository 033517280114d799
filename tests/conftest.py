"""Fixtures that more than one room uses: a clock, and empty databases of both kinds.

`database` and `database_url` run a test twice, on a SQLite file and on a PostgreSQL server. The
server is started once per run, in a temporary folder; or set BITEL_TEST_POSTGRES to
the URL of one, whose user may create databases. Each test finds its database migrated and empty.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from hypothesis import settings
from sqlalchemy import URL, make_url

from bitel.store import migrate
from bitel.store.database import Database
from bitel.store.schema import metadata, schema_compatibility
from tests.support.clocks import FakeClock
from tests.support.postgres_server import new_postgres

KINDS = ("sqlite", "postgresql")

# A run starts several hundred processes, and each would compile everything anew.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# How long an example takes is the machine's affair, and it may be busy.
settings.register_profile("bitel", deadline=None)
settings.load_profile("bitel")


SLOW = ("e2e", "chaos")
"""Folders whose tests wait for processes, and should not be the last ones of a run."""
SLOWEST = ("test_campaign.py", "test_crash.py", "test_chaos.py", "test_state_webhooks.py",
           "test_backup.py", "test_packet_loss.py")  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let each process of a run begin with its part of the slow tests.

    Each gets an equal part of the list in one piece, and takes over from others when it is done.
    """
    folder = Path(__file__).parent
    slow: list[pytest.Item] = []
    quick: list[pytest.Item] = []
    for item in items:
        is_slow = item.path.is_relative_to(folder) and item.path.parent.name in SLOW
        (slow if is_slow else quick).append(item)
    slow.sort(key=lambda item: item.path.name not in SLOWEST)
    parts = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    items[:] = []
    for part in range(parts):
        begin, end = len(quick) * part // parts, len(quick) * (part + 1) // parts
        items += [*slow[part::parts], *quick[begin:end]]


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
    # Not in pytest's own folder: the server may run as another user, and each start of pytest
    # shuts other users out of there.
    folder = Path(tempfile.mkdtemp(prefix="bitel-postgres-"))
    server = new_postgres(folder / "data")
    url = make_url(server.get_uri()).set(drivername="postgresql")
    # Nothing here outlives the run, so nothing has to reach the disk.
    _administer(
        url,
        "ALTER SYSTEM SET fsync = off",
        "ALTER SYSTEM SET full_page_writes = off",
        "SELECT pg_reload_conf()",
    )
    yield url
    server.cleanup()
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres_shared(postgres: URL) -> Iterator[URL]:
    """A migrated database for one test after the other: emptying is faster than creating."""
    name = f"bitel_{uuid.uuid4().hex}"
    _administer(postgres, f"CREATE DATABASE {name}")
    url = postgres.set(database=name)
    migrate.upgrade(_text(url))
    yield url
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
def postgres_url(postgres_shared: URL) -> Iterator[str]:
    """A migrated, empty PostgreSQL database."""
    yield _text(postgres_shared)
    _administer(
        postgres_shared,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
        f"UPDATE alembic_version SET version_num = '{migrate.NEWEST}'",
        *(
            f"DELETE FROM {table.name}"
            for table in reversed(metadata.sorted_tables)
            if table is not schema_compatibility
        ),
        "UPDATE schema_compatibility SET usable_since = '0009'",
    )


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


def _administer(url: URL, *statements: str) -> None:
    with psycopg.connect(_text(url), autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


def _text(url: URL) -> str:
    return url.render_as_string(hide_password=False)
