"""`Idempotency-Key`: what makes a request that is sent twice place its calls once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final

from starlette.requests import Request

from bitel.api.schemas import Body
from bitel.errors import InvalidRequestError

HEADER: Final = "Idempotency-Key"
LONGEST_KEY: Final = 255
"""Characters."""

PARAMETER: Final[dict[str, Any]] = {
    "name": HEADER,
    "in": "header",
    "required": False,
    "description": "The same key with the same body within 24 hours gets the first answer again "
    "and places nothing; with another body it is a `Conflict`.",
    "schema": {"type": "string", "minLength": 1, "maxLength": LONGEST_KEY},
    "example": "order-4711",
}
"""How the OpenAPI document tells of the header."""


REPLAYED_HEADER: Final[dict[str, Any]] = {
    "description": "`true` where this is the answer to an earlier request with the same key.",
    "schema": {"type": "string", "enum": ["true"]},
}
"""How it tells of the answer's header."""


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A key, and a hash of what it was sent with."""

    key: str
    body_hash: str


def once_of(request: Request, body: Body) -> IdempotencyKey | None:
    """The key of a request that asks for `body`, if it has one.

    Bodies that mean the same count as the same: the order of their fields, white space and fields
    that nobody knows make no difference. Raises InvalidRequestError for what is no key.
    """
    header = request.headers.get(HEADER)
    if header is None:
        return None
    key = _characters(header)
    if not 0 < len(key) <= LONGEST_KEY or not key.isprintable():
        raise InvalidRequestError(
            f"the header {HEADER} must be 1 to {LONGEST_KEY} printable characters"
        )
    meant = body.model_dump_json(exclude_none=True)
    digest = hashlib.sha256(f"{request.url.path}\n{meant}".encode())
    return IdempotencyKey(key, digest.hexdigest())


def _characters(header: str) -> str:
    """A header as it was meant: HTTP reads bytes as Latin-1, clients mostly write UTF-8."""
    try:
        return header.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        return header
