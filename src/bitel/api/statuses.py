"""How calls stand, for many requests at a time: clients ask for that more than for all else."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request

from bitel.api.parts import ApiParts
from bitel.api.rounds import Rounds
from bitel.calls.call import Call
from bitel.calls.ids import is_id
from bitel.errors import BitelError, NotFoundError
from bitel.store import calls as call_rows


class Statuses:
    """Asks the store for calls, those of all requests that wait in one query."""

    def __init__(self, parts: ApiParts) -> None:
        self._parts = parts
        self._rounds: Rounds[tuple[str, str], Call] = Rounds(self._find)

    async def of(self, project_id: str, call_id: str) -> Call:
        """The project's call of that id, as it stood after this was asked. Raises NotFoundError."""
        if not is_id(call_id):
            raise _unknown()
        return await self._rounds.ask((project_id, call_id))

    async def _find(self, asked: Sequence[tuple[str, str]]) -> Sequence[Call | BitelError]:
        found = await self._parts.database.read(lambda conn: call_rows.find_each(conn, asked))
        return [call or _unknown() for call in found]


def statuses_of(request: Request) -> Statuses:
    """What finds the calls of the application that `request` reached."""
    statuses: Statuses = request.app.state.statuses
    return statuses


def _unknown() -> NotFoundError:
    return NotFoundError("this project has no call of that id")
