"""Dependencies of routes: the services, the project of the token, cursors, and `DirectRoute`."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from inspect import iscoroutinefunction
from typing import Annotated, Any, Final

from fastapi import Depends, Query
from fastapi.dependencies.models import Dependant
from fastapi.openapi.models import HTTPBearer as BearerModel
from fastapi.routing import APIRoute
from fastapi.security.base import SecurityBase
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bitel.api.auth import Authenticator, bearer_token
from bitel.api.call_status import CallStatusService
from bitel.api.campaign_events import CampaignEvents
from bitel.api.context import ApiContext
from bitel.api.list_uploads import ListUploadService
from bitel.api.middleware import PROJECT
from bitel.api.placement import Placement
from bitel.api.rate_limits import ConcurrencyQuota, RateLimiter
from bitel.api.results_csv import MOST_DOWNLOADS
from bitel.api.speech import SpeechService
from bitel.api.uploads import UploadService
from bitel.domain.ids import is_id
from bitel.errors import InvalidRequestError
from bitel.store.projects import Project

LARGEST_PAGE: Final = 1000
USUAL_PAGE: Final = 100
ACCESS_PARAMETER: Final = "access_token"
"""Query parameter with the token, on routes that take it there."""


@dataclass(frozen=True, slots=True)
class Services:
    """The services that routes call; one set per application."""

    context: ApiContext
    authenticator: Authenticator
    limits: RateLimiter
    placement: Placement
    speech: SpeechService
    call_status: CallStatusService
    uploads: UploadService
    campaign_events: CampaignEvents
    downloads: ConcurrencyQuota
    """Limits the downloads of results."""
    list_uploads: ListUploadService

    @classmethod
    def build(cls, context: ApiContext) -> Services:
        """The services over `context`."""
        limits = RateLimiter(
            lambda: context.settings.limits, context.monotonic, context.live_processes
        )
        speech = SpeechService(context)
        authenticator = Authenticator(
            context.tokens, context.database, context.system_clock, context.find_key
        )
        return cls(
            context,
            authenticator,
            limits,
            Placement(context, limits, speech),
            speech,
            CallStatusService(context, authenticator, limits),
            UploadService(context),
            CampaignEvents(context, authenticator),
            ConcurrencyQuota(MOST_DOWNLOADS, "downloads of results"),
            ListUploadService(context),
        )


def services_of(request: Request) -> Services:
    """The services of the request's application."""
    services: Services = request.app.state.services
    return services


class _BearerToken(SecurityBase):
    """Dependency that reads a request's token, without checking it."""

    def __init__(self) -> None:
        self.model = BearerModel(
            bearerFormat="JWT", description="As `bitel token create PROJECT` prints it."
        )
        self.scheme_name = "token"

    async def __call__(self, request: Request) -> Any:
        """The token. Raises UnauthorizedError if the request has none."""
        return bearer_token(request.headers.get("authorization", ""))


class _ProjectOfToken(_BearerToken):
    """Dependency that authenticates a request, and counts it for the rate limit."""

    async def __call__(self, request: Request) -> Any:
        """The project of the request's token. Raises UnauthorizedError, TooManyRequestsError."""
        services = services_of(request)
        token = bearer_token(request.headers.get("authorization", ""))
        project = await services.authenticator.authenticate(token)
        request.scope[PROJECT] = project.id
        services.limits.count_request(project)
        return project


@dataclass(frozen=True, slots=True)
class TokenHolder:
    """A project, and the token that it has authenticated with."""

    project: Project
    token: str


class _HolderOfQueryToken(_BearerToken):
    """As `_ProjectOfToken`, for requests that browsers make, which can't send headers.

    The token is in the query (RFC 6750 §2.3), or in the header as elsewhere.
    """

    async def __call__(self, request: Request) -> Any:
        """The project and its token. Raises UnauthorizedError, TooManyRequestsError, and
        InvalidRequestError for two tokens."""
        header = request.headers.get("authorization", "")
        in_query = request.query_params.getlist(ACCESS_PARAMETER)
        if len(in_query) > 1 or (in_query and header):
            raise InvalidRequestError(
                f"the token must be in the header Authorization or in {ACCESS_PARAMETER}, once"
            )
        services = services_of(request)
        token = in_query[0] if in_query else bearer_token(header)
        project = await services.authenticator.authenticate(token)
        request.scope[PROJECT] = project.id
        services.limits.count_request(project)
        return TokenHolder(project, token)


Token = Annotated[str, Depends(_BearerToken())]
"""Parameter of a route: the token of the request, not checked yet; 401 without one."""

Owner = Annotated[Project, Depends(_ProjectOfToken())]
"""Parameter of a route: the project of the request's token; 401 before anything else."""

Holder = Annotated[TokenHolder, Depends(_HolderOfQueryToken())]
"""Parameter of a route: the project of the request's token, which may be in the query."""

Cursor = Annotated[
    str | None, Query(description="`nextCursor` of the page before; left out for the first page.")
]
Limit = Annotated[int, Query(ge=1, le=LARGEST_PAGE, description="Entries on the page.")]


def read_cursor(cursor: str | None) -> str | None:
    """The id after which the page begins. Raises InvalidRequestError for a malformed cursor."""
    if cursor is None:
        return None
    try:
        after = base64.b64decode(cursor.encode(), altchars=b"-_", validate=True).hex()
    except (binascii.Error, ValueError):
        after = ""
    if not is_id(after):
        raise InvalidRequestError("cursor must be the nextCursor of the page before, unchanged")
    return after


def next_cursor(last_id: str, entries: int, limit: int) -> str | None:
    """The cursor of the page after one with `entries` that ends with `last_id`; None at the end."""
    return None if entries < limit else write_cursor(last_id)


def write_cursor(last_id: str) -> str:
    """The cursor of a page that begins after the entry with that id."""
    return base64.urlsafe_b64encode(bytes.fromhex(last_id)).decode()


Dependency = Callable[[Request], Awaitable[Any]]


class DirectRoute(APIRoute):
    """A route that bypasses FastAPI's resolution of parameters, which costs more than the route.

    The endpoint takes the request, results of `Dependency` functions, and strings of the path;
    routes with other parameters, such as those of the query, are left to FastAPI. A request that
    places a call takes 266 µs of CPU with it, 454 µs without.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self.is_simple: Final = _is_simple(self.dependant)
        self._dependencies: list[tuple[str, Dependency]] = [
            (each.name, each.call)
            for each in self.dependant.dependencies
            if each.name is not None and each.call is not None
        ]

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer the request, which is for this route's path."""
        if not self.is_simple or scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        request = Request(scope, receive, send)
        values = {name: await call(request) for name, call in self._dependencies}
        response: Response = await self.endpoint(request, **values, **scope["path_params"])
        await response(scope, receive, send)


def _is_simple(route: Dependant) -> bool:
    """Whether the endpoint needs nothing but the request, simple dependencies and path strings."""
    return (
        _takes_request_only(route)
        and all(each.field_info.annotation is str for each in route.path_params)
        and all(_is_dependency(each) for each in route.dependencies)
    )


def _is_dependency(found: Dependant) -> bool:
    """Whether it is a `Dependency`: a coroutine function of the request and nothing else."""
    call: Any = found.call
    is_coroutine = iscoroutinefunction(call) or iscoroutinefunction(type(call).__call__)
    nested = found.dependencies or found.path_params
    return is_coroutine and not nested and _takes_request_only(found)


def _takes_request_only(found: Dependant) -> bool:
    others = (found.query_params, found.header_params, found.cookie_params, found.body_params)
    return found.request_param_name is not None and not any(others)
