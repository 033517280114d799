"""`bitel pause` and `bitel resume`: no new attempts of the service, a dialer or a project."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitel.cli.opening import find_project, open_database, read_clock
from bitel.cli.options import ConfigOption, JsonOption
from bitel.errors import ConflictError, InvalidServerError, NotFoundError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from bitel.settings import Settings
    from bitel.store.pausing import Scope

DialerOption = Annotated[
    str | None, typer.Option("--dialer", metavar="ID", help="Only this dialer.")
]
ProjectOption = Annotated[
    str | None, typer.Option("--project", metavar="PROJECT", help="Only this project's calls.")
]


def pause(
    dialer: DialerOption = None,
    project: ProjectOption = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, for the log and clients.")] = "",
    listed: Annotated[bool, typer.Option("--list", help="Show what is paused instead.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Begin no new attempts, of the whole service unless a dialer or project is named.

    It takes effect within a second and holds until `bitel resume`, also over restarts. Calls are
    accepted and wait, and expire as ever; attempts under way go on.
    """
    from bitel.store import pausing

    if listed:
        _show(config, as_json)
        return

    def work(conn: Connection) -> bool:
        scope, target = _target(conn, settings, dialer, project)
        why = reason or "paused by the operator"
        return pausing.add(conn, pausing.Pause(scope, target, why, now))

    with open_database(config) as (settings, database):
        now = read_clock(settings)()
        if not database.write_now(work):
            raise ConflictError("it is paused already; `bitel pause --list` says since when")


def resume(
    dialer: DialerOption = None,
    project: ProjectOption = None,
    drop_open: Annotated[
        bool,
        typer.Option(
            "--drop-open",
            help="End calls that were open at the time of the backup as UNKNOWN: they may have "
            "been made since.",
        ),
    ] = False,
    keep_open: Annotated[
        bool,
        typer.Option(
            "--keep-open", help="Dial them, also those that have been made since the backup."
        ),
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Begin attempts again, of the whole service unless a dialer or project is named.

    Where the service is paused because its database is from a backup, one of --drop-open and
    --keep-open must be chosen.
    """
    from bitel.store import pausing

    if drop_open and keep_open:
        raise typer.BadParameter("choose one of --drop-open and --keep-open")
    with open_database(config) as (settings, database):
        clock = read_clock(settings)
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
        return "project", find_project(conn, project).id
    if dialer is not None:
        if settings.dialer(dialer) is None:
            names = ", ".join(each.id for each in settings.dialers) or "none"
            raise InvalidServerError(f"the settings have no dialer {dialer!r}; there are: {names}")
        return "dialer", dialer
    return "service", ""


def _show(config: Path | None, as_json: bool) -> None:
    from bitel.store import pausing, projects

    with open_database(config) as (settings, database):
        date = read_clock(settings).date
        found = database.read_now(pausing.listing)
        names = {each.id: each.name for each in database.read_now(projects.listing)}
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
        print(json.dumps(rows, ensure_ascii=False))
        return
    for row, each in zip(rows, found, strict=True):
        since = datetime.fromtimestamp(date(each.at), UTC).strftime("%Y-%m-%d %H:%M:%S")
        print(f"{row['scope']:<8} {row['target']:<16} since {since}: {row['reason']}")
