"""A newer one-time password for a number supersedes the older ones that still wait.

The person who is called types the newest code; an older one, read to them afterwards, would be
wrong. An older call that is being dialled at that moment is left alone, and ends, instead of being
dialled again, when its attempt is over.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from sqlalchemy import ColumnElement, Connection, literal, or_, select

from bitel.calls.call import CallStatus, Lane, NewCall
from bitel.store.bulk import Query, given
from bitel.store.endings import CallEnd, end_calls
from bitel.store.schema import call, is_in_flight, is_waiting_otp, project

REASON: Final = "superseded by a newer one-time password"
"""Why such a call is CANCELED."""


def supersede_older(conn: Connection, placed: Iterable[NewCall], now: float) -> None:
    """End the one-time passwords that wait and are older than `placed`, all of one request.

    Those of the request itself don't supersede each other. Ids are ordered by time.
    """
    first: dict[tuple[str, str], str] = {}
    for new in placed:
        key = new.project_id, new.e164
        first[key] = min(new.id, first.get(key, new.id))
    if first:
        older = _OLDER.rows(conn, {"newer": [(*key, call_id) for key, call_id in first.items()]})
        end_calls(conn, [CallEnd(row.id, CallStatus.CANCELED, reason=REASON) for row in older], now)


def superseded(conn: Connection, calls: Iterable[tuple[str, str, str]]) -> set[str]:
    """The ids of those one-time passwords that have a newer one waiting or being dialled.

    Each is given as project, number in E.164, and call id.
    """
    asked = list(calls)
    return {row.id for row in _SUPERSEDED.rows(conn, {"asked": asked})} if asked else set()


_newer = given("newer", project_id=project.c.id.type, e164=call.c.e164.type, id=call.c.id.type)
_OLDER: Final = Query(
    select(call.c.id)
    .select_from(
        _newer.join(
            call,
            (call.c.project_id == _newer.c.project_id)
            & (call.c.e164 == _newer.c.e164)
            & (call.c.id < _newer.c.id)
            & is_waiting_otp,
        )
    )
    # What is being claimed at this moment is dialled.
    .with_for_update(skip_locked=True, of=call)
)
_asked = given("asked", project_id=project.c.id.type, e164=call.c.e164.type, id=call.c.id.type)


def _has_newer(*state: ColumnElement[bool]) -> ColumnElement[bool]:
    """Whether the number has a newer call in that state."""
    # PostgreSQL takes the index of the numbers for the order of its rows; for equality alone it
    # may take another, and read all that waits, as long as its statistics say that there is little.
    newer = (
        select(literal(1))
        .where(
            call.c.project_id == _asked.c.project_id,
            call.c.e164 >= _asked.c.e164,
            call.c.e164 <= _asked.c.e164,
            call.c.id > _asked.c.id,
            *state,
        )
        .order_by(call.c.e164)
        .limit(1)
    )
    return newer.scalar_subquery().is_not(None)


_SUPERSEDED: Final = Query(
    select(_asked.c.id).where(
        or_(
            _has_newer(is_waiting_otp),
            _has_newer(is_in_flight, call.c.lane == int(Lane.OTP)),
        )
    )
)
