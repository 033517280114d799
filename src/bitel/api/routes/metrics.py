"""`/metrics`: the Prometheus metrics, with access control.

Without a token only clients on this machine are allowed. The Host header must name this machine,
against DNS rebinding, and requests that a proxy forwards are refused, since their clients may be
anywhere.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable
from typing import Final

from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import Response

from bitel.api.context import context_of
from bitel.api.middleware import ResponseGuard
from bitel.api.responses import failure
from bitel.errors import ForbiddenError, NotFoundError, UnauthorizedError
from bitel.ip_addresses import embedded_ipv4

MEDIA_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_FORWARDED: Final = frozenset(
    {"forwarded", "via", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip"}
)
"""Headers that proxies add, besides those that begin with `x-forwarded`."""

MetricsPage = Callable[[], Awaitable[bytes]]

router = APIRouter()


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    """The page, if this process has one."""
    context = context_of(request)
    if context.metrics is None:
        raise NotFoundError("there is nothing at this path")
    check(request, context.settings.metrics.token.get_secret_value())
    return Response(await context.metrics(), media_type=MEDIA_TYPE)


def build_listener(page: MetricsPage, token: Callable[[], str]) -> FastAPI:
    """An application with `/metrics` only, for a process without the API.

    `token` returns the token that clients must send; empty: none.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)

    @app.get("/metrics")
    async def answer(request: Request) -> Response:
        try:
            check(request, token())
        except (UnauthorizedError, ForbiddenError) as error:
            return failure(error)
        return Response(await page(), media_type=MEDIA_TYPE)

    app.add_middleware(ResponseGuard)
    return app


def check(request: Request, token: str) -> None:
    """Raise UnauthorizedError or ForbiddenError if the client may not read metrics."""
    if token:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # Starlette decodes the header as Latin-1. Clients may send a token that is not ASCII as
        # UTF-8 or Latin-1, and can't send white space at its ends.
        sent = given.strip(" \t").encode("latin-1")
        expected = token.strip()
        matches = hmac.compare_digest(sent, expected.encode()) | hmac.compare_digest(
            sent, expected.encode("latin-1", "xmlcharrefreplace")
        )
        if scheme.lower() != "bearer" or not matches:
            raise UnauthorizedError("send the token of the setting metrics.token as bearer token")
    elif not _is_local(request):
        raise ForbiddenError("metrics are for readers on this machine; others need metrics.token")


def _is_local(request: Request) -> bool:
    if request.client is None or any(map(_is_of_proxy, request.headers)):
        return False
    return _is_loopback(request.client.host) and _names_loopback(request.headers.get("host", ""))


def _is_of_proxy(header: str) -> bool:
    return header in _FORWARDED or header.startswith("x-forwarded")


def _names_loopback(host: str) -> bool:
    """Whether a Host header names this machine, with or without a port."""
    name = host.rpartition("]")[0].lstrip("[") if "[" in host else host.partition(":")[0]
    return name.lower().removesuffix(".") == "localhost" or _is_loopback(name)


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (embedded_ipv4(address) or address).is_loopback
