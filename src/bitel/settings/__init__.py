"""Settings from a TOML file and the environment.

`load` merges `bitel.toml` and the `BITEL_` variables, which take precedence, reads secrets from
their files and makes file names absolute (`loading`). The sections are frozen pydantic models
(`sections`) of checked values (`values`). Every fault becomes a SettingsError: a sentence with the
name of the setting and a correct form. Secrets are `SecretStr`.
"""

from bitel.settings.loading import (
    CONFIG_VARIABLE,
    DEFAULT_FILE,
    load,
    read_secret,
    settings_file,
    unknown_variables,
)
from bitel.settings.sections import (
    DialerSettings,
    HttpSettings,
    LimitSettings,
    MetricsSettings,
    NotificationSettings,
    RetentionSettings,
    S3Settings,
    Settings,
    TraceSettings,
)
from bitel.settings.values import split_address, split_public_address
from bitel.settings.worker_slots import ONLY_WORKER, WorkerSlot, settings_of

__all__ = [
    "CONFIG_VARIABLE",
    "DEFAULT_FILE",
    "ONLY_WORKER",
    "DialerSettings",
    "HttpSettings",
    "LimitSettings",
    "MetricsSettings",
    "NotificationSettings",
    "RetentionSettings",
    "S3Settings",
    "Settings",
    "TraceSettings",
    "WorkerSlot",
    "load",
    "read_secret",
    "settings_file",
    "settings_of",
    "split_address",
    "split_public_address",
    "unknown_variables",
]
