"""`bitel trace`: the SIP messages of a call, as a ladder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bitel.cli.options import ConfigOption
from bitel.errors import NotFoundError


def trace(
    call_id: Annotated[str, typer.Argument(metavar="ID", show_default=False)],
    full: Annotated[bool, typer.Option("--full", help="Show each message as a whole.")] = False,
    config: ConfigOption = None,
) -> None:
    """Show the SIP messages of a call: one of the last, or one that ended in ERROR.

    It reads the files of the machine that dialled. Credentials are not in them. The section
    `traces` of the settings says how many calls are kept, and for how long.
    """
    from bitel import settings
    from bitel.dialer import sip_trace

    folder = traces_folder(settings.load(config).data_dir)
    entries = sip_trace.read(folder, call_id)
    if not entries:
        raise NotFoundError(f"no trace of a call {call_id!r} is kept in {folder}")
    for entry in entries:
        if isinstance(entry, str):
            typer.echo(entry)
        else:
            typer.echo(sip_trace.in_full(entry) if full else sip_trace.arrow(entry))


def traces_folder(data_dir: Path) -> Path:
    """Where traces are kept."""
    return data_dir / "traces"
