"""`bitel backup`: a copy of a running service from which it can be restored."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bitel.cli.opening import open_database, read_clock
from bitel.cli.options import ConfigOption


def backup(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", show_default=False, help="A folder that is new or empty."),
    ],
    config: ConfigOption = None,
) -> None:
    """Copy the database, the recordings and the signing key, with the service running or not.

    A service that is started with the copy is paused until `bitel resume --drop-open` or
    `--keep-open`: calls that were open at this moment may have been made by then.
    """
    from bitel.maintenance.backup import make_backup
    from bitel.store import engines

    with open_database(config) as (settings, _):
        made = make_backup(
            folder,
            settings.data_dir,
            engines.parse_url(settings.effective_database_url),
            local_recordings=not settings.storage_url.get_secret_value(),
            now=read_clock(settings)(),
        )
    typer.echo(
        f"{made.folder}: {made.database.name} and {made.recordings} files of recordings, "
        f"{made.bytes / 1024 / 1024:.1f} MiB"
    )
    if settings.storage_url.get_secret_value():
        typer.echo("recordings are in the object store, and not copied", err=True)
