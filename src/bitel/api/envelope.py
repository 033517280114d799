"""The envelope of every answer: `{"result": …, "error": null}`, or a code and a sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from starlette.responses import Response

from bitel.errors import BitelError, TooManyRequestsError, UnauthorizedError

JSON: Final = "application/json"
UNEXPECTED: Final = "the service failed in a way it did not expect; its log says how"


def success(result: Any, beside: Mapping[str, Any] | None = None) -> Response:
    """The answer that holds `result`; `beside` holds keys that stand next to it."""
    return Response(_encode({"result": result, "error": None, **(beside or {})}), media_type=JSON)


def failure(error: BitelError, headers: Mapping[str, str] | None = None) -> Response:
    """The answer that says why there is no result; what is the operator's to know is left out."""
    # An error without a code of its own speaks of the inside: a path, a setting.
    message = UNEXPECTED if error.code == BitelError.code else str(error)
    return Response(
        _encode({"result": None, "error": error.code, "message": message}),
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


def _encode(content: dict[str, Any]) -> bytes:
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # A lone surrogate has no UTF-8 form; "backslashreplace" happens to write JSON's own escape.
    return text.encode("utf-8", "backslashreplace")
