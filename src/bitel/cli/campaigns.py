"""`bitel batch` and `bitel campaign`, by way of the HTTP API."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitel.cli.number_lists import MOST_SHOWN, NumberList, located, read_number_list
from bitel.cli.opening import open_client
from bitel.cli.options import ConfigOption, JsonOption
from bitel.cli.voices import voice_id
from bitel.errors import BitelError

if TYPE_CHECKING:
    from bitel.client import Campaign, Client


def batch(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            exists=True,
            dir_okay=False,
            allow_dash=True,
            show_default=False,
            help="One number a line, or a CSV; - is the standard input.",
        ),
    ],
    voice: Annotated[
        str,
        typer.Option(
            metavar="FILE_OR_ID", help="What to play: an audio file, or a recording's id."
        ),
    ],
    column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The CSV column of the numbers, by its heading; found if left out.",
        ),
    ] = None,
    retries: Annotated[
        int | None, typer.Option(metavar="N", help="Calls again after busy or no answer.")
    ] = None,
    server: Annotated[
        str | None, typer.Option(metavar="ID", help="The dialer that places the calls.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until all calls are over.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Play a recording to many numbers. With --wait, succeeds only if all of them answered."""
    found = _read_list(file, column, config)
    with open_client(config) as client:
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


def campaign(
    campaign_id: Annotated[str, typer.Argument(metavar="ID", show_default=False)],
    calls: Annotated[bool, typer.Option("--calls", help="Show every call of it.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Show how the calls of a batch stand."""
    with open_client(config) as client:
        state = client.campaign(campaign_id)
        listed = list(client.campaign_calls(campaign_id, 1000)) if calls else []
    if as_json:
        print(json.dumps({**state, "calls": listed} if calls else state, ensure_ascii=False))
        return
    show_campaign(state, as_json)
    for call in listed:
        print(f"{call['id']}  {call['status']:<10} {call['billSec']:>5} s  {call['phoneNumber']}")


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
    """Print how a campaign stands, in one line."""
    if as_json:
        print(json.dumps(campaign, ensure_ascii=False))
        return
    counts = "  ".join(f"{status} {n}" for status, n in campaign["byStatus"].items() if n)
    price = f"  {campaign['price']:g}" if campaign["price"] else ""
    print(f"{campaign['id']}  {campaign['total']} calls  {counts}{price}")
