"""Superseding of one-time passwords: a newer one for a number cancels older ones that wait.

The callee types the newest code; an older one, read out afterwards, would be wrong. An older call
that is being dialled at that moment goes on, but is not dialled again after its attempt.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection

from bitel.domain.calls import CallStatus, Lane, NewCall
from bitel.store.endings import CallEnd, end_calls
from bitel.store.schema import call, is_in_flight, is_waiting_otp
from bitel.store.sql_batch import Statement, equals, for_each_database, values_parameter

REASON: Final = "superseded by a newer one-time password"
"""Why such a call is CANCELED."""

_MOST: Final = 1000
"""Older passwords for one number that one newer one ends; there is hardly ever more than one."""

_columns = (call.c.project_id, call.c.e164, call.c.id)
_number = (call.c.project_id, call.c.e164)
_placed = values_parameter("placed", *_columns)
_asked = values_parameter("asked", *_columns)
_is_otp = call.c.lane == sa.literal_column(str(int(Lane.OTP)))


def _older_in_sqlite() -> sa.Select[Any]:
    is_older = equals("sqlite", _number, tuple(_placed.c)[:2]) & (call.c.id < _placed.c.id)
    return sa.select(call.c.id).select_from(_placed.join(call, is_older & is_waiting_otp))


def _older_in_postgresql() -> sa.Select[Any]:
    older = (
        sa.select(call.c.id)
        .where(
            equals("postgresql", _number, tuple(_placed.c)[:2]),
            call.c.id < _placed.c.id,
            is_waiting_otp,
        )
        .order_by(*_columns)
        .limit(sa.literal_column(str(_MOST)))
        # A call that is being claimed at this moment will be dialled.
        .with_for_update(skip_locked=True, of=call)
        .correlate(_placed)
        .lateral("older")
    )
    return sa.select(older).select_from(_placed.join(older, sa.true()))


_OLDER: Final = Statement(_older_in_sqlite(), postgresql=_older_in_postgresql())


def supersede_older(conn: Connection, placed: Iterable[NewCall], now: float) -> None:
    """End the waiting one-time passwords that are older than `placed`, all of one request.

    Those of the request itself don't supersede each other. Ids are ordered by time.
    """
    first: dict[tuple[str, str], str] = {}
    for new in placed:
        key = new.project_id, new.e164
        first[key] = min(new.id, first.get(key, new.id))
    if first:
        rows = [(*key, call_id) for key, call_id in first.items()]
        older = _OLDER.rows(conn, {"placed": rows})
        end_calls(conn, [CallEnd(row.id, CallStatus.CANCELED, reason=REASON) for row in older], now)


def _select_superseded(database: str) -> sa.Select[tuple[str]]:
    is_newer = equals(database, _number, tuple(_asked.c)[:2]) & (call.c.id > _asked.c.id)
    one: sa.ColumnElement[int] = sa.literal_column("1")
    newer = sa.select(one).where(is_newer).limit(one)
    waiting = newer.where(is_waiting_otp).order_by(*_columns).scalar_subquery()
    in_flight = newer.where(is_in_flight, _is_otp).order_by(*_number).scalar_subquery()
    return sa.select(_asked.c.id).where(sa.or_(waiting.is_not(None), in_flight.is_not(None)))


_SUPERSEDED: Final = for_each_database(_select_superseded)


def superseded(conn: Connection, calls: Sequence[tuple[str, str, str]]) -> set[str]:
    """The ids of those one-time passwords that have a newer one waiting or being dialled.

    Each is given as project, number in E.164, and call id.
    """
    return {row.id for row in _SUPERSEDED.rows(conn, {"asked": calls})}
