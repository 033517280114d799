"""Commands about campaigns: `bitel campaign`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer
from typer import Option
from typer.core import TyperGroup

from bitel import exact_json
from bitel.cli import common

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from bitel.client import Campaign, CampaignChanges, Client
    from bitel.domain.campaign_json import CampaignState

NONE: Final = "none"
"""Removes a limit."""

Number = TypeVar("Number", int, float)


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
    _show_terms(state)
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


@app.command()
def pause(
    campaign_id: common.Id, as_json: common.Json = False, config: common.Config = None
) -> None:
    """Start no further call of a campaign until it is resumed."""
    with common.open_client(config) as client:
        show_campaign(client.pause_campaign(campaign_id), as_json)


@app.command()
def resume(
    campaign_id: common.Id, as_json: common.Json = False, config: common.Config = None
) -> None:
    """Go on with a campaign that was paused."""
    with common.open_client(config) as client:
        show_campaign(client.resume_campaign(campaign_id), as_json)


@app.command()
def cancel(
    campaign_id: common.Id, as_json: common.Json = False, config: common.Config = None
) -> None:
    """Call off every call of a campaign that nobody has answered yet."""
    with common.open_client(config) as client:
        show_campaign(client.cancel_campaign(campaign_id), as_json)


@app.command("set")
def set_(
    campaign_id: common.Id,
    name: Annotated[
        str | None, Option(metavar="NAME", help=f"A name for people; {NONE}: no name.")
    ] = None,
    end_at: Annotated[
        str | None,
        Option(metavar="TIME", help=f"No call starts then or later; {NONE}: no such time."),
    ] = None,
    calls_per_second: Annotated[
        str | None, Option(metavar="N", help=f"Calls that start a second; {NONE}: any.")
    ] = None,
    max_channels: Annotated[
        str | None, Option(metavar="N", help=f"Calls at once; {NONE}: any.")
    ] = None,
    as_json: common.Json = False,
    config: common.Config = None,
) -> None:
    """Change a campaign while it runs; what is left out stays."""
    changes: CampaignChanges = {}
    if name is not None:
        changes["name"] = None if name == NONE else name
    if end_at is not None:
        changes["end_at"] = None if end_at == NONE else common.read_time("--end-at", end_at)
    if calls_per_second is not None:
        changes["calls_per_second"] = _limit("--calls-per-second", calls_per_second, float)
    if max_channels is not None:
        changes["max_channels"] = _limit("--max-channels", max_channels, int)
    if not changes:
        raise typer.BadParameter("say what to change, as --calls-per-second 5")
    with common.open_client(config) as client:
        changed = client.change_campaign(campaign_id, **changes)
    show_campaign(changed, as_json)
    if not as_json:
        _show_terms(changed)


@app.command()
def watch(
    campaign_id: common.Id, as_json: common.Json = False, config: common.Config = None
) -> None:
    """Follow a campaign until all its calls are over.

    With --json each change is one line of JSON.
    """
    with common.open_client(config) as client:
        events = client.campaign_events(campaign_id)
        first = next(events, None)
        last = first.campaign if first is not None else client.campaign(campaign_id)
        with progress_bars(last, is_shown=not as_json) as show:
            for seen in chain([last], (each.campaign for each in events)):
                if seen == last and seen is not last:
                    continue  # the last event repeats the state before
                last = seen
                show(seen)
                if as_json:
                    common.print_json(seen)
    if not as_json:
        show_campaign(last, as_json)


@app.command()
def results(
    campaign_id: common.Id,
    output: Annotated[
        Path | None,
        Option("--output", "-o", metavar="FILE", help="Where to; campaign-ID.csv if left out."),
    ] = None,
    as_json: common.Json = False,
    config: common.Config = None,
) -> None:
    """Write every call of a campaign, with its attempts, to a CSV file."""
    file = output or Path(f"campaign-{campaign_id}.csv")
    with (
        common.open_client(config) as client,
        common.transfer_bar(file.name, None) as progress,
    ):
        client.results(campaign_id, file, progress)
    if as_json:
        common.print_json({"file": str(file), "size": file.stat().st_size})
    else:
        print(file)


@contextmanager
def progress_bars(
    campaign: Campaign, *, is_shown: bool = True
) -> Iterator[Callable[[Campaign], None]]:
    """Yield a function that shows a state of the campaign, as bars if stderr is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    is_off = not (is_shown and console.is_terminal)
    with Progress(*columns, console=console, disable=is_off) as progress:
        bars = {
            status: progress.add_task(text, total=campaign["total"])
            for status, text in (("", "over"), ("NORMAL", "answered"))
        }

        def show(seen: Campaign) -> None:
            over = seen["total"] - seen["byStatus"].get("WAITING", 0)
            progress.update(bars[""], completed=over)
            progress.update(bars["NORMAL"], completed=seen["byStatus"].get("NORMAL", 0))

        yield show


def wait_for(client: Client, campaign: Campaign) -> Campaign:
    """The campaign once all its calls are over, with progress bars on a terminal."""
    with progress_bars(campaign) as show:
        return client.wait_campaign(campaign["id"], math.inf, show)


def show_campaign(campaign: Campaign, as_json: bool) -> None:
    """Print the state of a campaign, in one line or as JSON."""
    if as_json:
        common.print_json(campaign)
        return
    counts = "  ".join(f"{status} {n}" for status, n in campaign["byStatus"].items() if n)
    price = f"  {campaign['price']:g}" if campaign["price"] else ""
    # A service of an older release has no states.
    state = campaign.get("state", "RUNNING")
    is_plain = state in ("RUNNING", "FINISHED")
    print(
        f"{campaign['id']}  {campaign['total']} calls  {counts}{price}"
        f"{'' if is_plain else f'  {state.lower()}'}"
    )


def _show_terms(campaign: Campaign) -> None:
    """Print the name, the schedule, the pace and the keys of a campaign, where it has them."""
    keys = campaign.get("keys") or {}
    terms: dict[str, Any] = {
        "name": campaign.get("name"),
        "reference": campaign.get("reference"),
        "starts at": _date(campaign.get("startAt")),
        "ends at": _date(campaign.get("endAt")),
        "window": campaign.get("window"),
        "calls a second": campaign.get("callsPerSecond"),
        "calls at once": campaign.get("maxChannels"),
        "keys": ", ".join(f"{key} by {count}" for key, count in keys.items()),
    }
    for name, value in terms.items():
        if value not in (None, ""):
            print(f"   {name}: {value:g}" if isinstance(value, float) else f"   {name}: {value}")


def _date(at: int | None) -> str | None:
    return None if at is None else f"{common.utc(at)} UTC"


def _limit(option: str, written: str, kind: Callable[[str], Number]) -> Number | None:
    if written == NONE:
        return None
    try:
        return kind(written)
    except ValueError:
        raise typer.BadParameter(
            f"{written!r} must be a number, or {NONE}", param_hint=option
        ) from None
