"""`bitel call`, `bitel status` and `bitel cancel`, by way of the HTTP API."""

from __future__ import annotations

import json
import math
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Annotated

import typer

from bitel.cli.campaigns import show_campaign
from bitel.cli.opening import open_client
from bitel.cli.options import ConfigOption, JsonOption
from bitel.cli.voices import voice_id
from bitel.errors import NotFoundError

if TYPE_CHECKING:
    from bitel.client import Call


def call(
    number: Annotated[str, typer.Argument(metavar="NUMBER", show_default=False)],
    voice: Annotated[
        str,
        typer.Option(
            metavar="FILE_OR_ID", help="What to play: an audio file, or a recording's id."
        ),
    ],
    retries: Annotated[
        int | None, typer.Option(metavar="N", help="Calls again after busy or no answer.")
    ] = None,
    server: Annotated[
        str | None, typer.Option(metavar="ID", help="The dialer that places the call.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the call is over.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Play a recording to one number. With --wait, succeeds only if the call was answered."""
    with open_client(config) as client:
        played = voice_id(client, voice)
        placed = client.call(number, played, retry_count=retries, server_id=server)
        if wait:
            with _spinner(f"calling {number}"):
                placed = client.wait(placed["id"], math.inf)
    _show(placed, as_json)
    if wait and placed["status"] != "NORMAL":
        raise typer.Exit(1)


def status(
    call_id: Annotated[str, typer.Argument(metavar="ID", show_default=False)],
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Show how a call stands."""
    with open_client(config) as client:
        _show(client.status(call_id), as_json)


def cancel(
    id_: Annotated[
        str,
        typer.Argument(metavar="ID", help="Of a call, or of a campaign.", show_default=False),
    ],
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Call off a call, or every call of a campaign that nobody has answered yet."""
    with open_client(config) as client:
        try:
            _show(client.cancel(id_), as_json)
        except NotFoundError:
            try:
                show_campaign(client.cancel_campaign(id_), as_json)
            except NotFoundError:
                raise NotFoundError(
                    f"this project has no call and no campaign of the id {id_[:64]!r}"
                ) from None


def _spinner(text: str) -> AbstractContextManager[object]:
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(text)


def _show(call: Call, as_json: bool) -> None:
    if as_json:
        print(json.dumps(call, ensure_ascii=False))
        return
    billed = f"  {call['billSec']} s  {call['price']:g}" if call["billSec"] else ""
    print(f"{call['id']}  {call['status']}  {call['phoneNumber']}{billed}")
