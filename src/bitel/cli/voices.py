"""`bitel voice`: recordings, by way of the HTTP API."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitel.cli.opening import open_client
from bitel.cli.options import ConfigOption, JsonOption

if TYPE_CHECKING:
    from bitel.client import Client, Recording

app = typer.Typer(help="Recordings.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Recordings."""


@app.command()
def upload(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, show_default=False)
    ],
    as_json: JsonOption = False,
    config: ConfigOption = None,
) -> None:
    """Upload a recording: any audio. Its id comes first in what is printed."""
    with open_client(config) as client:
        recording = send(client, file)
    if as_json:
        print(json.dumps(recording, ensure_ascii=False))
    else:
        print(f"{recording['id']}  {recording['duration']:.1f} s  {recording['name']}")


def send(client: Client, file: Path) -> Recording:
    """Upload `file`, with a progress bar where stderr is a terminal."""
    if not sys.stderr.isatty():
        return client.upload(file)
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(file.name, total=file.stat().st_size)
        return client.upload(file, lambda size: progress.advance(bar, size))
