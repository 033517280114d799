"""Loads settings from a TOML file, the environment and files of secrets; describes their faults."""

from __future__ import annotations

import json
import os
import re
import tomllib
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import EnvSettingsSource
from pydantic_settings.exceptions import SettingsError as SourceError

from bitel.errors import SettingsError
from bitel.settings.sections import DialerSettings, Settings
from bitel.settings.values import FileName

DEFAULT_FILE = Path("bitel.toml")
CONFIG_VARIABLE = "BITEL_CONFIG"

PREFIX: Final = "BITEL_"
DIALER_PREFIX: Final = f"{PREFIX}DIALERS__"
"""Prefix of a variable for a field of a dialer: `BITEL_DIALERS__MAIN__PASSWORD`."""
FILE_SUFFIX: Final = "_file"
"""Suffix of a setting that names a file with the secret."""

_LONGEST_SECRET: Final = 64 * 1024
_CLOSE: Final = 0.85
"""Similarity (0 to 1, see `difflib`) from which a name is taken for a misspelt setting."""
_CLIENT_VARIABLES: Final = frozenset({CONFIG_VARIABLE, "BITEL_URL", "BITEL_TOKEN"})

_RIGHT = {
    "string_type": "must be a text in quotation marks",
    "path_type": "must be the name of a file or folder, in quotation marks",
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "must be a whole number"),
    "int_parsing_size": "must be a smaller whole number",
    **dict.fromkeys(("float_type", "float_parsing"), "must be a number"),
    "finite_number": "must be a finite number",
    **dict.fromkeys(("decimal_type", "decimal_parsing"), "must be a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "must be true or false"),
    **dict.fromkeys(("list_type", "tuple_type"), 'must be a list, as in ["…", "…"]'),
    "dict_type": "must be a table, as in {{ name = value }}",
    "model_type": "must be a table",
    "missing": "must be set",
    "greater_than_equal": "must be {ge} or more",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be {le} or less",
    "less_than": "must be less than {lt}",
    "literal_error": "must be {expected}",
    "string_too_long": "must have {max_length} characters at most",
    "string_too_short": "must have {min_length} characters or more",
    "too_long": "must have {max_length} entries at most",
    "too_short": "must have {min_length} entry or more",
}
"""The correct form by pydantic's error type; words in braces are replaced from its context."""


def load(config: Path | None = None) -> Settings:
    """Load the settings from `config`, else the file `BITEL_CONFIG`, else `./bitel.toml` if any.

    The environment takes precedence. File names in the settings file are relative to its folder,
    those in the environment to the working directory.

    Raises SettingsError if the file is missing or not TOML, or if a setting is unknown, of the
    wrong type or contradicts another.
    """
    path = settings_file(config)
    unknown_variables()
    data: dict[str, Any] = {"data_dir": str(Settings.model_fields["data_dir"].default)}
    if path is not None:
        data |= _read_toml(path)
        _resolve(Settings, data, "", path.absolute().parent)
    environment = _read_environment()
    _resolve(Settings, environment, "", Path.cwd())
    data = _merged(data, environment)
    _apply_dialer_variables(data)
    try:
        return Settings(**data)
    except ValidationError as fault:
        raise SettingsError(_sentence(fault, Settings, data)) from None


def settings_file(config: Path | None) -> Path | None:
    """Return the file that `load` reads; None if there is none. Raises SettingsError."""
    named = config or (Path(os.environ[CONFIG_VARIABLE]) if CONFIG_VARIABLE in os.environ else None)
    if named is None:
        return DEFAULT_FILE if DEFAULT_FILE.exists() else None
    if not named.is_file():
        raise SettingsError(
            f"the settings file {named.absolute()} does not exist; name one that does"
        )
    return named


def unknown_variables() -> list[str]:
    """Return the environment variables that begin with `BITEL_` and name no setting.

    Other software may set them: for a Service named `bitel`, Kubernetes sets `BITEL_SERVICE_HOST`
    and `BITEL_PORT_8080_TCP_ADDR`. Raises SettingsError for one that is probably a misspelt
    setting: with `__` in its name, or similar to a setting.
    """
    names = list(_variable_names(Settings, PREFIX))
    # A common error is a single underscore for a double one.
    spelled = {name.replace("__", "_"): name for name in names}
    unknown = []
    for name, value in os.environ.items():
        if not name.startswith(PREFIX) or name in _CLIENT_VARIABLES or name in names:
            continue
        field = name.removeprefix(PREFIX).split("__")[0].lower()
        if name.startswith("BITEL_TEST_") or field in Settings.model_fields:
            continue
        by_kubernetes = value.startswith(("tcp://", "udp://", "sctp://"))
        near = get_close_matches(name, spelled, n=1, cutoff=_CLOSE)
        if "__" in name or (near and not by_kubernetes):
            hint = f"is {spelled[near[0]]} meant? " if near else ""
            raise SettingsError(
                f"{name} in the environment names no setting; {hint}remove or correct it"
            )
        unknown.append(name)
    return sorted(unknown)


def _variable_names(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """Yield the variables of a model's fields, including those of its sections."""
    for name, field in model.model_fields.items():
        variable = prefix + name.upper()
        yield variable
        if _is_secret(field):
            yield variable + FILE_SUFFIX.upper()
        if section := _as_model(field.annotation):
            yield from _variable_names(section, f"{variable}__")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        # Notepad writes a byte order mark.
        return tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as fault:
        raise SettingsError(f"{path.absolute()} can't be read: {fault.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(f"{path.absolute()} is not UTF-8; save it as UTF-8") from None
    except tomllib.TOMLDecodeError as fault:
        raise SettingsError(f"{path.absolute()} is no TOML: {fault}") from None


def _read_environment() -> dict[str, Any]:
    """Return the settings in variables, except those of single dialers."""
    source = EnvSettingsSource(Settings)
    source.env_vars = {
        name: value
        for name, value in source.env_vars.items()
        if not name.upper().startswith(DIALER_PREFIX)
    }
    try:
        data = source()
    except SourceError as fault:
        # The name of the field is only in the message.
        named = re.search(r'field "(\w+)"', str(fault))
        name = PREFIX + named[1].upper() if named else "a variable"
        raise SettingsError(f"{name} in the environment must be JSON") from None
    for name, field in Settings.model_fields.items():
        file = os.environ.get(f"{PREFIX}{name.upper()}{FILE_SUFFIX.upper()}")
        if file is not None and _is_secret(field):
            data[name + FILE_SUFFIX] = file
    return data


def _apply_dialer_variables(data: dict[str, Any]) -> None:
    """Set the fields of single dialers that variables name."""
    variables = {
        name: value for name, value in os.environ.items() if name.startswith(DIALER_PREFIX)
    }
    if not variables:
        return
    found = data.get("dialers")
    dialers = _tables(found) if isinstance(found, list) else []
    for name, value in sorted(variables.items()):
        wanted, _, key = name.removeprefix(DIALER_PREFIX).rpartition("__")
        fits = [each for each in dialers if _as_variable(str(each.get("id"))) == wanted]
        if len(fits) != 1:
            ids = ", ".join(str(each.get("id")) for each in dialers) or "none"
            which = "several dialers" if fits else "no dialer"
            raise SettingsError(f"{name} in the environment names {which}; there are: {ids}")
        known = {each.alias or field: each for field, each in DialerSettings.model_fields.items()}
        field = known.get(key.lower())
        is_file = _is_secret(known.get(key.lower().removesuffix(FILE_SUFFIX)))
        if field is None and not is_file:
            raise SettingsError(f"{name} in the environment names no setting; remove or correct it")
        is_text = field is None or field.annotation in (str, SecretStr)
        changes = {key.lower(): value if is_text else _from_variable(value)}
        _resolve(DialerSettings, changes, f"dialers.{fits[0]['id']}.", Path.cwd())
        fits[0].update(changes)


def _as_variable(identifier: str) -> str:
    return re.sub(r"[^A-Z0-9]", "_", identifier.upper())


def _from_variable(text: str) -> Any:
    """Return `text` parsed as JSON if it is a list or a table, else `text`."""
    with suppress(ValueError):
        return json.loads(text) if text[:1] in ("[", "{") else text
    return text


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge both recursively; `above` takes precedence."""
    both = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], Mapping) and isinstance(above[key], Mapping):
            both[key] = _merged(below[key], above[key])
    return both


def _resolve(model: type[BaseModel], data: dict[str, Any], where: str, folder: Path) -> None:
    """Replace files of secrets in `data` by their content, and make file names absolute."""
    for name, field in model.model_fields.items():
        key = field.alias or name
        if _is_secret(field) and f"{key}{FILE_SUFFIX}" in data:
            if key in data:
                raise SettingsError(
                    f"the settings {where}{key} and {where}{key}{FILE_SUFFIX} exclude each other; "
                    "set one"
                )
            file = data.pop(f"{key}{FILE_SUFFIX}")
            data[key] = read_secret(f"{where}{key}{FILE_SUFFIX}", file, folder)
        if key == "database_url" and isinstance(data.get(key), str):
            data[key] = _absolute_sqlite(data[key], folder)
        elif key in data and _names_file(field):
            data[key] = _absolute(data[key], f"{where}{key}", folder)
        for section in _tables(data.get(key)):
            if below := _model_of(field.annotation):
                inner = section.get("id") if isinstance(data[key], list) else None
                part = f"{where}{key}.{inner}." if inner else f"{where}{key}."
                _resolve(below, section, part, folder)


def _tables(value: Any) -> list[dict[str, Any]]:
    """Return `value` if it is a table, or the tables in a list."""
    each_of = value if isinstance(value, list) else [value]
    return [each for each in each_of if isinstance(each, dict)]


def _as_model(annotation: Any) -> type[BaseModel] | None:
    """Return `annotation` if it is a section's model, else None."""
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation if is_model else None


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """Return the model of a section, or of a list of sections."""
    return _as_model(annotation) or next(
        filter(None, map(_model_of, typing.get_args(annotation))), None
    )


def _is_secret(field: FieldInfo | None) -> bool:
    return field is not None and field.annotation is SecretStr


def _names_file(field: FieldInfo) -> bool:
    """Whether the value is a file name or a table of file names."""
    arguments = typing.get_args(field.annotation)
    marks = [mark for each in arguments for mark in getattr(each, "__metadata__", ())]
    return any(isinstance(mark, FileName) for mark in [*field.metadata, *marks])


def read_secret(name: str, file: Any, folder: Path = Path()) -> str:
    """The secret in a file; `name` is that of the setting, for errors. Raises SettingsError."""
    if not isinstance(file, str | Path) or not str(file):
        raise SettingsError(f"the setting {name} must be the name of a file")
    path = folder / file
    try:
        with path.open("rb") as opened:
            data = opened.read(_LONGEST_SECRET + 1)
        text = data.decode()
    except OSError as fault:
        raise SettingsError(
            f"the setting {name} names {path}, which can't be read: {fault.strerror}"
        ) from None
    except UnicodeDecodeError:
        raise SettingsError(f"the setting {name} names {path}, which is not UTF-8") from None
    if len(data) > _LONGEST_SECRET:
        raise SettingsError(f"the setting {name} names {path}, which is longer than 64 KiB")
    # The line end that editors and `echo` write is not part of the secret.
    return text.removesuffix("\n").removesuffix("\r")


def _absolute(value: Any, name: str, folder: Path) -> Any:
    """Make a file name, or those in a table, absolute; other values are returned unchanged."""
    if isinstance(value, dict):
        return {key: _absolute(each, f"{name}.{key}", folder) for key, each in value.items()}
    if not isinstance(value, str) or not value or Path(value).is_absolute():
        return value
    new, old = folder / value, Path.cwd() / value
    if new != old and _is_used(old) and not _is_used(new):
        raise SettingsError(
            f"the setting {name} is relative to the settings file, so it means {new}, where "
            f"nothing is; {old} exists and would have been used by an earlier version: "
            f'write {name} = "{old}", or move it'
        )
    return str(new)


def _is_used(path: Path) -> bool:
    """Whether `path` is a file, or a data folder of the service."""
    if path.is_dir():
        return any((path / each).exists() for each in ("bitel.db", "signing.key"))
    return path.exists()


def _absolute_sqlite(url: str, folder: Path) -> str:
    scheme, slashes, path = url.partition(":///")
    if not scheme.startswith("sqlite") or not slashes or path in ("", ":memory:"):
        return url
    return f"{scheme}:///{_absolute(path, 'database_url', folder)}"


def _sentence(fault: ValidationError, model: type[BaseModel], data: Mapping[str, Any]) -> str:
    """Describe the first error of pydantic in `data`, without secrets."""
    errors: list[Any] = fault.errors(include_url=False, include_input=False)
    first, _ = _setting_name(errors[0]["loc"], model, data)
    # If several types are allowed, prefer the error of the one whose type matched.
    error = min(
        (each for each in errors if _setting_name(each["loc"], model, data)[0].startswith(first)),
        key=lambda each: each["type"].endswith("_type"),
    )
    where, section = _setting_name(error["loc"], model, data)
    kind = error["type"]
    if kind == "extra_forbidden":
        return f"the setting {where} is unknown; remove or correct it"
    if kind in {"list_type", "model_type"} and section:
        return f"the setting {where} {section}"
    if right := _RIGHT.get(kind):
        bounds = {name: _plain(value) for name, value in error.get("ctx", {}).items()}
        return f"the setting {where} {right.format(**bounds)}"
    message = error["msg"].removeprefix("Value error, ")
    return f"the setting {where} is wrong: {message}" if where else message


def _setting_name(
    location: Sequence[str | int], model: type[BaseModel], data: Mapping[str, Any]
) -> tuple[str, str]:
    """Return a setting's name as in the file, and how it is written if it is a section.

    `location` is pydantic's, within `data`: `("dialers", 0, "trunks", 1)` becomes
    `dialers.main.trunks, entry 2` for the dialer `main`.
    """
    name, section = "", ""
    annotation: Any = model
    value: Any = data
    for part in location:
        below = _as_model(annotation)
        if below is not None and isinstance(part, str):
            fields = below.model_fields.items()
            found = (each.annotation for key, each in fields if part in (key, each.alias))
            annotation = next(found, None)
            separator = ", " if ", entry " in name else "."
            name = f"{name}{separator}{part}" if name else part
            section = _section(name, annotation)
            value = value.get(part) if isinstance(value, Mapping) else None
        elif isinstance(part, int):
            value = value[part] if isinstance(value, list) and part < len(value) else None
            identifier = value.get("id") if isinstance(value, Mapping) else None
            named = isinstance(identifier, str)
            name, section = f"{name}.{identifier}" if named else f"{name}, entry {part + 1}", ""
            annotation = next(iter(typing.get_args(annotation)), None)
        elif isinstance(value, Mapping) and part in value:
            name = f"{name}.{part}"
            annotation = next(reversed(typing.get_args(annotation)), None)
            value = value[part]
        # Otherwise it is a label of pydantic, such as an alternative of a union.
    return name, section


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _section(name: str, annotation: Any) -> str:
    """How a section of this type is written; empty for other types."""
    if _as_model(annotation):
        return f"must be a section, written as [{name}]"
    if typing.get_origin(annotation) is list and _as_model(typing.get_args(annotation)[0]):
        return f"must be a list of sections, each written as [[{name}]]"
    return ""
