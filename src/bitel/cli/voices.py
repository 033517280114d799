"""Commands about recordings, over the HTTP API: `bitel voice`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from bitel.cli import common
from bitel.errors import InvalidRequestError

if TYPE_CHECKING:
    from bitel.client import Client, Recording

app = typer.Typer(help="Recordings.", no_args_is_help=True)


@app.command()
def upload(
    file: Annotated[
        Path, Argument(metavar="FILE", exists=True, dir_okay=False, show_default=False)
    ],
    as_json: common.Json = False,
    config: common.Config = None,
) -> None:
    """Upload a recording: any audio. Its id comes first in what is printed."""
    with common.open_client(config) as client:
        recording = send(client, file)
    _show(recording, as_json)


@app.command("list")
def list_(as_json: common.Json = False, config: common.Config = None) -> None:
    """List the recordings, uploaded and spoken ones, the oldest first."""
    with common.open_client(config) as client:
        found = list(client.recordings())
    if as_json:
        common.print_json(found)
        return
    for recording in found:
        _show(recording, as_json)


@app.command()
def remove(voice_id: common.Id, as_json: common.Json = False, config: common.Config = None) -> None:
    """Remove a recording that no waiting call needs."""
    with common.open_client(config) as client:
        _show(client.remove_recording(voice_id), as_json)


@app.command()
def speak(
    text: Annotated[str, Argument(metavar="TEXT", show_default=False)],
    language: Annotated[
        str | None, Option(metavar="CODE", help="The text's language, as in fa or en.")
    ] = None,
    as_json: common.Json = False,
    config: common.Config = None,
) -> None:
    """Have a text spoken and kept as a recording."""
    with common.open_client(config) as client:
        _show(client.speak(text, language=language), as_json)


def voice_id(client: Client, voice: str) -> str:
    """Return the id of a `--voice`: a recording's id, or a file, which is uploaded.

    Raises InvalidRequestError for other values.
    """
    file = Path(voice)
    if file.is_file():
        return send(client, file)["id"]
    if re.fullmatch("[0-9a-f]{32}", voice):
        return voice
    raise InvalidRequestError(f"--voice {voice!r} is neither a file nor a recording's id")


def _show(recording: Recording, as_json: bool) -> None:
    if as_json:
        common.print_json(recording)
    else:
        print(f"{recording['id']}  {recording['duration']:.1f} s  {recording['name']}")
        if "warning" in recording:
            print(f"bitel: {recording['warning']}", file=sys.stderr)


def send(client: Client, file: Path) -> Recording:
    """Upload `file`, with a progress bar if stderr is a terminal."""
    with common.transfer_bar(file.name, file.stat().st_size) as progress:
        return client.upload(file, progress)
