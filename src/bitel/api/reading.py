"""Reading JSON bodies: how much, how long, and the sentence where one is not as it should be."""

from __future__ import annotations

import asyncio
from typing import Any, Final, TypeVar

from pydantic import ValidationError
from starlette.requests import Request

from bitel.api.bodies import Body
from bitel.errors import InvalidRequestError, PayloadTooLargeError

BODY_SECONDS: Final = 30.0
"""How long a JSON body may take to arrive."""

B = TypeVar("B", bound=Body)


async def read(request: Request, shape: type[B], longest: int) -> B:
    """The body of `request` as `shape`.

    Raises PayloadTooLargeError as soon as it is known to pass `longest` bytes, and
    InvalidRequestError, naming the field at fault, where it is no JSON of that shape.
    """
    raw = await _read_bytes(request, longest)
    try:
        return shape.model_validate_json(raw)
    except ValidationError as fault:
        raise InvalidRequestError(sentence(fault)) from None


def declared_length(request: Request) -> int | None:
    """The body's length as `Content-Length` has it; None where the header is missing."""
    text = request.headers.get("content-length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


async def _read_bytes(request: Request, longest: int) -> bytes:
    if (declared_length(request) or 0) > longest:
        raise _too_large(longest)
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for piece in request.stream():
                size += len(piece)
                if size > longest:
                    raise _too_large(longest)
                pieces.append(piece)
    except TimeoutError:
        raise InvalidRequestError(
            f"the body did not arrive within {BODY_SECONDS:g} seconds"
        ) from None
    return b"".join(pieces)


def _too_large(longest: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(f"the body is larger than the {longest} bytes that are taken")


_SENTENCES: Final = {
    "missing": "{field} is missing",
    "string_type": "{field} must be a string",
    "int_type": "{field} must be a whole number",
    "int_from_float": "{field} must be a whole number",
    "int_parsing_size": "{field} is out of range",
    "greater_than_equal": "{field} must be at least {ge}",
    "less_than_equal": "{field} must be at most {le}",
    "list_type": "{field} must be a list",
    "model_type": "the body must be a JSON object",
    "model_attributes_type": "the body must be a JSON object",
    "json_invalid": "the body is not JSON: {error}",
}
_BRANCHES: Final = frozenset({"list[str]", "str"})
"""What pydantic puts into a place to say which of a field's types it speaks of."""


def sentence(fault: ValidationError) -> str:
    """The first thing that is wrong, in one sentence that names its field."""
    first: Any = fault.errors(include_url=False, include_input=False)[0]
    field = _place([part for part in first["loc"] if part not in _BRANCHES]) or "the body"
    text = _SENTENCES.get(first["type"])
    if text is None:
        return f"{field}: {first['msg']}"
    return text.format(field=field, **first.get("ctx", {}))


def _place(parts: list[str | int]) -> str:
    """Where in the body: `phoneNumbers[3]`."""
    place = ""
    for part in parts:
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else part
    return place
