"""Commands about the keys that sign tokens: `bitel key`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from bitel.cli import common

if TYPE_CHECKING:
    from bitel.store.signing_keys import StoredKey

DAY = 86_400.0
"""Seconds."""
OVERLAP_DAYS = 30.0
"""Days for which tokens of the earlier keys are accepted after a rotation."""

app = typer.Typer(help="Keys that sign tokens, shared by all processes.", no_args_is_help=True)


@app.command("list")
def list_(as_json: common.Json = False, config: common.Config = None) -> None:
    """List the keys, the newest first: their ids, never the keys themselves."""
    from bitel.store import signing_keys

    with common.open_database(config) as (_, database):
        keys = database.read_now(signing_keys.listing)
    now = time.time()
    signing = next((key.id for key in keys if key.retired_at is None), None)
    if as_json:
        common.print_json(
            [
                {
                    "id": key.id,
                    "createdAt": int(key.created_at),
                    "retiredAt": None if key.retired_at is None else int(key.retired_at),
                    "signs": key.id == signing,
                    "wrapped": key.wrapping is not None,
                }
                for key in keys
            ]
        )
        return
    for key in keys:
        wrapped = "wrapped" if key.wrapping else "plain"
        state = "signs" if key.id == signing else _state(key, now)
        print(f"{key.id}  {common.utc(key.created_at)}  {wrapped:7}  {state}")


def _state(key: StoredKey, now: float) -> str:
    if key.retired_at is None:
        return "accepted"
    at = common.utc(key.retired_at)
    return f"accepted until {at}" if key.retired_at > now else f"retired on {at}"


@app.command()
def rotate(
    overlap: Annotated[
        float,
        Option(metavar="DAYS", min=0, max=36_500, help="Days for which earlier keys are accepted."),
    ] = OVERLAP_DAYS,
    keep: Annotated[
        bool, Option("--keep", help="Accept earlier keys until `bitel key retire`.")
    ] = False,
    config: common.Config = None,
) -> None:
    """Make a new key, which signs all new tokens, and print its id.

    Tokens of earlier keys are accepted for the overlap: give clients new ones within it. Running
    processes use the new key within seconds.
    """
    from bitel.api import signing_keys

    now = time.time()
    retire_at = None if keep else now + overlap * DAY
    with common.open_database(config) as (settings, database):
        secret = settings.signing_key_secret.get_secret_value()
        key_id = database.write_now(
            lambda conn: signing_keys.rotate(conn, settings.data_dir, secret, now, retire_at)
        )
    if retire_at is not None:
        at = common.utc(retire_at)
        print(f"bitel: tokens made before are refused from {at} UTC on", file=sys.stderr)
    print(key_id)


@app.command()
def retire(key: common.Id, config: common.Config = None) -> None:
    """Refuse the tokens of a key from now on; not of the one that signs."""
    from bitel.api import signing_keys

    with common.open_database(config) as (_, database):
        database.write_now(lambda conn: signing_keys.retire(conn, key, time.time()))


@app.command()
def rewrap(
    old: Annotated[
        Path | None,
        Argument(metavar="[OLD_SECRET_FILE]", help="A file with the former secret; none if empty."),
    ] = None,
    config: common.Config = None,
) -> None:
    """Encrypt the keys with the signing_key_secret of the settings, in place of a former one.

    Without one in the settings they are stored in plain form. Tokens stay valid, and running
    processes keep the keys that they have.
    """
    from bitel import settings as all_settings
    from bitel.api import signing_keys

    old_secret = "" if old is None else all_settings.read_secret("OLD_SECRET_FILE", old)
    with common.open_database(config) as (settings, database):
        secret = settings.signing_key_secret.get_secret_value()
        changed = database.write_now(
            lambda conn: signing_keys.rewrap(conn, old_secret, secret, time.time())
        )
    print(f"bitel: {changed} keys were changed", file=sys.stderr)
