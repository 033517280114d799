"""`bitel ledger`: how balances came about."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from bitel.cli.opening import find_project, open_database, read_clock
from bitel.cli.options import ConfigOption, JsonOption

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from bitel.store.balances import LedgerEntry
    from bitel.store.projects import Project


def ledger(
    project: Annotated[
        str | None,
        typer.Argument(metavar="[PROJECT]", help="A project's name or id; all without."),
    ] = None,
    limit: Annotated[
        int, typer.Option(metavar="N", min=1, max=100_000, help="Entries of each project.")
    ] = 100,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Show what moved the balances of projects, the newest entries first."""
    from bitel import exact_json
    from bitel.store import balances as entries
    from bitel.store import projects

    def work(conn: Connection) -> list[tuple[Project, list[LedgerEntry]]]:
        chosen = projects.listing(conn) if project is None else [find_project(conn, project)]
        return [(each, entries.entries(conn, each.id, limit)) for each in chosen]

    with open_database(config) as (settings, database):
        found = database.read_now(work)
    date = read_clock(settings).date
    if as_json:
        rows = [_row(each, entry, date) for each, theirs in found for entry in theirs]
        print(exact_json.dumps(rows))
        return
    for each, theirs in found:
        for entry in theirs:
            created = datetime.fromtimestamp(date(entry.created_at), UTC)
            at = created.strftime("%Y-%m-%d %H:%M:%S")
            about = f"{entry.kind:<7} {entry.call_id or '':<32}  {each.name}"
            note = f"  ({entry.note})" if entry.note else ""
            print(f"{at}  {entry.amount:>16f}  {about}{note}")


def _row(project: Project, entry: LedgerEntry, date: Callable[[float], float]) -> dict[str, object]:
    return {
        "id": entry.id,
        "project": project.name,
        "callId": entry.call_id,
        "kind": entry.kind,
        "amount": entry.amount,
        "at": int(date(entry.created_at)),
        "note": entry.note,
    }
