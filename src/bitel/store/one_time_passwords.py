"""A newer one-time password for a number supersedes the older ones that still wait.

The person who is called types the newest code; an older one, read to them afterwards, would be
wrong. An older call that is being dialled at that moment is left alone, and ends, instead of being
dialled again, when its attempt is over.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from sqlalchemy import (
    Connection,
    Select,
    literal,
    literal_column,
    or_,
    select,
    true,
    tuple_,
)

from bitel.domain.calls import CallStatus, Lane, NewCall
from bitel.store.endings import CallEnd, end_calls
from bitel.store.schema import call, is_in_flight, is_waiting_otp, project
from bitel.store.sql_batch import Statement, values_parameter

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
        rows = [(*key, call_id) for key, call_id in first.items()]
        older = _OLDER[conn.dialect.name].rows(conn, {"placed": rows})
        end_calls(conn, [CallEnd(row.id, CallStatus.CANCELED, reason=REASON) for row in older], now)


def superseded(conn: Connection, calls: Sequence[tuple[str, str, str]]) -> set[str]:
    """The ids of those one-time passwords that have a newer one waiting or being dialled.

    Each is given as project, number in E.164, and call id.
    """
    return {row.id for row in _SUPERSEDED[conn.dialect.name].rows(conn, {"asked": calls})}


_placed = values_parameter(
    "placed", project_id=project.c.id.type, e164=call.c.e164.type, id=call.c.id.type
)
_asked = values_parameter(
    "asked", project_id=project.c.id.type, e164=call.c.e164.type, id=call.c.id.type
)
_MOST: Final = 1000
"""Older passwords for one number that one newer one ends; there is hardly ever more than one."""


def _older_in_sqlite() -> Select[Any]:
    is_older = (
        (call.c.project_id == _placed.c.project_id)
        & (call.c.e164 == _placed.c.e164)
        & (call.c.id < _placed.c.id)
    )
    return select(call.c.id).select_from(_placed.join(call, is_older & is_waiting_otp))


def _older_in_postgresql() -> Select[Any]:
    # As in `number_exclusion`: only the intended index gives this order.
    placed, order = _placed.c, (call.c.project_id, call.c.e164, call.c.id)
    older = (
        select(call.c.id)
        .where(
            tuple_(*order) >= tuple_(placed.project_id, placed.e164, literal_column("''")),
            tuple_(*order) < tuple_(placed.project_id, placed.e164, placed.id),
            is_waiting_otp,
        )
        .order_by(*order)
        .limit(literal_column(str(_MOST)))
        # What is being claimed at this moment is dialled.
        .with_for_update(skip_locked=True, of=call)
        .correlate(_placed)
        .lateral("older")
    )
    return select(older).select_from(_placed.join(older, true()))


def _superseded_in_sqlite() -> Select[Any]:
    is_newer = (
        call.c.project_id == _asked.c.project_id,
        call.c.e164 == _asked.c.e164,
        call.c.id > _asked.c.id,
    )
    waiting = select(literal(1)).where(*is_newer, is_waiting_otp).exists()
    in_flight = select(literal(1)).where(*is_newer, is_in_flight, _is_otp).exists()
    return select(_asked.c.id).where(or_(waiting, in_flight))


def _superseded_in_postgresql() -> Select[Any]:
    asked, order = _asked.c, (call.c.project_id, call.c.e164)
    number = tuple_(asked.project_id, asked.e164)
    waiting = (
        select(literal_column("1"))
        .where(
            tuple_(*order, call.c.id) > tuple_(asked.project_id, asked.e164, asked.id),
            tuple_(*order) <= number,
            is_waiting_otp,
        )
        .order_by(*order, call.c.id)
        .limit(literal_column("1"))
        .scalar_subquery()
    )
    in_flight = (
        select(literal_column("1"))
        .where(
            tuple_(*order) >= number,
            tuple_(*order) <= number,
            is_in_flight,
            _is_otp,
            call.c.id > asked.id,
        )
        .order_by(*order)
        .limit(literal_column("1"))
        .scalar_subquery()
    )
    return select(asked.id).where(or_(waiting.is_not(None), in_flight.is_not(None)))


_is_otp = call.c.lane == literal_column(str(int(Lane.OTP)))
_OLDER: Final = {
    "sqlite": Statement(_older_in_sqlite()),
    "postgresql": Statement(_older_in_postgresql()),
}
_SUPERSEDED: Final = {
    "sqlite": Statement(_superseded_in_sqlite()),
    "postgresql": Statement(_superseded_in_postgresql()),
}
