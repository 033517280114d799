"""`bitel init`: the settings file and the database of a new installation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import typer

from bitel.cli.opening import open_database
from bitel.cli.options import ConfigOption
from bitel.errors import BitelError

TEMPLATE: Final = """\
# Settings of bitel. Every one is described in docs/settings.md; `bitel check-config` checks them.
data_dir = "bitel-data"              # relative to the folder of this file

[http]
host = "127.0.0.1"
port = 8080

# Your carrier. Remove the # in front of each line, and write your own values.
# [[dialers]]
# id = "main"                        # what clients name as serverId
# trunks = ["sip:203.0.113.10:5060"] # the carrier's addresses, tried in order
# username = ""                      # digest credentials, where the carrier wants them
# password_file = "carrier-password" # or password = "..."
# caller_id = "02191000000"
# bind = "0.0.0.0:5070"              # where SIP is spoken from
# public_address = ""                # your public IP address, behind NAT
# rtp_ports = "10000-19999"
# max_channels = 100
# calls_per_second = 10

# Prices by prefix; without any, calls cost nothing.
# [[tariff]]
# prefix = "+98"
# per_minute = 90
"""


def init(config: ConfigOption = None) -> None:
    """Make a settings file, where there is none, and the database; say where each of them is.

    What is there already stays as it is, except that an older database is upgraded.
    """
    from bitel.settings import CONFIG_VARIABLE, DEFAULT_FILE

    named = config or Path(os.environ.get(CONFIG_VARIABLE) or DEFAULT_FILE)
    made = _write(named)
    typer.echo(f"settings  {named.absolute()}{' (created)' if made else ''}")
    with open_database(named, create=True) as (settings, _):
        from bitel.api.auth import TokenSigner
        from bitel.store import engines

        TokenSigner.open(settings.data_dir)
        typer.echo(f"data_dir  {settings.data_dir}")
        url = engines.parse_url(settings.effective_database_url)
        typer.echo(f"database  {engines.place(url)}")


def _write(path: Path) -> bool:
    """Write the template unless the file exists. Its mode is 0600: passwords will be in it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return False
    except OSError as fault:
        raise BitelError(
            f"the settings file {path.absolute()} can't be made: {fault.strerror}"
        ) from None
    with os.fdopen(descriptor, "w") as file:
        file.write(TEMPLATE)
    return True
