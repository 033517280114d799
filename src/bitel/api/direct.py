"""Routes that are called directly, for those endpoints that clients use most.

FastAPI works out an endpoint's arguments anew for every request, as if they could be anything:
that takes longer than reading how a call stands. Here they are worked out when the application is
built. What the OpenAPI document says of a route comes from its signature, as ever.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from inspect import iscoroutinefunction
from typing import Any, Final

from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

Ask = Callable[[Request], Awaitable[Any]]


class DirectRoute(APIRoute):
    """A route whose endpoint wants the request, what an `Ask` makes of it, and words of its path.

    An endpoint that wants more, such as the query's parameters, is left to FastAPI.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().__init__(path, endpoint, **options)
        self.is_simple: Final = _is_simple(self.dependant)
        self._asks: list[tuple[str, Ask]] = [
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
        values = {name: await ask(request) for name, ask in self._asks}
        response: Response = await self.endpoint(request, **values, **scope["path_params"])
        await response(scope, receive, send)


def _is_simple(wants: Dependant) -> bool:
    others = (wants.query_params, wants.header_params, wants.cookie_params, wants.body_params)
    return (
        wants.request_param_name is not None
        and not any(others)
        and all(each.field_info.annotation is str for each in wants.path_params)
        and all(_is_ask(each) for each in wants.dependencies)
    )


def _is_ask(wanted: Dependant) -> bool:
    """Whether a dependency is an `Ask`: a coroutine of the request and nothing else."""
    call: Any = wanted.call
    is_coroutine = iscoroutinefunction(call) or iscoroutinefunction(type(call).__call__)
    others = (
        wanted.dependencies,
        wanted.path_params,
        wanted.query_params,
        wanted.header_params,
        wanted.cookie_params,
        wanted.body_params,
    )
    return is_coroutine and wanted.request_param_name is not None and not any(others)
