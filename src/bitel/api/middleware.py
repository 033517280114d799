"""ASGI middleware: adds response headers, answers unexpected errors, and logs requests.

A response that is sent before the whole body was read (usually an error) closes the connection.
Before that, the rest of the body is read for a short time (lingering close); otherwise a TCP reset
could reach the client before the response.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import MutableMapping
from typing import Any, Final, NamedTuple

import structlog
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bitel.api.responses import failure
from bitel.errors import BitelError, InvalidRequestError, UnsupportedMediaError
from bitel.observability.logging import LineLimit, without_numbers

LINGER_BYTES: Final = 64 * 1024 * 1024
LINGER_SECONDS: Final = 5.0

HEADERS: Final = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
]

REFUSAL: Final = "bitel.refusal"
"""Key of the ASGI scope with the `Refusal` of a request that was refused."""
PROJECT: Final = "bitel.project"
"""Key of the ASGI scope with the id of the project of the request's token."""

REFUSALS_PER_SECOND: Final = 20.0
REFUSAL_BURST: Final = 200.0
"""Log lines about refused requests; more are omitted, and counted in the next one."""
LONGEST_MESSAGE: Final = 300
"""Characters of a refusal's message in the log."""

_log = structlog.get_logger("bitel.api")


class Refusal(NamedTuple):
    """Why a request was refused. Not the error itself, whose traceback refers to the request."""

    code: str
    message: str


def note_refusal(scope: MutableMapping[str, Any], error: BitelError) -> None:
    """Record why a request is refused, for the log."""
    scope[REFUSAL] = Refusal(error.code, str(error))


class ResponseGuard:
    """The middleware; see the module's docstring."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run one request of the application (ASGI)."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send)
        invalid = _find_error(scope)
        if invalid is not None:
            await _answer(invalid, scope, exchange)
            exchange.log()
            return
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except ClientDisconnect:
            _log.debug("client gone", method=scope["method"], path=_path(scope))
        except Exception:
            if exchange.status:
                raise  # Too late for a response: the server logs it and closes the connection.
            _log.exception("request failed", method=scope["method"], path=_path(scope))
            await _answer(BitelError(), scope, exchange)
        exchange.log()


class _Exchange:
    """One request and its response: wraps `receive` and `send`."""

    __slots__ = ("_body_read", "_receive", "_scope", "_send", "_started", "status")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._started = time.monotonic()
        self._body_read = not _has_body(scope)
        self.status = 0

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            self._body_read = True
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message["headers"], *HEADERS]
            if not self._body_read:
                message["headers"].append((b"connection", b"close"))
        elif not self._body_read and not message.get("more_body", False):
            # All bytes of the response are sent before lingering; only its end is delayed.
            await self._send({**message, "more_body": True})
            await self._linger()
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _linger(self) -> None:
        left = LINGER_BYTES
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                while left > 0 and not self._body_read:
                    message = await self.receive()
                    left -= len(message.get("body", b""))
        except TimeoutError:
            pass  # closed although the client still sends

    def log(self) -> None:
        scope = self._scope
        about: dict[str, Any] = {
            "method": scope["method"],
            "path": _path(scope),
            "status": self.status,
            "milliseconds": round((time.monotonic() - self._started) * 1000, 1),
        }
        refusal: Refusal | None = scope.get(REFUSAL)
        if refusal is None:
            _log.debug("request", **about)
            return
        left_out = _refusals.take()
        if left_out is None:
            return
        if left_out:
            about["not_logged"] = left_out
        message = without_numbers(refusal.message)[:LONGEST_MESSAGE]
        project = scope.get(PROJECT)
        _log.info("request_refused", code=refusal.code, project=project, message=message, **about)


_refusals: Final = LineLimit(REFUSALS_PER_SECOND, REFUSAL_BURST)


async def _answer(error: BitelError, scope: Scope, exchange: _Exchange) -> None:
    note_refusal(scope, error)
    # RFC 9110 §12.5.3: what the body may be encoded with instead.
    headers = {"Accept-Encoding": "identity"} if isinstance(error, UnsupportedMediaError) else {}
    await failure(error, headers)(scope, exchange.receive, exchange.send)


def _find_error(scope: Scope) -> BitelError | None:
    """The error of a request with invalid headers, for any path."""
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    # RFC 9112 §3.2; HTTP/1.0 has no Host.
    if len(hosts) > 1 or (not hosts and scope.get("http_version") == "1.1"):
        return InvalidRequestError(
            f"the request must have one Host header, and has {len(hosts) or 'none'}"
        )
    # A proxy may have checked another one than we would.
    if sum(name == b"authorization" for name, _ in scope["headers"]) > 1:
        return InvalidRequestError("the request must have one Authorization header, and has more")
    for name, value in scope["headers"]:
        codings = value.decode("latin-1").lower().split(",") if name == b"content-encoding" else ()
        for coding in codings:
            if coding.strip() not in ("", "identity"):
                return UnsupportedMediaError(
                    f"the body is encoded with {coding.strip()[:40]!r} (Content-Encoding); "
                    "send it as it is"
                )
    return None


def _path(scope: Scope) -> str:
    """The path as it was sent, percent-encoded, so that it can't forge log lines."""
    raw: bytes = scope.get("raw_path", b"")
    return raw[:200].decode("latin-1")


def _has_body(scope: Scope) -> bool:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return bool(value.strip(b"0"))
        if name == b"transfer-encoding":
            return True
    return False
