"""Commands about do-not-call lists: `bitel dnc`.

With a PROJECT they work on the database, as the operator's commands do; without one they are
clients of the HTTP API, for the project of the token.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument

from bitel.cli import common
from bitel.cli.lists import show_invalid
from bitel.errors import ConflictError, NotFoundError

if TYPE_CHECKING:
    from sqlalchemy import Connection

PAGE = 1000

app = typer.Typer(
    help="Do-not-call: numbers that a project never calls. With PROJECT in the database of this "
    "machine, without it over the HTTP API, for the project of BITEL_TOKEN.",
    no_args_is_help=True,
)

_ProjectAndNumber = Annotated[
    list[str],
    Argument(
        metavar="[PROJECT] NUMBER", help="A project's name or id, and a number.", show_default=False
    ),
]


@app.command()
def add(
    words: _ProjectAndNumber,
    as_json: common.Json = False,
    config: common.Config = None,
) -> None:
    """Never call a number again; calls to it end as ERROR."""
    project, number = _split(words)
    if project is not None:
        _change(project, number, config, add=True)
        if as_json:
            common.print_json({"added": 1, "alreadyListed": 0})
        return
    with common.open_client(config) as client:
        done = client.add_do_not_call([number])
    if not done["added"]:
        raise ConflictError(f"{number} is on the list already")
    if as_json:
        common.print_json(done)


@app.command()
def remove(
    words: _ProjectAndNumber,
    as_json: common.Json = False,
    config: common.Config = None,
) -> None:
    """Let a number be called again."""
    project, number = _split(words)
    if project is not None:
        e164 = _change(project, number, config, add=False)
    else:
        with common.open_client(config) as client:
            e164 = client.remove_do_not_call(number)["phoneNumber"]
    if as_json:
        common.print_json({"phoneNumber": e164})


@app.command("import")
def import_(
    file: Annotated[
        Path, Argument(metavar="FILE", exists=True, dir_okay=False, show_default=False)
    ],
    column: common.Column = None,
    as_json: common.Json = False,
    config: common.Config = None,
) -> None:
    """Never call the numbers of a CSV or XLSX file again, over the HTTP API.

    Fails if a row has no valid number; the others are on the list then.
    """
    with (
        common.open_client(config) as client,
        common.transfer_bar(file.name, file.stat().st_size) as progress,
    ):
        done = client.import_do_not_call(file, column=column, progress=progress)
    if as_json:
        common.print_json(done)
    else:
        print(f"{done['added']} added, {done['alreadyListed']} on the list before")
        show_invalid(done["invalid"], done["invalidCount"])
    if done["invalidCount"]:
        print(f"bitel: {done['invalidCount']} rows of {file} have no valid number", file=sys.stderr)
        raise typer.Exit(1)


@app.command("list")
def list_(
    project: Annotated[
        str | None,
        Argument(metavar="[PROJECT]", help="A project's name or id.", show_default=False),
    ] = None,
    as_json: common.Json = False,
    config: common.Config = None,
) -> None:
    """List the numbers, one a line."""
    if project is None:
        with common.open_client(config) as client:
            found = list(client.do_not_call(PAGE))
    else:
        found = _stored(project, config)
    if as_json:
        common.print_json(found)
        return
    for number in found:
        print(number)


def _split(words: list[str]) -> tuple[str | None, str]:
    """The project, if one is named, and the number."""
    if len(words) > 2:
        raise typer.BadParameter("give a number, or a project and a number")
    return (words[0] if len(words) == 2 else None), words[-1]


def _stored(project: str, config: Path | None) -> list[str]:
    """The numbers of a project in the database."""
    from bitel.store import do_not_call

    def work(conn: Connection) -> list[str]:
        project_id = common.find_project(conn, project).id
        numbers: list[str] = []
        while page := do_not_call.listing(conn, project_id, numbers[-1] if numbers else "", PAGE):
            numbers += page
        return numbers

    with common.open_database(config) as (_, database):
        return database.read_now(work)


def _change(project: str, number: str, config: Path | None, *, add: bool) -> str:
    """Change the list of a project in the database; returns the number in E.164."""
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
    return e164
