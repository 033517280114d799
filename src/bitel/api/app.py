"""The FastAPI application: its routes and exception handlers."""

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

from bitel.api import uploads
from bitel.api.context import ApiContext
from bitel.api.dependencies import Services
from bitel.api.middleware import ResponseGuard, note_refusal
from bitel.api.openapi import DESCRIPTION
from bitel.api.responses import failure
from bitel.api.routes import (
    calls,
    campaign_streams,
    campaigns,
    do_not_call,
    docs,
    health,
    history,
    lists,
    metrics,
    project,
    recordings,
    v1,
)
from bitel.errors import (
    BitelError,
    InvalidRequestError,
    MethodNotAllowedError,
    NotFoundError,
    UnavailableError,
)

__all__ = ["ApiContext", "build_app"]

_ROUTERS = (
    calls.router,
    campaigns.router,
    campaign_streams.router,
    history.router,
    recordings.router,
    lists.router,
    project.router,
    do_not_call.router,
    v1.router,
    health.router,
    metrics.router,
    docs.router,
)

_log = structlog.get_logger("bitel.api")

LONGEST_CAUSE = 500
"""Characters of an error's cause in the log."""


def build_app(context: ApiContext) -> FastAPI:
    """The HTTP API over `context`; the caller closes its database."""
    uploads.sweep(context.incoming)
    app = FastAPI(
        title="bitel",
        version=version("bitel"),
        description=DESCRIPTION,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.context = context
    app.state.services = Services.build(context)
    for router in _ROUTERS:
        # Not included: FastAPI would match the routes of an included router twice.
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
        # No traceback: this is not a bug, and while the disk is full it would make it worse.
        cause = f"{error.__cause__!r}" if error.__cause__ else ""
        _log.warning("request unavailable", reason=str(error), cause=cause[:LONGEST_CAUSE], **about)
    elif error.http_status >= 500:
        _log.error("request failed", exc_info=error, **about)
    return _refuse(request, error)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    """FastAPI's own validation of a parameter in the path or query."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return _refuse(request, InvalidRequestError(f"{first['loc'][-1]}: {first['msg']}"))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """An unknown path, or a method that the path does not have."""
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
    """The methods of all routes at the request's path; Starlette names those of one route only."""
    for router in _ROUTERS:
        for route in router.routes:
            if isinstance(route, APIRoute) and route.matches(request.scope)[0] is not Match.NONE:
                yield from route.methods or ()
