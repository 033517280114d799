"""Mutual exclusion of attempts by number: at most one at a time for each number of a project.

A call that is due while another call of its project to the same number is being dialled, rings or
plays is parked: its due time moves a little ahead, so that other calls pass it. Several that wait
for one number are parked one after the other, which keeps the work small where a batch holds one
number thousands of times. A project may lift the rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from types import MappingProxyType
from typing import Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from bitel.domain.calls import Lane
from bitel.store.fair_queue import DueCall
from bitel.store.schema import attempt, call, is_due, is_in_flight, may_ring
from bitel.store.sql_batch import (
    Statement,
    equals,
    for_each_database,
    is_among,
    update_each,
    values_parameter,
)

PARKED_FOR: Final = 5.0
"""Seconds until a call whose number is taken is looked at again; each further call to the number
waits as much longer."""
OTP_PARKED_FOR: Final = 1.0
"""The same for one-time passwords, which are urgent."""
LONGEST_PARKED: Final = 300.0
"""Seconds that a call is parked at most, however many wait for its number."""

ProjectNumber = tuple[str, str]
"""A project's id and a number in E.164 with its plus sign."""


def park_taken(
    conn: Connection,
    picked: Sequence[DueCall],
    now: float,
    room: int,
    may_begin: Callable[[DueCall, Sequence[DueCall]], bool] = lambda row, chosen: True,
) -> tuple[list[DueCall], list[DueCall]]:
    """Park those of `picked`, which are locked, whose number is taken.

    Of several calls to one number the first may be dialled. A number is taken too while an INVITE
    of a process that crashed may still ring there.

    `may_begin` says whether a call may be dialled besides those that are chosen already.

    Returns up to `room` calls, in order, that may be dialled, and those parked; calls beyond `room`
    stay as they are.
    """
    taken = _taken(conn, {_number_of(row) for row in picked if row.exclusive}, now)
    free: list[DueCall] = []
    parked: list[DueCall] = []
    for row in picked:
        number = _number_of(row)
        if row.exclusive and number in taken:
            parked.append(row)
        elif len(free) < room and may_begin(row, free):
            free.append(row)
            taken[number] = now
    contested = _contested(conn, {_number_of(row) for row in free if row.exclusive}, now)
    if contested:
        taken |= contested
        parked += [row for row in free if row.exclusive and _number_of(row) in contested]
        free = [row for row in free if not row.exclusive or _number_of(row) not in contested]
    if parked:
        _park(conn, parked, taken)
    return free, parked


def _number_of(row: DueCall) -> ProjectNumber:
    return row.project_id, row.e164


_PARK: Final = update_each("parked", call.c.id, call.c.due_at, where=[is_due])


def _park(conn: Connection, rows: Iterable[DueCall], taken: Mapping[ProjectNumber, float]) -> None:
    waiting: Counter[ProjectNumber] = Counter()
    parked: list[tuple[str, float]] = []
    for row in rows:
        number = _number_of(row)
        waiting[number] += 1
        step = OTP_PARKED_FOR if row.lane == Lane.OTP else PARKED_FOR
        wait = min(step * waiting[number], LONGEST_PARKED)
        parked.append((row.id, taken[number] + wait))
    _PARK.run(conn, {"parked": parked})


_now: sa.BindParameter[float] = sa.bindparam("now", type_=sa.Double())
_MARK: Final = update_each("marked", call.c.id, call.c.may_ring_until)
_UNMARK: Final = Statement(
    sa.update(call)
    .where(
        call.c.id.in_(
            sa.select(call.c.id)
            .where(may_ring, call.c.may_ring_until <= _now)
            .limit(sa.bindparam("most"))
        )
    )
    .values(may_ring_until=None)
)


def mark_may_ring(conn: Connection, until: Iterable[tuple[str, float]]) -> None:
    """Keep the numbers of these calls taken until the times given with their ids (Unix seconds)."""
    if rows := list(until):
        _MARK.run(conn, {"marked": rows})


def forget_may_ring(conn: Connection, now: float, limit: int) -> None:
    """Remove up to `limit` of the marks whose time is over."""
    _UNMARK.run(conn, {"now": now, "most": limit})


class Occupied(NamedTuple):
    """Channels of calls whose worker is gone, but which may still ring or be connected."""

    channels: int = 0
    by_campaign: Mapping[str, int] = MappingProxyType({})


# By the last attempt, since a call may be for any dialer of a group.
_OCCUPIED: Final = Statement(
    sa.select(
        call.c.campaign_id,
        sa.func.count().label("channels"),
        sa.func.sum(
            sa.case(
                (is_among(attempt.c.dialer_id, "dialers"), sa.literal_column("1")),
                else_=sa.literal_column("0"),
            )
        ).label("of_dialers"),
    )
    .join(attempt, sa.and_(attempt.c.call_id == call.c.id, attempt.c.number == call.c.attempts))
    .where(may_ring, call.c.may_ring_until > _now)
    .group_by(call.c.campaign_id)
)


def occupied(conn: Connection, dialer_ids: Iterable[str], now: float) -> Occupied:
    """The channels of dialers that count as in use although no worker has their calls."""
    rows = _OCCUPIED.rows(conn, {"dialers": [(each,) for each in dialer_ids], "now": now})
    of_campaigns = {row.campaign_id: row.channels for row in rows if row.campaign_id is not None}
    return Occupied(sum(row.of_dialers for row in rows), of_campaigns)


_numbers = values_parameter("numbers", call.c.project_id, call.c.e164)


def _select_taken(database: str) -> sa.Select[tuple[str, str, float]]:
    order = (call.c.project_id, call.c.e164)
    is_number = equals(database, order, tuple(_numbers.c))
    by_number, of_number = order[::-1], (_numbers.c.e164, _numbers.c.project_id)
    one: sa.ColumnElement[int] = sa.literal_column("1")
    until = (
        sa.select(call.c.may_ring_until)
        .where(equals(database, by_number, of_number), may_ring, call.c.may_ring_until > _now)
        .order_by(*by_number, call.c.may_ring_until)
        .limit(one)
        .scalar_subquery()
    )
    in_flight = (
        sa.select(one).where(is_number, is_in_flight).order_by(*order).limit(one).scalar_subquery()
    )
    return sa.select(*_numbers.c, until.label("until")).where(
        sa.or_(in_flight.is_not(None), until.is_not(None))
    )


_TAKEN: Final = for_each_database(_select_taken)


def _taken(conn: Connection, numbers: Set[ProjectNumber], now: float) -> dict[ProjectNumber, float]:
    """The taken ones of the numbers, each with a time before which it surely stays so."""
    if not numbers:
        return {}
    rows = _TAKEN.rows(conn, {"numbers": sorted(numbers), "now": now})
    return {(row.project_id, row.e164): row.until or now for row in rows}


# If two numbers share a lock by chance, one of them waits a moment longer.
_LOCK: Final = Statement(
    sa.select(
        *_numbers.c,
        sa.func.pg_try_advisory_xact_lock(
            sa.func.hashtextextended(
                _numbers.c.project_id + _numbers.c.e164, sa.literal(0, sa.BigInteger())
            )
        ).label("locked"),
    )
)


def _contested(
    conn: Connection, numbers: Set[ProjectNumber], now: float
) -> dict[ProjectNumber, float]:
    """As `_taken`, for numbers that another dialer's claim has just taken, or is about to take.

    The others are locked against such claims until the commit. The locks are not waited for: two
    claims, each of which looks several times, could deadlock.
    """
    if conn.dialect.name != "postgresql" or not numbers:
        return {}  # SQLite has one writer
    rows = _LOCK.rows(conn, {"numbers": sorted(numbers)})
    locked = {(row.project_id, row.e164) for row in rows if row.locked}
    # Numbers that another claim took before this one held the lock are seen now.
    return dict.fromkeys(numbers - locked, now) | _taken(conn, locked, now)
