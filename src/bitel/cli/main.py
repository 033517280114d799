"""The program `bitel`: registers all commands, and turns errors into exit statuses."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from typer import Option

from bitel.cli import (
    batches,
    calls,
    campaigns,
    dnc,
    keys,
    lists,
    projects,
    service,
    tokens,
    trial,
    voices,
    webhooks,
    workers,
)
from bitel.errors import BitelError

app = typer.Typer(
    name="bitel",
    help="Voice calls over your own SIP trunks: upload a recording, have it played to numbers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(projects.app, name="project")
app.add_typer(tokens.app, name="token")
app.add_typer(keys.app, name="key")
app.add_typer(campaigns.app, name="campaign")
app.add_typer(voices.app, name="voice")
app.add_typer(lists.app, name="list")
app.add_typer(webhooks.app, name="webhook")
app.add_typer(dnc.app, name="dnc")
app.command("init")(service.init)
app.command("serve")(service.serve)
app.command("phone")(trial.phone)
app.command("demo")(trial.demo)
app.command("call")(calls.call)
app.command("batch")(batches.batch)
app.command("status")(calls.status)
app.command("calls")(calls.calls)
app.command("cancel")(calls.cancel)
app.command("attempts")(calls.attempts)
app.command("ledger")(projects.ledger)
app.command("pause")(service.pause)
app.command("resume")(service.resume)
app.command("backup")(service.backup)
app.command("erase")(calls.erase)
app.command("dial")(trial.dial)
app.command("check-config")(service.check_config)
app.command("servers")(service.servers)
app.command("workers")(workers.workers)
app.command("drain")(workers.drain)
app.command("trace")(calls.trace)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"bitel {version('bitel')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Voice calls over your own SIP trunks: upload a recording, have it played to numbers."""


def main() -> None:
    """Run the command line; exit status 0 on success, 1 on failure, 2 on wrong usage."""
    # Recordings, the database and secrets must be private whatever umask is inherited.
    os.umask(0o077)
    try:
        app()
    except BitelError as error:
        print(f"bitel: {error}", file=sys.stderr)
        sys.exit(1)
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module in ("", "bitel"):
            raise
        print(
            f"bitel: this command needs the service, whose module {module!r} is not installed; "
            "run pip install 'bitel[server]'",
            file=sys.stderr,
        )
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
