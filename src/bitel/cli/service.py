"""Commands to set up and operate the service: `bitel init`, `serve`, `check-config` and others."""

from __future__ import annotations

import asyncio
import enum
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from typer import Argument, Option

from bitel.cli import common
from bitel.errors import BitelError, ConflictError, NotFoundError, SettingsError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from bitel.settings import Settings
    from bitel.store.pausing import Pause, Scope

TEMPLATE: Final = """\
# Settings of bitel. Every one is described in docs/settings.md; `bitel check-config` checks them.
data_dir = "bitel-data"              # relative to the folder of this file

[http]
host = "127.0.0.1"
port = 8080

# Your carrier. Remove the # in front of each line, and write your own values.
# [[dialers]]
# id = "main"                        # what clients name as serverId
# trunks = ["sip:203.0.113.10:5060"] # the carrier's addresses, tried in order
# username = ""                      # digest credentials, where the carrier wants them
# password_file = "carrier-password" # or password = "..."
# caller_id = "02191000000"
# bind = "0.0.0.0:5070"              # where SIP is spoken from
# public_address = ""                # your public IP address, behind NAT
# rtp_ports = "10000-19999"
# max_channels = 100
# calls_per_second = 10

# Prices by prefix; without any, calls cost nothing.
# [[tariff]]
# prefix = "+98"
# per_minute = 90
"""


def init(config: common.Config = None) -> None:
    """Make a settings file, where there is none, and the database; say where each of them is.

    What is there already stays as it is, except that an older database is upgraded.
    """
    from bitel.settings import CONFIG_VARIABLE, DEFAULT_FILE

    named = config or Path(os.environ.get(CONFIG_VARIABLE) or DEFAULT_FILE)
    made = _write(named)
    typer.echo(f"settings  {named.absolute()}{' (created)' if made else ''}")
    with common.open_database(named, create=True) as (settings, database):
        from bitel.store import engines

        common.open_signer(settings, database)
        typer.echo(f"data_dir  {settings.data_dir}")
        url = engines.parse_url(settings.effective_database_url)
        typer.echo(f"database  {engines.place(url)}")


def _write(path: Path) -> bool:
    """Write the template unless the file exists, with mode 0600, as it will have passwords."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return False
    except OSError as fault:
        raise BitelError(
            f"the settings file {path.absolute()} can't be made: {fault.strerror}"
        ) from None
    with os.fdopen(descriptor, "w") as file:
        file.write(TEMPLATE)
    return True


class Only(enum.StrEnum):
    """The half of the service to run."""

    API = "api"
    DIALER = "dialer"


def serve(
    config: Annotated[Path | None, Option(help="The settings file.")] = None,
    only: Annotated[Only | None, Option(help="Run only the HTTP API, or only the dialers.")] = None,
    take_over: Annotated[
        bool,
        Option(
            "--take-over", help="Take the dialers from a process that runs them, without waiting."
        ),
    ] = False,
    workers: Annotated[
        int, Option(help="With --only dialer: processes that dial on this machine.", min=1, max=64)
    ] = 1,
    slot: Annotated[str, Option(hidden=True)] = "1/1",
    ready_fd: Annotated[int, Option(hidden=True)] = -1,
) -> None:
    """Run the service in the foreground, until SIGTERM lets its calls finish."""
    if take_over and only is Only.API:
        raise typer.BadParameter("--only api runs no dialer that could be taken over")
    if workers > 1 and only is not Only.DIALER:
        raise typer.BadParameter("--workers is for `serve --only dialer`")
    # SIGHUP must not end the process before the service has installed its handler.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    import structlog
    import uvloop

    from bitel import service, settings
    from bitel.observability import logging

    loaded = settings.load(config)
    logging.configure(loaded.log_level, loaded.log_json)
    place = settings.WorkerSlot.parse(slot)
    if workers > 1:
        _check_workers(workers, loaded)
        arguments = [f"--config={config}"] if config is not None else []
        supervisor = service.Supervisor(workers, arguments + ["--take-over"] * take_over)
        raise typer.Exit(asyncio.run(supervisor.run()))
    if place.of > 1:
        service.end_with_parent()
    if unknown := settings.unknown_variables():
        structlog.get_logger(__name__).warning("unknown_variables", names=", ".join(unknown))
    try:
        uvloop.run(
            service.serve(
                settings.settings_of(place, loaded),
                only.value if only else "all",
                take_over,
                lambda: settings.settings_of(place, settings.load(config)),
                place,
                ready_fd,
            )
        )
    except BitelError as fault:
        if not loaded.log_json:
            raise
        structlog.get_logger(__name__).error("service_failed", fault=str(fault))
        raise typer.Exit(1) from None


def _check_workers(workers: int, settings: Settings) -> None:
    """Raise SettingsError where so many workers can't run with these settings."""
    from bitel.settings import WorkerSlot, settings_of
    from bitel.store import engines

    if engines.is_sqlite(engines.parse_url(settings.effective_database_url)):
        raise SettingsError(
            "--workers needs a database that processes can share: set database_url to a PostgreSQL"
        )
    for number in range(1, workers + 1):
        settings_of(WorkerSlot(number, workers), settings)


def check_config(config: Annotated[Path | None, Option(help="The settings file.")] = None) -> None:
    """Check the settings, and show what they come to. Nothing is opened or created.

    Exit status 0 where the service could start with them, as far as files and addresses allow.
    """
    from bitel import settings
    from bitel.dialer.config import sip_trunk_config
    from bitel.notifications.sender import check_notifications
    from bitel.store import engines

    file = settings.settings_file(config)
    loaded = settings.load(config)
    database = engines.place(engines.parse_url(loaded.effective_database_url))
    rows = [
        ("settings", str(file.absolute()) if file else "no file: defaults and the environment"),
        ("data_dir", str(loaded.data_dir)),
        ("database", database),
        ("http", f"{loaded.http.host}:{loaded.http.port}"),
        ("tariff", f"{len(loaded.tariff)} lines" if loaded.tariff else "none: calls cost nothing"),
    ]
    # The service checks these only at its start.
    check_notifications(loaded.notifications)
    loaded.price_list()
    for dialer in loaded.dialers:
        sip_trunk_config(dialer, loaded.region)
        about = f"{', '.join(dialer.trunks)}; {dialer.max_channels} channels"
        rows.append(("dialer", f"{dialer.id}: {about}, {dialer.calls_per_second:g} calls a second"))
    for name, value in rows:
        print(f"{name:<10}  {value}")
    if unknown := settings.unknown_variables():
        print(f"bitel: these variables name no setting: {', '.join(unknown)}", file=sys.stderr)
    if not loaded.dialers:
        print("bitel: there are no [[dialers]], so no call can be placed", file=sys.stderr)


def servers(as_json: common.Json = False, config: common.Config = None) -> None:
    """List the dialers that calls may be placed over, and whether each is up."""
    with common.open_client(config) as client:
        found = client.servers()
    if as_json:
        common.print_json(found)
        return
    for server in found:
        state = "up" if server["up"] else "down"
        paused = f"  paused: {server['paused']}" if server["paused"] else ""
        print(f"{server['id']:<16}  {state}{paused}")


def backup(
    folder: Annotated[
        Path, Argument(metavar="DIR", show_default=False, help="A folder that is new or empty.")
    ],
    config: common.Config = None,
) -> None:
    """Copy the database and the recordings, with the service running or not.

    A service that is started with the copy is paused until `bitel resume --drop-open` or
    `--keep-open`: calls that were open at this moment may have been made by then.
    """
    from bitel.maintenance.backup import make_backup
    from bitel.store import engines

    with common.open_database(config) as (settings, _):
        made = make_backup(
            folder,
            settings.data_dir,
            engines.parse_url(settings.effective_database_url),
            local_recordings=not settings.storage_url.get_secret_value(),
            now=common.read_clock(settings)(),
        )
    typer.echo(
        f"{made.folder}: {made.database.name} and {made.recordings} files of recordings, "
        f"{made.bytes / 1024 / 1024:.1f} MiB"
    )
    if settings.storage_url.get_secret_value():
        typer.echo("recordings are in the object store, and not copied", err=True)


DialerOption = Annotated[str | None, Option("--dialer", metavar="ID", help="Only this dialer.")]
ProjectOption = Annotated[
    str | None, Option("--project", metavar="PROJECT", help="Only this project's calls.")
]


def pause(
    dialer: DialerOption = None,
    project: ProjectOption = None,
    reason: Annotated[str, Option(metavar="TEXT", help="Why, for the log and clients.")] = "",
    listed: Annotated[bool, Option("--list", help="Show what is paused instead.")] = False,
    as_json: common.Json = False,
    config: common.Config = None,
) -> None:
    """Begin no new attempts, of the whole service unless a dialer or project is named.

    It takes effect within a second and holds until `bitel resume`, also over restarts. Calls are
    accepted and wait, and expire as ever; attempts under way go on.
    """
    from bitel.store import pausing

    if listed:
        _show_pauses(config, as_json)
        return

    def work(conn: Connection) -> bool:
        scope, target = _target(conn, settings, dialer, project)
        why = reason or "paused by the operator"
        return pausing.add(conn, pausing.Pause(scope, target, why, now))

    with common.open_database(config) as (settings, database):
        now = common.read_clock(settings)()
        if not database.write_now(work):
            raise ConflictError("it is paused already; `bitel pause --list` says since when")


def resume(
    dialer: DialerOption = None,
    project: ProjectOption = None,
    drop_open: Annotated[
        bool,
        Option(
            "--drop-open",
            help="End calls that were open at the time of the backup as UNKNOWN: they may have "
            "been made since.",
        ),
    ] = False,
    keep_open: Annotated[
        bool,
        Option("--keep-open", help="Dial them, also those that have been made since the backup."),
    ] = False,
    config: common.Config = None,
) -> None:
    """Begin attempts again, of the whole service unless a dialer or project is named.

    Where the service is paused because its database is from a backup, one of --drop-open and
    --keep-open must be chosen.
    """
    from bitel.store import pausing

    if drop_open and keep_open:
        raise typer.BadParameter("choose one of --drop-open and --keep-open")
    with common.open_database(config) as (settings, database):
        clock = common.read_clock(settings)
        scope, target = database.read_now(lambda conn: _target(conn, settings, dialer, project))
        found = database.read_now(lambda conn: pausing.find(conn, scope, target))
        if found is None:
            raise NotFoundError("it is not paused; `bitel pause --list` shows what is")
        dropped = 0
        if found.is_restored:
            if not drop_open and not keep_open:
                raise ConflictError(
                    "the database is from a backup, so calls that are open in it may have been "
                    "made since; choose --drop-open to end them as UNKNOWN, or --keep-open to "
                    "dial them"
                )
            while drop_open and (
                ended := database.write_now(lambda conn: pausing.drop_open(conn, found.at, clock()))
            ):
                dropped += ended
        elif drop_open:
            raise typer.BadParameter("--drop-open is for a database from a backup")
        database.write_now(lambda conn: pausing.remove(conn, scope, target))
    if dropped:
        typer.echo(f"{dropped} calls that were open at the time of the backup ended as UNKNOWN")


def _target(
    conn: Connection, settings: Settings, dialer: str | None, project: str | None
) -> tuple[Scope, str]:
    if dialer is not None and project is not None:
        raise typer.BadParameter("name a dialer or a project, or neither for the whole service")
    if project is not None:
        return "project", common.find_project(conn, project).id
    if dialer is not None:
        return "dialer", common.check_dialer(settings, dialer)
    return "service", ""


def _show_pauses(config: Path | None, as_json: bool) -> None:
    from bitel.store import pausing, projects

    def query(conn: Connection) -> tuple[list[Pause], dict[str, str]]:
        return pausing.listing(conn), {each.id: each.name for each in projects.listing(conn)}

    (found, names), date = common.read_database(config, query)
    rows = [
        {
            "scope": each.scope,
            "target": names.get(each.target, each.target),
            "reason": each.reason,
            "since": int(date(each.at)),
            "isRestored": each.is_restored,
        }
        for each in found
    ]
    if as_json:
        common.print_json(rows)
        return
    for row, each in zip(rows, found, strict=True):
        since = common.utc(date(each.at))
        print(f"{row['scope']:<8} {row['target']:<16} since {since}: {row['reason']}")
