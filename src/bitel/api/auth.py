"""Who is calling: the bearer token of a request, checked against the secret and the store."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends
from fastapi.openapi.models import HTTPBearer as BearerModel
from fastapi.security.base import SecurityBase
from sqlalchemy import Connection
from starlette.requests import Request

from bitel.api.parts import parts_of
from bitel.api.tokens import Claims, TokenSigner
from bitel.errors import UnauthorizedError
from bitel.store import projects, tokens
from bitel.store.projects import Project

__all__ = ["Claims", "Owner", "TokenSigner"]


class BearerToken(SecurityBase):
    """The dependency that turns a request into the project it speaks for.

    The store is asked on every request, so that a revoked token is refused from that moment on.
    """

    def __init__(self) -> None:
        self.model = BearerModel(
            bearerFormat="JWT", description="As `bitel token create PROJECT` prints it."
        )
        self.scheme_name = "token"

    async def __call__(self, request: Request) -> Project:
        """The project of the request's token. Raises UnauthorizedError."""
        parts = parts_of(request)
        claims = parts.tokens.verify(_bearer(request.headers.get("authorization", "")))
        now = parts.clock()
        return await parts.database.read(lambda conn: _admit(conn, claims, now))


Owner = Annotated[Project, Depends(BearerToken())]
"""A route's parameter: the project that the request speaks for, or 401 before anything else."""


def _bearer(header: str) -> str:
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise UnauthorizedError("the header Authorization: Bearer <token> is missing")
    return token.strip()


def _admit(conn: Connection, claims: Claims, now: float) -> Project:
    if not tokens.is_live(conn, claims.token_id, claims.project_id, now):
        raise UnauthorizedError("the token is revoked, has expired or was never issued")
    project = projects.by_id(conn, claims.project_id)
    if project is None or project.disabled:
        raise UnauthorizedError("the project of this token is disabled")
    return project
