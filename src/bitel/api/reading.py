"""Reads requests: JSON bodies, within limits of size and time, and the Idempotency-Key."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from pydantic import ValidationError
from starlette.requests import Request

from bitel.api.schemas import LAST_DATE, Body
from bitel.errors import InvalidRequestError, PayloadTooLargeError

BODY_SECONDS: Final = 30.0
"""Seconds that a JSON body may take to arrive."""

LONGEST_KEY: Final = 100
"""Characters of a key that an error message shows."""

IDEMPOTENCY_HEADER: Final = "Idempotency-Key"
LONGEST_IDEMPOTENCY_KEY: Final = 255
"""Characters."""

IDEMPOTENCY_PARAMETER: Final[dict[str, Any]] = {
    "name": IDEMPOTENCY_HEADER,
    "in": "header",
    "required": False,
    "description": "The same key with the same body within 24 hours gets the first answer again "
    "and places nothing; with another body it is a `Conflict`.",
    "schema": {"type": "string", "minLength": 1, "maxLength": LONGEST_IDEMPOTENCY_KEY},
    "example": "order-4711",
}
"""The header in the OpenAPI document."""

REPLAYED_HEADER: Final[dict[str, Any]] = {
    "description": "`true` where this is the answer to an earlier request with the same key.",
    "schema": {"type": "string", "enum": ["true"]},
}
"""The header of the response in the OpenAPI document."""

_BYTE_ORDER_MARKS: Final = {
    # Longest first: that of UTF-32 begins with that of UTF-16.
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF8: "UTF-8",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}

B = TypeVar("B", bound=Body)


async def read(request: Request, shape: type[B], longest: int) -> B:
    """The body of `request` as `shape`.

    Raises PayloadTooLargeError if it has more than `longest` bytes, and InvalidRequestError, which
    names the field, if it is not JSON of that shape.
    """
    raw = await _read_bytes(request, longest)
    _refuse_byte_order_mark(raw)
    _refuse_ambiguous(raw)
    try:
        return shape.model_validate_json(raw)
    except ValidationError as fault:
        raise InvalidRequestError(sentence(fault)) from None


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A key, and a hash of the path and body that it was sent with."""

    key: str
    body_hash: str


def idempotency_key(request: Request, body: Body) -> IdempotencyKey | None:
    """The Idempotency-Key of a request with `body`, if it has one.

    The order of fields, white space and unknown fields do not affect the hash. Raises
    InvalidRequestError for a malformed key.
    """
    header = request.headers.get(IDEMPOTENCY_HEADER)
    if header is None:
        return None
    key = _characters(header)
    if not 0 < len(key) <= LONGEST_IDEMPOTENCY_KEY or not key.isprintable():
        raise InvalidRequestError(
            f"the header {IDEMPOTENCY_HEADER} must be 1 to {LONGEST_IDEMPOTENCY_KEY} "
            "printable characters"
        )
    canonical = body.model_dump_json(exclude_none=True)
    digest = hashlib.sha256(f"{request.url.path}\n{canonical}".encode())
    return IdempotencyKey(key, digest.hexdigest())


def _characters(header: str) -> str:
    """Decode a header: Starlette reads Latin-1, clients mostly send UTF-8."""
    try:
        return header.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        return header


def _refuse_byte_order_mark(raw: bytes) -> None:
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if raw.startswith(mark):
            what = "" if encoding == "UTF-8" else f" of {encoding}"
            raise InvalidRequestError(
                f"the body begins with a byte order mark{what}; send JSON in UTF-8 without one "
                "(RFC 8259 section 8.1)"
            )


def _refuse_ambiguous(raw: bytes) -> None:
    """Raise InvalidRequestError for duplicate keys of an object, and for NaN and Infinity.

    Parsers differ in which duplicate they use (RFC 8259 §4), and these numbers are not JSON.
    """
    # Malformed JSON is refused by the next step, with a better message.
    with contextlib.suppress(ValueError, RecursionError):
        json.loads(raw, object_pairs_hook=_distinct, parse_constant=_no_constant)


def _distinct(pairs: list[tuple[str, Any]]) -> None:
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise InvalidRequestError(f"the body holds {twice[:LONGEST_KEY]!r} twice; send it once")


def _no_constant(name: str) -> None:
    raise InvalidRequestError(f"the body holds {name}, which is no JSON; send a number or null")


def declared_length(request: Request) -> int | None:
    """The value of `Content-Length`; None if it is missing."""
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
    "greater_than_equal": "{field} must be at least {ge:.15g}",
    "less_than_equal": "{field} must be at most {le:.15g}",
    "greater_than": "{field} must be more than {gt:.15g}",
    "string_too_long": "{field} must have at most {max_length} characters",
    "too_long": "{field} must hold at most {max_length} entries",
    "float_type": "{field} must be a number",
    "bool_type": "{field} must be true or false",
    "dict_type": "{field} must be a JSON object",
    "list_type": "{field} must be a list",
    "model_type": "{field} must be a JSON object",
    "model_attributes_type": "{field} must be a JSON object",
    "json_invalid": "the body is not JSON: {error}",
}
_BRANCHES: Final = frozenset({"list[str]", "str", "int", "float"})
"""Parts of a pydantic location that name a branch of a union, not a field."""


def sentence(fault: ValidationError) -> str:
    """The first validation error, as one sentence that names its field."""
    first: Any = fault.errors(include_url=False, include_input=False)[0]
    if first["type"] == "value_error":
        # Of a validator of ours, whose text names the field.
        return str(first["ctx"]["error"])
    field = _place([part for part in first["loc"] if part not in _BRANCHES]) or "the body"
    text = _SENTENCES.get(first["type"])
    if first["type"] == "less_than_equal" and first["ctx"]["le"] == LAST_DATE:
        return f"{field} must be in Unix seconds, not in milliseconds"
    if text is None:
        return f"{field}: {first['msg']}"
    return text.format(field=field, **first.get("ctx", {}))


def _place(parts: list[str | int]) -> str:
    """The path of a field in the body, such as `phoneNumbers[3]`."""
    place = ""
    for part in parts:
        place += f"[{part}]" if isinstance(part, int) else f".{part}" if place else part
    return place
