"""Decides which settings a running service can change on SIGHUP.

Settings that are read for each request or call can change while the service runs. The rest, such as
ports, trunks and the database, needs a restart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from bitel.errors import SettingsError
from bitel.settings import DialerSettings, Settings

RELOADABLE: Final = frozenset(
    {
        *("batch_limit", "extra_prefixes", "limits", "list_limit", "log_json", "log_level", "otp"),
        "retention",
        *("tariff", "voices", "http.max_body", "http.max_batch_body", "metrics.token"),
    }
)
"""Settings outside of dialers: whole sections, or single keys."""

RELOADABLE_OF_DIALER: Final = frozenset(
    {
        *("accept_from", "caller_id", "caller_ids", "calls_per_second", "codecs", "extra_headers"),
        *("from_domain", "identity", "latch", "max_channels", "media_timeout"),
        *("number_format", "number_rules", "otp_channels", "password", "privacy", "realm"),
        *("trunk_timeout", "uncertain_redials", "user_phone", "username"),
    }
)
"""Settings of a dialer. The files of its certificate and key are read again too."""

_CREDENTIALS: Final = frozenset({"username", "password", "realm"})


@dataclass(frozen=True, slots=True)
class Reload:
    """The result of reading the settings again."""

    settings: Settings
    """The settings to use from now on."""
    changed: Sequence[str]
    """Names of settings that changed and take effect now."""
    needs_restart: Sequence[str]
    """Names of settings that changed and take effect after a restart."""


def plan_reload(running: Settings, wanted: Settings) -> Reload:
    """What a service with the settings `running` can use of `wanted` at once.

    Raises SettingsError if the result would contradict itself; then nothing may be changed.
    """
    changed: list[str] = []
    needs_restart: list[str] = []
    values = _chosen("", running, wanted, RELOADABLE, changed, needs_restart)
    values["dialers"] = _dialers(running, wanted, changed, needs_restart)
    try:
        settings = Settings(**values)
    except ValidationError as fault:
        message = fault.errors(include_url=False, include_input=False)[0]["msg"]
        raise SettingsError(
            f"the settings can only be changed together with {', '.join(needs_restart)}, which "
            f"needs a restart: {message.removeprefix('Value error, ')}"
        ) from None
    return Reload(settings, changed, needs_restart)


def _chosen(
    where: str,
    running: BaseModel,
    wanted: BaseModel,
    reloadable: frozenset[str],
    changed: list[str],
    needs_restart: list[str],
) -> dict[str, Any]:
    """The values to use, by field or alias; adds the names of changed settings to the lists."""
    values: dict[str, Any] = {}
    for name, field in type(running).model_fields.items():
        key = field.alias or name
        old, new = getattr(running, name), getattr(wanted, name)
        values[key] = old
        if name == "dialers" or old == new:
            continue
        below = frozenset(
            each.removeprefix(f"{name}.") for each in reloadable if each.startswith(f"{name}.")
        )
        if name in reloadable:
            values[key] = new
            changed.append(where + key)
        elif isinstance(old, BaseModel):
            values[key] = _chosen(f"{where}{key}.", old, new, below, changed, needs_restart)
        else:
            needs_restart.append(where + key)
    return values


def _dialers(
    running: Settings, wanted: Settings, changed: list[str], needs_restart: list[str]
) -> list[Mapping[str, Any] | DialerSettings]:
    if [each.id for each in running.dialers] != [each.id for each in wanted.dialers]:
        needs_restart.append("dialers")
    values: list[Mapping[str, Any] | DialerSettings] = []
    for old in running.dialers:
        new = wanted.dialer(old.id)
        if new is None:
            values.append(old)
            continue
        # The registrar keeps the credentials that it started with.
        reloadable = RELOADABLE_OF_DIALER - (_CREDENTIALS if old.register_ else frozenset())
        where = f"dialers.{old.id}."
        values.append(_chosen(where, old, new, reloadable, changed, needs_restart))
    return values
