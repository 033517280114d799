"""`bitel demo`: all of it on one machine in one go."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def demo(
    heard: Annotated[
        Path, typer.Option(help="Where to leave the recording of what the first number heard.")
    ] = Path("heard.wav"),
) -> None:
    """Play the whole service on this machine, with the built-in phone for a carrier.

    Takes under a minute. The exit status is 0 only if every call ended as it should.
    """
    from bitel.demo.play import play

    raise typer.Exit(0 if play(heard, Console()) else 1)
