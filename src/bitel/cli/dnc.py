"""Commands about the do-not-call lists of projects: `bitel dnc`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from bitel.cli import common
from bitel.errors import ConflictError, NotFoundError

if TYPE_CHECKING:
    from sqlalchemy import Connection

PAGE = 1000

app = typer.Typer(help="Do-not-call: numbers that a project never calls.", no_args_is_help=True)


@app.command()
def add(project: common.ProjectName, number: common.Number, config: common.Config = None) -> None:
    """Never call a number again; calls to it end as ERROR."""
    _change(project, number, config, add=True)


@app.command()
def remove(
    project: common.ProjectName, number: common.Number, config: common.Config = None
) -> None:
    """Let a number be called again."""
    _change(project, number, config, add=False)


@app.command("list")
def list_(
    project: common.ProjectName, as_json: common.Json = False, config: common.Config = None
) -> None:
    """List the numbers, one a line."""
    from bitel.store import do_not_call

    def work(conn: Connection) -> list[str]:
        project_id = common.find_project(conn, project).id
        numbers: list[str] = []
        while page := do_not_call.listing(conn, project_id, numbers[-1] if numbers else "", PAGE):
            numbers += page
        return numbers

    with common.open_database(config) as (_, database):
        found = database.read_now(work)
    if as_json:
        common.print_json(found)
        return
    for number in found:
        print(number)


def _change(project: str, number: str, config: Path | None, *, add: bool) -> None:
    from bitel.domain.phone_numbers import to_e164
    from bitel.store import do_not_call

    with common.open_database(config) as (settings, database):
        # An entry can be removed even if it is not a valid number any more.
        is_stored = not add and re.fullmatch(r"\+[0-9]{1,15}", number) is not None
        e164 = number if is_stored else to_e164(number, settings.region, settings.extra_prefixes)

        def work(conn: Connection) -> bool:
            change = do_not_call.add if add else do_not_call.remove
            return change(conn, common.find_project(conn, project).id, e164)

        if not database.write_now(work):
            if add:
                raise ConflictError(f"{e164} is on the list of {project!r} already")
            raise NotFoundError(f"{e164} is not on the list of {project!r}")
