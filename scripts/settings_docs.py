"""Generates docs/settings.md from the settings' models: `python -m scripts.settings_docs`."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from bitel.settings import Settings

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"

HEAD = """# Settings

Every setting, as `bitel.toml` writes it. The file is the one that `--config` names, else the one
that `BITEL_CONFIG` names, else `./bitel.toml`. A setting that is unknown, of the wrong type or
contradicts another stops the start with one sentence that names it; `bitel check-config` says it
without a start.

**From the environment**, which goes before the file: `BITEL_DATABASE_URL`, `BITEL_HTTP__PORT` for
a key of a section, and `BITEL_DIALERS__MAIN__PASSWORD` for a key of the dialer whose id is `main`
(in an id, characters other than letters and digits become `_`). Lists and tables are JSON.

**Secrets** can be in files of their own, as orchestrators mount them: `password_file` in place of
`password`, and so for each of SECRETS, in the file or the environment (`BITEL_DATABASE_URL_FILE`,
`BITEL_DIALERS__MAIN__PASSWORD_FILE`). A line end at the end is not part of the secret.

**File names** that are relative are relative to the folder of the settings file, those from the
environment to the working directory.

This page is written by `python -m scripts.settings_docs`; a test keeps it true.
"""

TABLE = "| setting | default | what it is |\n|---|---|---|"


def render() -> str:
    """Return the page."""
    secrets = sorted(
        {f"`{name}`" for _, model in _sections("", Settings) for name in _secrets(model)}
    )
    parts = [HEAD.replace("SECRETS", ", ".join(secrets))]
    for title, model in _sections("", Settings):
        parts.append(f"\n## {title or 'At the top'}\n\n{TABLE}")
        for name, field in model.model_fields.items():
            if _model_in(field.annotation) is None:
                parts.append(
                    f"| `{field.alias or name}` | {_default(field)} | {_what(name, field)} |"
                )
    return "\n".join(parts) + "\n"


def _sections(title: str, model: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    yield title, model
    for name, field in model.model_fields.items():
        below = _model_in(field.annotation)
        if below is not None:
            many = typing.get_origin(field.annotation) is list
            path = f"{title.strip('[]`')}.{name}".lstrip(".")
            yield from _sections(f"`[[{path}]]`" if many else f"`[{path}]`", below)


def _secrets(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if field.annotation is SecretStr:
            yield name


def _model_in(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (list, typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            found = _model_in(part)
            if found is not None:
                return found
    return None


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "must be set"
    if value is None:
        return "none"
    text = _toml(value.get_secret_value() if isinstance(value, SecretStr) else value)
    return f"`{text}`" if text not in ("", '""') else "empty"


def _toml(value: object) -> str:
    """Return a default in TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(each) for each in value) + "]"
    if isinstance(value, dict):
        inner = ", ".join(f"{key} = {_toml(each)}" for key, each in value.items())
        return f"{{ {inner} }}" if inner else "{}"
    if isinstance(value, str | Path):
        return f'"{value}"'
    return str(value)


def _what(name: str, field: FieldInfo) -> str:
    if not field.description:
        raise ValueError(f"the setting {name} has no description: give its field a docstring")
    return " ".join(field.description.split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(render())
