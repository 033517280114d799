"""Commands about the API tokens of projects: `bitel token`."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from bitel.cli import common
from bitel.errors import NotFoundError

if TYPE_CHECKING:
    from bitel.store.tokens import TokenRow

DAY = 86_400.0
"""Seconds."""
DAY_FORMAT = "%Y-%m-%d"

app = typer.Typer(help="Tokens: the keys that clients carry.", no_args_is_help=True)


@app.command()
def create(
    project: common.ProjectName,
    expires: Annotated[
        float | None, Option(metavar="DAYS", min=0.001, max=36_500, help="Days it is good for.")
    ] = None,
    config: common.Config = None,
) -> None:
    """Create a token for a project and print it. It is good until revoked, or for DAYS."""
    from sqlalchemy import Connection

    from bitel.domain.ids import new_id
    from bitel.store import tokens

    now = time.time()
    token_id = new_id(now)
    # A JWT has whole seconds; the same value is stored, so that both expire together.
    expires_at = None if expires is None else float(int(now + expires * DAY))

    def work(conn: Connection) -> str:
        project_id = common.find_project(conn, project).id
        tokens.add(conn, token_id, project_id, now, expires_at)
        return project_id

    with common.open_database(config) as (settings, database):
        signer = common.open_signer(settings, database)
        project_id = database.write_now(work)
    print(signer.issue(project_id, token_id, expires_at))


@app.command("list")
def list_(
    project: common.ProjectName, as_json: common.Json = False, config: common.Config = None
) -> None:
    """List the tokens of a project, the oldest first: their ids, never the tokens themselves."""
    from bitel.store import tokens

    found, date = common.read_database(
        config, lambda conn: tokens.listing(conn, common.find_project(conn, project).id)
    )
    now = time.time()
    if as_json:
        common.print_json([_row(each, now, date) for each in found])
        return
    for each in found:
        print(f"{each.id}  {common.utc(date(each.created_at), DAY_FORMAT)}  {_state(each, now)}")


def _row(token: TokenRow, now: float, date: Callable[[float], float]) -> dict[str, Any]:
    return {
        "id": token.id,
        "createdAt": int(date(token.created_at)),
        "expiresAt": None if token.expires_at is None else int(token.expires_at),
        "revoked": token.revoked_at is not None,
        "good": _state(token, now).startswith("good"),
    }


def _state(token: TokenRow, now: float) -> str:
    if token.revoked_at is not None:
        return "revoked"
    if token.expires_at is None:
        return "good"
    day = common.utc(token.expires_at, DAY_FORMAT)
    return f"good until {day}" if token.expires_at > now else f"expired on {day}"


@app.command()
def revoke(
    token: Annotated[
        str, Argument(metavar="ID", help="The token, or its jti.", show_default=False)
    ],
    config: common.Config = None,
) -> None:
    """Revoke a token; it is refused from that moment on."""
    from bitel.store import tokens

    with common.open_database(config) as (settings, database):
        token_id = token
        if "." in token:
            token_id = common.open_signer(settings, database).verify(token).token_id
        if not database.write_now(lambda conn: tokens.revoke(conn, token_id, time.time())):
            raise NotFoundError(f"no token that is still good has the id {token_id[:64]!r}")
