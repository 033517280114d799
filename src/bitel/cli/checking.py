"""`bitel check-config` and `bitel servers`: whether the settings are right, and dialers are up."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bitel.cli.opening import open_client
from bitel.cli.options import ConfigOption, JsonOption

if TYPE_CHECKING:
    from bitel.settings import Settings


def check_config(
    config: Annotated[Path | None, typer.Option(help="The settings file.")] = None,
) -> None:
    """Check the settings, and show what they come to. Nothing is opened or created.

    Exit status 0 where the service could start with them, as far as files and addresses allow.
    """
    from bitel import settings as all_settings

    file = all_settings.settings_file(config)
    loaded = all_settings.load(config)
    _check_parts(loaded)
    for name, value in _summary(file, loaded):
        print(f"{name:<10}  {value}")
    if unknown := all_settings.unknown_variables():
        print(f"bitel: these variables name no setting: {', '.join(unknown)}", file=sys.stderr)
    if not loaded.dialers:
        print("bitel: there are no [[dialers]], so no call can be placed", file=sys.stderr)


def servers(as_json: JsonOption = False, config: ConfigOption = None) -> None:
    """List the dialers that calls may be placed over, and whether each is up."""
    with open_client(config) as client:
        found = client.servers()
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
        return
    for server in found:
        state = "up" if server["up"] else "down"
        paused = f"  paused: {server['paused']}" if server["paused"] else ""
        print(f"{server['id']:<16}  {state}{paused}")


def _check_parts(loaded: Settings) -> None:
    """What is checked when the parts are built: raises SettingsError."""
    from bitel.dialer_config import sip_trunk_config
    from bitel.notifications.sender import check_notifications
    from bitel.store import engines

    engines.parse_url(loaded.effective_database_url)
    check_notifications(loaded.notifications)
    loaded.price_list()
    for dialer in loaded.dialers:
        sip_trunk_config(dialer, loaded.region)


def _summary(file: Path | None, loaded: Settings) -> list[tuple[str, str]]:
    from bitel.store import engines

    database = engines.place(engines.parse_url(loaded.effective_database_url))
    rows = [
        ("settings", str(file.absolute()) if file else "no file: defaults and the environment"),
        ("data_dir", str(loaded.data_dir)),
        ("database", database),
        ("http", f"{loaded.http.host}:{loaded.http.port}"),
        ("tariff", f"{len(loaded.tariff)} lines" if loaded.tariff else "none: calls cost nothing"),
    ]
    for dialer in loaded.dialers:
        about = f"{', '.join(dialer.trunks)}; {dialer.max_channels} channels"
        rows.append(("dialer", f"{dialer.id}: {about}, {dialer.calls_per_second:g} calls a second"))
    return rows
