"""Reads the status of calls, for concurrent requests in one query: it is the most common request.

The query also checks the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from bitel.api.auth import Authenticator, Claims, find_owners, token_refused
from bitel.api.context import ApiContext
from bitel.api.rate_limits import RateLimiter
from bitel.batcher import Batcher
from bitel.domain.calls import Call
from bitel.domain.ids import is_id
from bitel.errors import BitelError, NotFoundError
from bitel.store import calls as call_rows
from bitel.store.projects import Project

_Query = tuple[Claims, str]
"""The claims of a token, and the id of a call."""
_Found = tuple[Project, Call | None]


class CallStatusService:
    """Reads calls, for concurrent requests in one query."""

    def __init__(
        self, context: ApiContext, authenticator: Authenticator, limits: RateLimiter
    ) -> None:
        self._context = context
        self._authenticator = authenticator
        self._limits = limits
        self._batcher: Batcher[_Query, _Found] = Batcher(self._read)

    async def find(self, token: str, call_id: str) -> Call:
        """The call with that id of the token's project.

        Raises UnauthorizedError, TooManyRequestsError or NotFoundError.
        """
        claims = await self._authenticator.verify(token)
        project, call = await self._batcher.submit((claims, call_id))
        self._limits.count_request(project)
        if call is None:
            raise NotFoundError("this project has no call of that id")
        return call

    async def _read(self, queries: Sequence[_Query]) -> Sequence[_Found | BitelError]:
        now = self._context.system_clock()
        return await self._context.database.read(lambda conn: _find(conn, queries, now))


def _find(conn: Connection, queries: Sequence[_Query], now: float) -> Sequence[_Found | BitelError]:
    owners = find_owners(conn, {claims for claims, _ in queries}, now)
    found = call_rows.find_each(
        conn,
        [(claims.project_id, call_id if is_id(call_id) else "") for claims, call_id in queries],
    )
    return [
        token_refused() if (owner := owners[claims]) is None else (owner, call)
        for (claims, _), call in zip(queries, found, strict=True)
    ]
