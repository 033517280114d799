"""How calls stand, for many requests at a time: clients ask for that more than for all else.

Whether a request's token is good is found out in the same look into the database.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection
from starlette.requests import Request

from bitel.api.auth import Claims, not_admitted, owners_of
from bitel.api.context import ApiContext
from bitel.api.micro_batcher import MicroBatcher
from bitel.api.rate_limits import RateLimiter
from bitel.domain.calls import Call
from bitel.domain.ids import is_id
from bitel.errors import BitelError, NotFoundError
from bitel.store import calls as call_rows
from bitel.store.projects import Project

Asked = tuple[Claims, str]
"""What a token claims, and the id of a call."""
Found = tuple[Project, Call | None]


class Statuses:
    """Asks the store for calls, those of all requests that wait in one query."""

    def __init__(self, parts: ApiContext, limits: RateLimiter) -> None:
        self._parts = parts
        self._limits = limits
        self._rounds: MicroBatcher[Asked, Found] = MicroBatcher(self._find)

    async def of(self, token: str, call_id: str) -> Call:
        """The call of that id which the token's project has, as it stood after this was asked.

        Raises what any request raises for its token and its project's limit, and NotFoundError.
        """
        project, call = await self._rounds.ask((self._parts.tokens.verify(token), call_id))
        self._limits.count_request(project)
        if call is None:
            raise NotFoundError("this project has no call of that id")
        return call

    async def _find(self, asked: Sequence[Asked]) -> Sequence[Found | BitelError]:
        now = self._parts.system_clock()
        return await self._parts.database.read(lambda conn: _look(conn, asked, now))


def _look(conn: Connection, asked: Sequence[Asked], now: float) -> Sequence[Found | BitelError]:
    owners = owners_of(conn, {claims for claims, _ in asked}, now)
    calls = call_rows.find_each(
        conn, [(claims.project_id, call_id if is_id(call_id) else "") for claims, call_id in asked]
    )
    found: list[Found | BitelError] = []
    for (claims, _), call in zip(asked, calls, strict=True):
        owner = owners[claims]
        found.append(not_admitted() if owner is None else (owner, call))
    return found


def statuses_of(request: Request) -> Statuses:
    """What finds the calls of the application that `request` reached."""
    statuses: Statuses = request.app.state.statuses
    return statuses
