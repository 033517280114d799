"""Shared parts of commands: options, access to the database and the service, output."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

from typer import Argument, BadParameter, Option

from bitel.errors import InvalidRequestError, InvalidServerError, NotFoundError, SettingsError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from bitel.api.auth import TokenSigner
    from bitel.client import Client
    from bitel.settings import Settings
    from bitel.steady_clock import SteadyClock
    from bitel.store.database import Database
    from bitel.store.projects import Project

T = TypeVar("T")

_API_PATH: Final = re.compile(r"/api/v\d+/?$")

Config = Annotated[
    Path | None,
    Option("--config", metavar="FILE", help="The settings file; BITEL_CONFIG by default."),
]
Json = Annotated[bool, Option("--json", help="Print the result as JSON.")]
Yes = Annotated[bool, Option("--yes", help="Do not ask whether it is meant.")]
Full = Annotated[bool, Option("--full", help="Show each message as a whole.")]
Voice = Annotated[
    str, Option(metavar="FILE_OR_ID", help="What to play: an audio file, or a recording's id.")
]
Retries = Annotated[int | None, Option(metavar="N", help="Calls again after busy or no answer.")]
Time = Annotated[
    str | None,
    Option(metavar="TIME", help="As 2026-11-28T09:00+03:30, or in Unix seconds."),
]
Menu = Annotated[
    Path | None,
    Option(metavar="FILE", help="A JSON file that says what keys do, as `menu` of the API."),
]
Machines = Annotated[
    Literal["off", "flag", "hangup", "message"] | None,
    Option(metavar="MODE", help="If a machine answers: off, flag, hangup or message."),
]
MachineVoice = Annotated[
    str | None,
    Option(metavar="FILE_OR_ID", help="With --machine-detection message: what a machine gets."),
]
Column = Annotated[
    str | None,
    Option(metavar="NAME", help="The column of the numbers, by its heading; found if left out."),
]
Id = Annotated[str, Argument(metavar="ID", show_default=False)]
Number = Annotated[str, Argument(metavar="NUMBER", show_default=False)]
ProjectName = Annotated[
    str, Argument(metavar="PROJECT", help="A project's name or id.", show_default=False)
]


@contextmanager
def open_database(
    config: Path | None, *, create: bool = False
) -> Iterator[tuple[Settings, Database]]:
    """Load the settings and open their database, whether or not the service is running.

    With `create` a missing database is created and an old one upgraded; otherwise it must exist
    with the newest schema. Raises SettingsError.
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


def open_signer(settings: Settings, database: Database) -> TokenSigner:
    """The signer of tokens, with the keys of the database; the first one is made if there is none.

    Raises SettingsError.
    """
    from bitel.api import signing_keys

    secret = settings.signing_key_secret.get_secret_value()
    return signing_keys.open_signer(database, settings.data_dir, secret, time.time)


def read_clock(settings: Settings) -> SteadyClock:
    """Return the clock of the service with these settings, whether or not it is running."""
    from bitel.steady_clock import SteadyClock

    return SteadyClock.read(settings.data_dir)


def read_database(
    config: Path | None, query: Callable[[Connection], T]
) -> tuple[T, Callable[[float], float]]:
    """Return the result of `query`, and the function that converts a stored time to Unix time."""
    with open_database(config) as (settings, database):
        return database.read_now(query), read_clock(settings).date


def find_project(conn: Connection, name_or_id: str) -> Project:
    """Return the project with this name or id. Raises NotFoundError."""
    from bitel.store import projects

    project = projects.find(conn, name_or_id)
    if project is None:
        raise NotFoundError(f"no project is named {name_or_id!r}, or has that id")
    return project


def read_menu(file: Path | None) -> dict[str, Any] | None:
    """Return the menu in a JSON file. Raises InvalidRequestError."""
    if file is None:
        return None
    try:
        menu = json.loads(file.read_bytes())
    except (OSError, ValueError) as fault:
        raise InvalidRequestError(f"--menu: {file} can't be read as JSON: {fault}") from None
    if not isinstance(menu, dict):
        raise InvalidRequestError(f'--menu: {file} must hold an object, as {{"keys": {{…}}}}')
    return menu


def check_server(settings: Settings, server_id: str) -> str:
    """Return `server_id` if the settings have this dialer, or this group of dialers.

    Raises InvalidServerError.
    """
    return server_id if server_id in settings.server_ids else check_dialer(settings, server_id)


def check_dialer(settings: Settings, dialer_id: str) -> str:
    """Return `dialer_id` if the settings have this dialer. Raises InvalidServerError."""
    if settings.dialer(dialer_id) is None:
        names = ", ".join(each.id for each in settings.dialers) or "none"
        raise InvalidServerError(f"the settings have no dialer {dialer_id!r}; there are: {names}")
    return dialer_id


def open_client(config: Path | None) -> Client:
    """Return a client of the service at `BITEL_URL`, with `BITEL_TOKEN`.

    Without `BITEL_URL` it uses the address in the settings. Raises SettingsError.
    """
    from bitel.client import Client

    token = os.environ.get("BITEL_TOKEN", "").strip()
    if not token.isascii() or not token.isprintable() or not token:
        raise SettingsError(
            "BITEL_TOKEN must hold a token, as `bitel token create PROJECT` prints it"
        )
    url = os.environ.get("BITEL_URL")
    if url and (not url.lower().startswith(("http://", "https://")) or _API_PATH.search(url)):
        raise SettingsError(
            f"BITEL_URL must be an address such as http://127.0.0.1:8080, without the path of "
            f"the API, not {url!r}"
        )
    return Client(token, url or _local_url(config))


def _local_url(config: Path | None) -> str:
    from bitel import settings as all_settings

    http = all_settings.load(config).http
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(http.host, http.host)
    return f"http://[{host}]:{http.port}" if ":" in host else f"http://{host}:{http.port}"


def read_time(option: str, written: str | None) -> datetime | float | None:
    """Return the time that an option says. Raises BadParameter, which names the option."""
    if written is None:
        return None
    try:
        if written.isascii() and written.isdigit():
            return int(written)
        at = datetime.fromisoformat(written)
    except ValueError:
        raise BadParameter(
            f"{written!r} must be a time such as 2026-11-28T09:00+03:30, or Unix seconds",
            param_hint=option,
        ) from None
    if at.utcoffset() is None:
        raise BadParameter(
            f"{written!r} has no time zone; write its offset, as {written}+03:30, or Z for UTC",
            param_hint=option,
        )
    return at


def print_json(value: Any) -> None:
    """Print `value` as one line of JSON."""
    print(json.dumps(value, ensure_ascii=False))


@contextmanager
def transfer_bar(name: str, total: int | None) -> Iterator[Callable[[int], None] | None]:
    """Yield a function that advances a progress bar by bytes; None if stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(name, total=total)
        yield lambda size: progress.advance(bar, size)


def utc(at: float, form: str = "%Y-%m-%d %H:%M:%S") -> str:
    """Unix seconds as a date and time in UTC."""
    return datetime.fromtimestamp(at, UTC).strftime(form)
