"""`bitel erase`: removes a person from what is stored of a project's calls."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from bitel.cli.opening import find_project, open_database, read_clock
from bitel.cli.options import ConfigOption, ProjectArgument
from bitel.errors import ConflictError

if TYPE_CHECKING:
    from bitel.store.database import Database

PIECE = 200


def erase(
    project: ProjectArgument,
    number: Annotated[str, typer.Argument(metavar="NUMBER", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask whether it is meant.")] = False,
    config: ConfigOption = None,
) -> None:
    """Remove a number from a project's calls, attempts, traces and stored answers.

    The calls and their prices stay, without the number and the digits that were keyed. Calls that
    wait are canceled first. An entry on the do-not-call list stays, so that
    the number is not called again.
    """
    from bitel.cli.trace import traces_folder
    from bitel.dialer import sip_trace
    from bitel.domain.phone_numbers import to_e164
    from bitel.store import calls, retention

    with open_database(config) as (settings, database):
        e164 = to_e164(number, settings.region, settings.extra_prefixes)
        found = database.read_now(lambda conn: find_project(conn, project))
        if not yes:
            typer.confirm(f"Erase {number} from the project {found.name}?", abort=True, err=True)
        now = read_clock(settings)()
        ids, open_ids = _calls_to(database, found.id, e164)
        for each in open_ids:
            database.write_now(partial(calls.cancel, project_id=found.id, call_id=each, now=now))
        _, open_ids = _calls_to(database, found.id, e164) if open_ids else ([], [])
        if open_ids:
            raise ConflictError(
                "a call to the number is under way, and was canceled; give the command again in "
                "a minute"
            )
        for first in range(0, len(ids), PIECE):
            some = ids[first : first + PIECE]
            database.write_now(partial(retention.erase_calls, project_id=found.id, ids=some))
        database.write_now(lambda conn: retention.forget_number(conn, found.id, e164))
        traces = sip_trace.erase(traces_folder(settings.data_dir), set(ids))
    typer.echo(f"erased from {len(ids)} calls and the traces of {traces} attempts")


def _calls_to(database: Database, project_id: str, e164: str) -> tuple[list[str], list[str]]:
    """All calls of the project to the number, and those of them that are not over."""
    from bitel.store import retention

    ids: list[str] = []
    open_ids: list[str] = []
    after = ""
    while True:
        after, found = database.read_now(
            partial(retention.calls_to, project_id=project_id, e164=e164, after=after)
        )
        ids += [each for each, _ in found]
        open_ids += [each for each, is_over in found if not is_over]
        if not after:
            return ids, open_ids
