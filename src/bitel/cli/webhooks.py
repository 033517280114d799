"""Commands about webhooks: `bitel webhook` shows deliveries, redelivers, and prints secrets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from bitel.cli import common
from bitel.errors import InvalidRequestError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from bitel.store.projects import Project
    from bitel.store.webhooks import DeliveryAttempt, Event

ISO = "%Y-%m-%dT%H:%M:%SZ"

app = typer.Typer(
    help="Webhooks: what receivers were told, and the secrets that sign it.", no_args_is_help=True
)


@app.command()
def deliveries(
    project: Annotated[
        str | None, Option(metavar="PROJECT", help="Only this project's, by name or id.")
    ] = None,
    call: Annotated[str | None, Option(metavar="ID", help="Only this call's.")] = None,
    limit: Annotated[
        int, Option(metavar="N", min=1, max=100_000, help="At most so many events.")
    ] = 100,
    as_json: common.Json = False,
    config: common.Config = None,
) -> None:
    """Show what was tried for each event: when, what came of it, and when it is tried next."""
    from bitel.store import webhooks

    def query(conn: Connection) -> tuple[Project | None, list[Event]]:
        found = common.find_project(conn, project) if project else None
        return found, webhooks.history(conn, found.id if found else None, call, limit)

    (found, events), date = common.read_database(config, query)
    if as_json:
        common.print_json([_as_json(event, date) for event in events])
        return
    if found and found.webhook_off_reason:
        print(f"off: {found.webhook_off_reason}; bitel project set --webhook turns it on again")
    for event in events:
        again = f"  next {common.utc(date(event.due_at), ISO)}" if event.due_at is not None else ""
        about = f"call {event.call_id}" if event.call_id else f"campaign {event.campaign_id}"
        type_ = f"  {event.type}" if event.type else ""
        print(f"{event.id}  {about}  {event.state}{type_}{again}")
        for tried in event.tried:
            print(
                f"    {common.utc(date(tried.at), ISO)}  {_outcome(tried)}  {tried.seconds:.2f} s"
            )


@app.command()
def redeliver(
    which: Annotated[
        str, Argument(metavar="ID", help="An event, or its call or campaign.", show_default=False)
    ],
    config: common.Config = None,
) -> None:
    """Send an event once more, whatever became of it, under the id that it had before.

    All events of a call or a campaign if its id is given. A URL that a request named is used again
    even if its receiver had turned it off.
    """
    from bitel.store import webhooks

    with common.open_database(config) as (settings, database):
        now = common.read_clock(settings)()
        if not database.write_now(lambda conn: webhooks.redeliver(conn, None, which, now)):
            raise NotFoundError(
                f"no event has the id {which[:64]!r}, nor has a call or campaign of that id one: "
                "only calls that end while they have a webhook do"
            )


@app.command()
def secret(
    project: common.ProjectName,
    rotate: Annotated[
        bool, Option("--rotate", help="Make a new one; the old one signs nothing from now on.")
    ] = False,
    config: common.Config = None,
) -> None:
    """Print the secret that a project's events are signed with, and nothing else.

    With --rotate also for a project that has none: its requests can name webhooks then.
    """
    from bitel.store import projects
    from bitel.webhooks.signing import new_secret

    def work(conn: Connection) -> str:
        found = common.find_project(conn, project)
        if found.webhook_secret and not rotate:
            return found.webhook_secret
        if not found.webhook_secret and not rotate:
            raise InvalidRequestError(
                f"the project {found.name!r} has no secret; bitel project set PROJECT "
                "--webhook URL makes one, and so does --rotate, for webhooks that requests name"
            )
        made = new_secret()
        projects.change(conn, found.id, webhook_secret=made)
        return made

    with common.open_database(config) as (_, database):
        text = database.write_now(work)
    print(text)


def _as_json(event: Event, date: Callable[[float], float]) -> dict[str, Any]:
    return {
        "id": event.id,
        "projectId": event.project_id,
        "type": event.type or None,
        "callId": event.call_id,
        "campaignId": event.campaign_id,
        "state": event.state,
        "createdAt": date(event.created_at),
        "nextTryAt": None if event.due_at is None else date(event.due_at),
        "tries": [
            {
                "at": date(tried.at),
                "status": tried.status_code,
                "error": tried.error or None,
                "seconds": tried.seconds,
            }
            for tried in event.tried
        ],
    }


def _outcome(tried: DeliveryAttempt) -> str:
    if tried.status_code is None:
        return tried.error
    redirect = " (redirects are not followed)" if tried.status_code // 100 == 3 else ""
    return f"answered {tried.status_code}{redirect}"
