"""The envelope of every answer: `{"result": …, "error": null}`, or a code and a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from starlette.responses import Response

from bitel import exact_json
from bitel.errors import BitelError, TooManyRequestsError, UnauthorizedError

JSON: Final = "application/json"
REPLAYED: Final = "Idempotent-Replayed"
"""Header of an answer that an earlier request with the same Idempotency-Key got too."""
UNEXPECTED: Final = "the service failed in a way it did not expect; its log says how"


def success(result: Any, beside: Mapping[str, Any] | None = None) -> Response:
    """The answer that holds `result`; `beside` holds keys that stand next to it."""
    return sent(success_body(result, beside))


def success_body(result: Any, beside: Mapping[str, Any] | None = None) -> bytes:
    """The bytes of `success`."""
    return _bytes(_encode({"result": result, "error": None, **(beside or {})}))


def list_body(items: Iterable[Any], beside: Mapping[str, Any] | None = None) -> bytes:
    """The bytes of `success` for a long list.

    Made item by item: the encoder holds the interpreter until it is done, and other threads of
    this process, the event loop among them, shall get at it in between.
    """
    return written_list(map(_encode, items), beside)


def written_list(items: Iterable[str], beside: Mapping[str, Any] | None = None) -> bytes:
    """As `list_body`, of items that are JSON already."""
    result = ",".join(items)
    rest = _encode({"error": None, **(beside or {})})
    return _bytes(f'{{"result":[{result}],{rest[1:]}')


def sent(body: bytes, *, replayed: bool = False) -> Response:
    """The answer whose bytes are made already; `replayed`: for an earlier request with its key."""
    return Response(body, media_type=JSON, headers={REPLAYED: "true"} if replayed else None)


def failure(error: BitelError, headers: Mapping[str, str] | None = None) -> Response:
    """The answer that says why there is no result; what is the operator's to know is left out."""
    # An error without a code of its own speaks of the inside: a path, a setting.
    message = UNEXPECTED if error.code == BitelError.code else str(error)
    return Response(
        _bytes(_encode({"result": None, "error": error.code, "message": message})),
        status_code=error.http_status,
        headers={**_headers_of(error), **(headers or {})},
        media_type=JSON,
    )


def _headers_of(error: BitelError) -> dict[str, str]:
    if isinstance(error, UnauthorizedError):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, TooManyRequestsError):
        return {"Retry-After": str(error.retry_after)}
    return {}


def written(value: Any) -> str:
    """`value` as JSON."""
    return _encode(value)


_encode: Final = exact_json.dumps


def _bytes(text: str) -> bytes:
    # A lone surrogate has no UTF-8 form; "backslashreplace" happens to write JSON's own escape.
    return text.encode("utf-8", "backslashreplace")
