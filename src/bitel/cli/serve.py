"""`bitel serve`: the service in the foreground."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer


class Only(enum.StrEnum):
    """The half of the service to run."""

    API = "api"
    DIALER = "dialer"


def serve(
    config: Annotated[Path | None, typer.Option(help="The settings file.")] = None,
    only: Annotated[
        Only | None, typer.Option(help="Run only the HTTP API, or only the dialers.")
    ] = None,
) -> None:
    """Run the service in the foreground, until SIGTERM lets its calls finish."""
    import uvloop

    from bitel import logs, service, settings

    loaded = settings.load(config)
    logs.configure(loaded.log_level, loaded.log_json)
    uvloop.run(service.serve(loaded, only.value if only else "all"))
