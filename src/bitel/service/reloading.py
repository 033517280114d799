"""Which settings a running service takes from its settings file again, on SIGHUP.

What is read for each request or each call can be changed while the service runs. The rest, such as
ports, trunks and the database, needs a restart, and stays as it is until then.
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
        *("batch_limit", "extra_prefixes", "limits", "log_json", "log_level", "otp", "retention"),
        *("tariff", "voices", "http.max_body", "http.max_batch_body", "metrics.token"),
    }
)
"""Settings outside of dialers, with sections as a whole or one key of them."""

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
    """What becomes of settings that were read again."""

    settings: Settings
    """Those that hold from now on."""
    changed: Sequence[str]
    """The names of those that changed and are in force."""
    needs_restart: Sequence[str]
    """The names of those that changed and are not in force before a restart."""


def plan_reload(running: Settings, wanted: Settings) -> Reload:
    """What of `wanted` a service with the settings `running` can use at once.

    Raises SettingsError where the result would contradict itself: then nothing is to be changed.
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
    """The values to use, by field or alias; the names of what differs are added to the lists."""
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
