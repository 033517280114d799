"""Commands about campaigns: `bitel batch` and `bitel campaign`."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option
from typer.core import TyperGroup

from bitel import exact_json
from bitel.cli import common
from bitel.cli.number_lists import MOST_SHOWN, NumberList, located, read_number_list
from bitel.cli.voices import voice_id
from bitel.errors import BitelError

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from bitel.client import Campaign, Client
    from bitel.domain.campaign_json import CampaignState


def batch(
    file: Annotated[
        Path,
        Argument(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            allow_dash=True,
            show_default=False,
            help="One number a line, or a CSV; - is the standard input.",
        ),
    ],
    voice: common.Voice,
    column: Annotated[
        str | None,
        Option(
            metavar="NAME", help="The CSV column of the numbers, by its heading; found if left out."
        ),
    ] = None,
    retries: common.Retries = None,
    server: Annotated[
        str | None, Option(metavar="ID", help="The dialer that places the calls.")
    ] = None,
    wait: Annotated[bool, Option("--wait", help="Wait until all calls are over.")] = False,
    as_json: common.Json = False,
    config: common.Config = None,
) -> None:
    """Play a recording to many numbers. With --wait, succeeds only if all of them answered."""
    found = _read_list(file, column, config)
    with common.open_client(config) as client:
        played = voice_id(client, voice)
        try:
            placed = client.batch(found.numbers, played, retry_count=retries, server_id=server)
        except BitelError as error:
            raise located(error, found, str(file)) from None
        campaign = client.campaign(placed["campaignId"])
        if wait:
            campaign = _wait(client, campaign)
    show_campaign(campaign, as_json)
    if wait and campaign["byStatus"].get("NORMAL") != campaign["total"]:
        raise typer.Exit(1)


class _ShownByDefault(TyperGroup):
    """`bitel campaign ID` is `bitel campaign show ID`."""

    # Without types, because some versions of typer bundle click.
    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            args = ["show", *args]
        return super().resolve_command(ctx, args)


app = typer.Typer(
    help="Campaigns: `bitel campaign ID` shows how the calls of a batch stand.",
    cls=_ShownByDefault,
    no_args_is_help=True,
)


@app.command()
def show(
    campaign_id: common.Id,
    calls: Annotated[bool, Option("--calls", help="Show every call of it.")] = False,
    as_json: common.Json = False,
    config: common.Config = None,
) -> None:
    """Show how the calls of a batch stand, by way of the HTTP API."""
    with common.open_client(config) as client:
        state = client.campaign(campaign_id)
        listed = list(client.campaign_calls(campaign_id, 1000)) if calls else []
    if as_json:
        common.print_json({**state, "calls": listed} if calls else state)
        return
    show_campaign(state, as_json)
    for call in listed:
        print(f"{call['id']}  {call['status']:<10} {call['billSec']:>5} s  {call['phoneNumber']}")


@app.command("list")
def list_(
    project: Annotated[
        str | None, Option(metavar="PROJECT", help="Only those of a project, by its name or id.")
    ] = None,
    limit: Annotated[int, Option(metavar="N", min=1, max=1000, help="How many.")] = 20,
    as_json: common.Json = False,
    config: common.Config = None,
) -> None:
    """List the newest campaigns, from the database: when, how many calls, and how they stand."""
    from bitel.store import campaigns, projects

    def query(conn: Connection) -> tuple[list[tuple[str, CampaignState]], dict[str, str]]:
        wanted = common.find_project(conn, project).id if project is not None else None
        newest = campaigns.newest(conn, wanted, limit)
        return newest, {each.id: each.name for each in projects.listing(conn)}

    (newest, names), date = common.read_database(config, query)
    rows: list[dict[str, Any]] = [
        {
            "id": state.id,
            "project": names.get(project_id, project_id),
            "requestDate": int(date(state.requested_at)),
            "finishedDate": int(date(state.finished_at)) if state.finished_at else 0,
            "total": state.total,
            "byStatus": {status.name: count for status, count in state.by_status.items()},
            "price": state.price,
        }
        for project_id, state in newest
    ]
    if as_json:
        print(exact_json.dumps(rows))
        return
    for each in rows:
        at = common.utc(each["requestDate"], "%Y-%m-%d %H:%M")
        counts = ", ".join(f"{count} {status}" for status, count in each["byStatus"].items())
        print(f"{each['id']}  {at}  {each['total']:>7}  {each['project']}  {counts}")


def _read_list(file: Path, column: str | None, config: Path | None) -> NumberList:
    from bitel import settings as all_settings

    raw = sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    loaded = all_settings.load(config)
    found = read_number_list(raw, str(file), column, loaded.region, loaded.extra_prefixes)
    if found.duplicates:
        count = len(found.duplicates)
        shown = ", ".join(found.duplicates[:MOST_SHOWN])
        more = f" and {count - MOST_SHOWN} more" if count > MOST_SHOWN else ""
        what = "number is" if count == 1 else "numbers are"
        print(f"bitel: {count} {what} called once only: {shown}{more}", file=sys.stderr)
    return found


def _wait(client: Client, campaign: Campaign) -> Campaign:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bars = {
            status: progress.add_task(text, total=campaign["total"])
            for status, text in (("", "over"), ("NORMAL", "answered"))
        }

        def show(seen: Campaign) -> None:
            over = seen["total"] - seen["byStatus"].get("WAITING", 0)
            progress.update(bars[""], completed=over)
            progress.update(bars["NORMAL"], completed=seen["byStatus"].get("NORMAL", 0))

        return client.wait_campaign(campaign["id"], math.inf, show)


def show_campaign(campaign: Campaign, as_json: bool) -> None:
    """Print the state of a campaign, in one line or as JSON."""
    if as_json:
        common.print_json(campaign)
        return
    counts = "  ".join(f"{status} {n}" for status, n in campaign["byStatus"].items() if n)
    price = f"  {campaign['price']:g}" if campaign["price"] else ""
    print(f"{campaign['id']}  {campaign['total']} calls  {counts}{price}")
