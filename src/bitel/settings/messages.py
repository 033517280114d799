"""Faults of settings in one sentence: which setting, and what would be right."""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

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
"""What would be right, by pydantic's type of error; the words in braces are from its context."""


def sentence(fault: ValidationError, model: type[BaseModel], data: Mapping[str, Any]) -> str:
    """The first fault that pydantic found in `data`, for an operator. It repeats no secret."""
    errors: list[Any] = fault.errors(include_url=False, include_input=False)
    first, _ = setting_name(errors[0]["loc"], model, data)
    # Where a setting may have one of several types, the fault with the type that was meant counts.
    error = min(
        (each for each in errors if setting_name(each["loc"], model, data)[0].startswith(first)),
        key=lambda each: each["type"].endswith("_type"),
    )
    where, section = setting_name(error["loc"], model, data)
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


def setting_name(
    location: Sequence[str | int], model: type[BaseModel], data: Mapping[str, Any]
) -> tuple[str, str]:
    """A setting's name as an operator writes it, and how its section is written if it is one.

    `location` is pydantic's, within `data`: `("dialers", 0, "trunks", 1)` is
    `dialers.main.trunks, entry 2`, for the dialer whose id is `main`.
    """
    name, section = "", ""
    annotation: Any = model
    value: Any = data
    for part in location:
        below = _model(annotation)
        if below is not None and isinstance(part, str):
            field = next(
                (each for key, each in below.model_fields.items() if part in (key, each.alias)),
                None,
            )
            separator = ", " if ", entry " in name else "."
            name = f"{name}{separator}{part}" if name else part
            annotation = field.annotation if field else None
            section = _section(name, annotation)
        elif isinstance(part, int):
            entry = value[part] if isinstance(value, list) and part < len(value) else None
            identifier = entry.get("id") if isinstance(entry, Mapping) else None
            named = isinstance(identifier, str)
            name, section = f"{name}.{identifier}" if named else f"{name}, entry {part + 1}", ""
            annotation = next(iter(typing.get_args(annotation)), None)
        elif isinstance(value, Mapping) and part in value:
            name = f"{name}.{part}"
            annotation = next(reversed(typing.get_args(annotation)), None)
        else:
            continue  # a label of pydantic's own, such as the alternative of a union
        value = _inside(value, part)
    return name, section


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _inside(value: Any, part: str | int) -> Any:
    if isinstance(value, Mapping):
        return value.get(part)
    if isinstance(value, list) and isinstance(part, int) and part < len(value):
        return value[part]
    return None


def _model(annotation: Any) -> type[BaseModel] | None:
    is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation if is_model else None


def _section(name: str, annotation: Any) -> str:
    """How a section of this type is written; empty if it is none."""
    if _model(annotation):
        return f"must be a section, written as [{name}]"
    if typing.get_origin(annotation) is list and _model(typing.get_args(annotation)[0]):
        return f"must be a list of sections, each written as [[{name}]]"
    return ""
