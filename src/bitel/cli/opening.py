"""What commands work on: the database that the settings name, or a running service."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bitel.errors import NotFoundError, SettingsError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from bitel.client import Client
    from bitel.settings import Settings
    from bitel.steady_clock import SteadyClock
    from bitel.store.database import Database
    from bitel.store.projects import Project


@contextmanager
def open_database(
    config: Path | None, *, create: bool = False
) -> Iterator[tuple[Settings, Database]]:
    """The settings, and their database, with the service running or not.

    `create` makes the database where there is none, or upgrades it, and says on stderr where it
    is; otherwise it must be there, with the newest schema. Raises SettingsError.
    """
    from bitel import settings as all_settings
    from bitel.store import engines, migrate
    from bitel.store.database import Database

    settings = all_settings.load(config)
    url = settings.effective_database_url
    if create:
        if migrate.upgrade(url):
            place = engines.place(engines.parse_url(url))
            print(f"bitel: created the database {place}", file=sys.stderr)
        database = Database.open(url)
    else:
        database = migrate.open_current(url)
    try:
        yield settings, database
    finally:
        database.close()


def read_clock(settings: Settings) -> SteadyClock:
    """The clock of the service that has these settings, running or not."""
    from bitel.steady_clock import SteadyClock

    return SteadyClock.read(settings.data_dir)


def find_project(conn: Connection, name_or_id: str) -> Project:
    """The project of that name or id, or NotFoundError."""
    from bitel.store import projects

    project = projects.find(conn, name_or_id)
    if project is None:
        raise NotFoundError(f"no project is named {name_or_id!r}, or has that id")
    return project


def open_client(config: Path | None) -> Client:
    """A client of the service at `BITEL_URL`, with `BITEL_TOKEN`.

    Without `BITEL_URL` the service is looked for where the settings let it listen.
    """
    from bitel.client import Client

    token = os.environ.get("BITEL_TOKEN", "").strip()
    if not token.isascii() or not token.isprintable() or not token:
        raise SettingsError(
            "BITEL_TOKEN must hold a token, as `bitel token create PROJECT` prints it"
        )
    return Client(token, os.environ.get("BITEL_URL") or _local_url(config))


def _local_url(config: Path | None) -> str:
    from bitel import settings as all_settings

    http = all_settings.load(config).http
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(http.host, http.host)
    return f"http://[{host}]:{http.port}" if ":" in host else f"http://{host}:{http.port}"
