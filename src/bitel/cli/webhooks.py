"""`bitel webhook`: what projects' receivers were told, and the secrets that sign it."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitel.cli.opening import find_project, open_database
from bitel.cli.options import ConfigOption, JsonOption, ProjectArgument
from bitel.errors import NotFoundError

if TYPE_CHECKING:
    from sqlalchemy import Connection

app = typer.Typer(
    help="Webhooks: what receivers were told, and the secrets that sign it.", no_args_is_help=True
)


@app.command()
def secret(
    project: ProjectArgument,
    rotate: Annotated[
        bool,
        typer.Option("--rotate", help="Make a new one; the old one signs no more from now on."),
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Print the secret that a project's events are signed with, and nothing else."""
    from bitel.store import projects
    from bitel.webhooks.signing import new_secret

    def work(conn: Connection) -> str:
        found = find_project(conn, project)
        if found.webhook_secret and not rotate:
            return found.webhook_secret
        if not found.webhook_url:
            raise NotFoundError(
                f"the project {found.name!r} has no webhook; "
                "set one with bitel project set PROJECT --webhook URL"
            )
        made = new_secret()
        projects.change(conn, found.id, webhook_secret=made)
        return made

    with open_database(config) as (_, database):
        print(database.write_now(work))
