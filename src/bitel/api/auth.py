"""Who is calling: the bearer token of a request, checked against the secret and the store."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Annotated, Any

from fastapi import Depends
from fastapi.openapi.models import HTTPBearer as BearerModel
from fastapi.security.base import SecurityBase
from sqlalchemy import Connection
from starlette.requests import Request

from bitel.api.context import ApiContext
from bitel.api.micro_batcher import MicroBatcher
from bitel.api.rate_limits import RateLimiter
from bitel.api.response_guard import PROJECT
from bitel.api.tokens import Claims, TokenSigner
from bitel.errors import BitelError, UnauthorizedError
from bitel.store import projects, tokens
from bitel.store.projects import Project

__all__ = ["Authenticator", "Claims", "Owner", "Token", "TokenSigner", "not_admitted", "owners_of"]


class Authenticator:
    """Asks the store about every token on every request, for many requests at a time.

    A token that is revoked is refused from that moment on: what a request is told was read after
    the request came.
    """

    def __init__(self, parts: ApiContext) -> None:
        self._parts = parts
        self._rounds = MicroBatcher(self._admit)

    async def admit(self, token: str) -> Project:
        """The project that `token` speaks for. Raises UnauthorizedError."""
        return await self._rounds.ask(self._parts.tokens.verify(token))

    async def _admit(self, asked: Sequence[Claims]) -> Sequence[Project | BitelError]:
        now = self._parts.system_clock()
        distinct = set(asked)
        owners = await self._parts.database.read(lambda conn: owners_of(conn, distinct, now))
        return [owners[claims] or not_admitted() for claims in asked]


def owners_of(
    conn: Connection, asked: Collection[Claims], now: float
) -> dict[Claims, Project | None]:
    """For each of the claims the project that it speaks for; None where the token is no good."""
    return {claims: _project(conn, claims, now) for claims in asked}


def not_admitted() -> UnauthorizedError:
    """Why a request is refused whose token was ours once, or looks like it."""
    return UnauthorizedError("the token is revoked, has expired or is unknown")


def _project(conn: Connection, claims: Claims, now: float) -> Project | None:
    if not tokens.is_live(conn, claims.token_id, claims.project_id, now):
        return None
    return projects.by_id(conn, claims.project_id)


class _BearerToken(SecurityBase):
    """The dependency that finds a request's token, whatever it is worth."""

    def __init__(self) -> None:
        self.model = BearerModel(
            bearerFormat="JWT", description="As `bitel token create PROJECT` prints it."
        )
        self.scheme_name = "token"

    async def __call__(self, request: Request) -> Any:
        """The token. Raises UnauthorizedError where the request has none."""
        return _bearer(request.headers.get("authorization", ""))


class _OwnerOfToken(_BearerToken):
    """The dependency that turns a request into the project it speaks for."""

    async def __call__(self, request: Request) -> Any:
        """The project of the request's token. Raises UnauthorizedError, TooManyRequestsError."""
        admission: Authenticator = request.app.state.admission
        project = await admission.admit(_bearer(request.headers.get("authorization", "")))
        request.scope[PROJECT] = project.id
        limits: RateLimiter = request.app.state.limits
        limits.count_request(project)
        return project


Token = Annotated[str, Depends(_BearerToken())]
"""A route's parameter: the token of the request, or 401; what it is worth is the route's to ask."""

Owner = Annotated[Project, Depends(_OwnerOfToken())]
"""A route's parameter: the project that the request speaks for, or 401 before anything else."""


def _bearer(header: str) -> str:
    scheme, _, token = header.partition(" ")
    token = token.strip()
    if scheme.lower() != "bearer" or not token:
        raise UnauthorizedError("the header Authorization: Bearer <token> is missing")
    return token
