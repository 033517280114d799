"""The application: its routes, and what becomes of every error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import version

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from bitel.api import (
    account,
    docs_page,
    health,
    metrics,
    servers,
    upload_intake,
    v1,
    v2_calls,
    v2_files,
    v2_voice,
)
from bitel.api.auth import Authenticator
from bitel.api.context import ApiContext
from bitel.api.envelope import failure
from bitel.api.openapi import DESCRIPTION
from bitel.api.placement import Placing
from bitel.api.quotas import UnderWay
from bitel.api.rate_limits import RateLimiter
from bitel.api.response_guard import ResponseGuard, note_refusal
from bitel.api.speaking import Speaking
from bitel.api.statuses import Statuses
from bitel.api.upload_intake import MOST_UPLOADS
from bitel.errors import (
    BitelError,
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
    UnavailableError,
)

__all__ = ["ApiContext", "build_app"]

_ROUTERS = (
    v2_voice.router,
    v2_calls.router,
    v2_files.router,
    servers.router,
    account.router,
    v1.router,
    health.router,
    metrics.router,
    docs_page.router,
)

_log = structlog.get_logger("bitel.api")

LONGEST_CAUSE = 500
"""Characters of a fault's cause in the log."""


def build_app(parts: ApiContext) -> FastAPI:
    """The HTTP API over `parts`. Whoever runs it closes the database afterwards."""
    upload_intake.sweep(parts.incoming)
    app = FastAPI(
        title="bitel",
        version=version("bitel"),
        description=DESCRIPTION,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.parts = parts
    app.state.admission = Authenticator(parts)
    app.state.limits = RateLimiter(lambda: parts.settings.limits, parts.monotonic)
    app.state.placing = Placing(parts, app.state.limits)
    app.state.uploads = UnderWay(MOST_UPLOADS, "uploads")
    app.state.speaking = Speaking(parts)
    app.state.statuses = Statuses(parts, app.state.limits)
    for router in _ROUTERS:
        # As they are: FastAPI would look at an included router's routes twice, with more to ask.
        app.router.routes.extend(router.routes)
    app.add_exception_handler(BitelError, _on_bitel_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_middleware(ResponseGuard)
    return app


async def _on_bitel_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, BitelError)
    about = {"method": request.method, "path": request.url.path}
    if isinstance(error, UnavailableError):
        # A state of the machine, not of the code: a traceback for each would fill a full disk.
        cause = f"{error.__cause__!r}" if error.__cause__ else ""
        _log.warning("request unavailable", reason=str(error), cause=cause[:LONGEST_CAUSE], **about)
    elif error.http_status >= 500:
        _log.error("request failed", exc_info=error, **about)
    return _refuse(request, error)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    """FastAPI's own checks: of a parameter in the path or the query."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return _refuse(request, InvalidRequestError(f"{first['loc'][-1]}: {first['msg']}"))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """What the router refuses: a path that is none, a method that the path has not."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return _refuse(request, NotFoundError("there is nothing at this path"))
    if error.status_code == 405:
        allowed = ", ".join(sorted(set(_methods_at(request))))
        message = f"this path takes {allowed} only"
        return _refuse(request, MethodNotAllowedError(message), {"Allow": allowed})
    raise error


def _refuse(
    request: Request, error: BitelError, headers: Mapping[str, str] | None = None
) -> Response:
    note_refusal(request.scope, error)
    return failure(error, headers)


def _methods_at(request: Request) -> Iterator[str]:
    """The methods of every route at the request's path; the router's own answer knows only one."""
    for router in _ROUTERS:
        for route in router.routes:
            if isinstance(route, APIRoute) and route.matches(request.scope)[0] is not Match.NONE:
                yield from route.methods or ()
