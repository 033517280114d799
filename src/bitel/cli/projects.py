"""`bitel project`: who may place calls."""

from __future__ import annotations

import json
import time
from decimal import Decimal, InvalidOperation
from typing import Annotated

import typer

from bitel.cli.opening import find_project, open_database
from bitel.cli.options import ConfigOption, JsonOption, ProjectArgument

UNLIMITED = "unlimited"

app = typer.Typer(help="Projects: who may place calls, and on what balance.", no_args_is_help=True)


def _balance(text: str) -> Decimal | None:
    if text == UNLIMITED:
        return None
    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or abs(amount) >= Decimal(10) ** 14:
        raise typer.BadParameter(f"must be an amount such as 1500.50, or {UNLIMITED}")
    return amount


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)],
    config: ConfigOption = None,
) -> None:
    """Create a project and print its id."""
    from bitel.store import projects

    with open_database(config) as (_, database):
        project = database.write_now(lambda conn: projects.create(conn, name, time.time()))
    print(project.id)


@app.command("set")
def set_(
    project: ProjectArgument,
    balance: Annotated[
        str | None,
        typer.Option(metavar="N", help=f"What it may still spend, or {UNLIMITED}."),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Change a project."""
    from sqlalchemy import Connection

    from bitel.store import projects

    if balance is None:
        raise typer.BadParameter("say what to change, as in --balance 1000")
    amount = _balance(balance)

    def work(conn: Connection) -> None:
        found = find_project(conn, project)
        projects.set_balance(conn, found.id, amount, time.time())

    with open_database(config) as (_, database):
        database.write_now(work)


@app.command("list")
def list_(as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """List the projects."""
    from bitel.store import projects

    with open_database(config) as (_, database):
        listing = database.read_now(projects.listing)
    if as_json:
        rows = [
            {
                "id": each.id,
                "name": each.name,
                "balance": None if each.balance is None else float(each.balance),
            }
            for each in listing
        ]
        print(json.dumps(rows, ensure_ascii=False))
        return
    for each in listing:
        balance = UNLIMITED if each.balance is None else f"{each.balance:f}"
        print(f"{each.id}  {balance:>16}  {each.name}")
