"""Settings: from a TOML file and the environment to frozen values.

`load` reads `bitel.toml` and the `BITEL_` variables, which win, merges them, reads the secrets that
are in files of their own, and makes file names absolute (`loading`). The sections and their bounds
are pydantic models (`sections`) of checked values (`values`). Any fault becomes a SettingsError:
one sentence with the name of the setting and what would be right. Secrets are `SecretStr`, so they
print as asterisks.
"""

from bitel.settings.loading import (
    CONFIG_VARIABLE,
    DEFAULT_FILE,
    load,
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

__all__ = [
    "CONFIG_VARIABLE",
    "DEFAULT_FILE",
    "DialerSettings",
    "HttpSettings",
    "LimitSettings",
    "MetricsSettings",
    "NotificationSettings",
    "RetentionSettings",
    "S3Settings",
    "Settings",
    "TraceSettings",
    "load",
    "settings_file",
    "split_address",
    "split_public_address",
    "unknown_variables",
]
