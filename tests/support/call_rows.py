"""Places calls and counts rows in the database, past the API."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from sqlalchemy import Connection, func, select

from bitel.domain.calls import Call, CallStatus, NewCall
from bitel.errors import BitelError
from bitel.store import calls as call_rows
from bitel.store import placing
from bitel.store.schema import attempt, call, is_open


def place(conn: Connection, calls: Sequence[NewCall]) -> list[Call]:
    """Queue calls, all or none of them; as they then stand, in that order."""
    by_project = sorted(calls, key=lambda new: new.project_id)
    requests = [list(group) for _, group in groupby(by_project, key=lambda new: new.project_id)]
    for answer in placing.place_each(conn, requests):
        if isinstance(answer, BitelError):
            raise answer
    placed = call_rows.find_each(conn, [(new.project_id, new.id) for new in calls])
    return [one for one in placed if one is not None]


def in_flight(conn: Connection, dialer_id: str) -> int:
    """How many attempts of the dialer are under way."""
    wanted = select(func.count()).where(attempt.c.dialer_id == dialer_id, is_open)
    count: int = conn.execute(wanted).scalar_one()
    return count


def counts_by_status(conn: Connection) -> dict[CallStatus, int]:
    """How many calls there are in each status that has any."""
    rows = conn.execute(select(call.c.status, func.count()).group_by(call.c.status))
    return {CallStatus(status): count for status, count in rows}
