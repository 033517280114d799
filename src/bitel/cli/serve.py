"""`bitel serve`: the service in the foreground."""

from __future__ import annotations

import enum
import signal
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
    take_over: Annotated[
        bool,
        typer.Option(
            "--take-over", help="Take the dialers from a process that runs them, without waiting."
        ),
    ] = False,
) -> None:
    """Run the service in the foreground, until SIGTERM lets its calls finish."""
    if take_over and only is Only.API:
        raise typer.BadParameter("--only api runs no dialer that could be taken over")
    # By default it ends a process, and what follows takes a moment. Replaced by the service.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    import structlog
    import uvloop

    from bitel import service, settings
    from bitel.errors import BitelError
    from bitel.observability import logging

    loaded = settings.load(config)
    logging.configure(loaded.log_level, loaded.log_json)
    if unknown := settings.unknown_variables():
        structlog.get_logger(__name__).warning("unknown_variables", names=", ".join(unknown))
    try:
        uvloop.run(
            service.serve(
                loaded, only.value if only else "all", take_over, lambda: settings.load(config)
            )
        )
    except BitelError as fault:
        if not loaded.log_json:
            raise
        structlog.get_logger(__name__).error("service_failed", fault=str(fault))
        raise typer.Exit(1) from None
