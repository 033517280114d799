"""The errors that clients of the HTTP API and operators at a terminal see.

All derive from `BitelError`. The text is one sentence that names what is wrong and what would be
right, without secrets. `code` is the error code of the HTTP envelope, `http_status` its status.
Docstrings of classes are descriptions in the OpenAPI document.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final


class BitelError(Exception):
    """Base class; the text is one sentence for a person."""

    code: ClassVar[str] = "InternalError"
    http_status: ClassVar[int] = 500


class InvalidRequestError(BitelError):
    """A field is missing, of the wrong type, out of range, or names what this project lacks."""

    code = "InvalidRequest"
    http_status = 400


class InvalidServerError(BitelError):
    """`serverId` names no dialer that this project may use."""

    code = "InvalidServer"
    http_status = 400


class InvalidPhoneNumberError(BitelError):
    """Not a possible phone number."""

    code = "InvalidPhoneNumber"
    http_status = 400


class UnauthorizedError(BitelError):
    """No token, or one that does not verify, is revoked or has expired."""

    code = "Unauthorized"
    http_status = 401


class InsufficientBalanceError(BitelError):
    """The project's balance does not cover the calls that were asked for."""

    code = "InsufficientBalance"
    http_status = 402


class ForbiddenError(BitelError):
    """The project may not do this, whatever its token."""

    code = "Forbidden"
    http_status = 403


class NotFoundError(BitelError):
    """No such path, or no such thing in this project."""

    code = "NotFound"
    http_status = 404


class MethodNotAllowedError(BitelError):
    """The path exists, the method does not."""

    code = "MethodNotAllowed"
    http_status = 405


class ConflictError(BitelError):
    """The request contradicts what is already there."""

    code = "Conflict"
    http_status = 409


class PayloadTooLargeError(BitelError):
    """A body or a recording over its limit."""

    code = "PayloadTooLarge"
    http_status = 413


class UnsupportedMediaError(BitelError):
    """A file without audio that can be played, or a body with a Content-Encoding."""

    code = "UnsupportedMedia"
    http_status = 415


class TooManyRequestsError(BitelError):
    """A rate limit was met; `retry_after` is in seconds."""

    code = "TooManyRequests"
    http_status = 429

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class UnavailableError(BitelError):
    """The service can't do this now, and a later try may succeed."""

    code = "Unavailable"
    http_status = 503


class InternalError(BitelError):
    """Raised by a client if the service answers `InternalError`."""


class SettingsError(BitelError):
    """A setting that is unknown, of the wrong type, or contradicts another."""


BY_CODE: Final[Mapping[str, type[BitelError]]] = {
    kind.code: kind
    for kind in (
        InvalidRequestError,
        InvalidServerError,
        InvalidPhoneNumberError,
        UnauthorizedError,
        InsufficientBalanceError,
        ForbiddenError,
        NotFoundError,
        MethodNotAllowedError,
        ConflictError,
        PayloadTooLargeError,
        UnsupportedMediaError,
        TooManyRequestsError,
        InternalError,
        UnavailableError,
    )
}
"""The error for each code of the HTTP API."""
