"""At most one attempt at a time for each phone number of a project.

A call that is due while another call of its project to the same number is being dialled, rings or
plays is parked: its due time moves on a little, so that it is looked at again later and other calls
pass it. Several that wait for one number are parked one after the other, which keeps the work small
where a batch holds one number thousands of times. A project may lift the rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    BindParameter,
    Connection,
    Double,
    Select,
    bindparam,
    func,
    literal,
    literal_column,
    or_,
    select,
    tuple_,
    update,
)

from bitel.domain.calls import Lane
from bitel.store.schema import call, is_due, is_in_flight, may_ring, project
from bitel.store.sql_batch import Statement, values_parameter

PARKED_FOR: Final = 5.0
"""Seconds until a call whose number is taken is looked at again; each further call to the number
waits as much longer."""
OTP_PARKED_FOR: Final = 1.0
"""The same for one-time passwords, which people wait for."""
LONGEST_PARKED: Final = 300.0
"""Seconds that a call is parked at most, however many wait for its number."""

ProjectNumber = tuple[str, str]
"""A project's id and a number in E.164 with its plus sign."""


def park_taken(
    conn: Connection, picked: Sequence[Any], now: float, room: int
) -> tuple[list[Any], list[Any]]:
    """Park those of `picked` whose number is taken. Up to `room` others, in order, may be dialled.

    Returns these, and those parked; what there is no room for stays as it is. `picked` are
    locked rows of due calls, with `id`, `project_id`, `e164`, `lane` and `exclusive` (whether their
    project wants the rule). Of several calls to one number the first is returned. A number is taken
    too while an INVITE of a process that crashed may still ring there.
    """
    taken = _taken(conn, {_number_of(row) for row in picked if row.exclusive}, now)
    free: list[Any] = []
    parked: list[Any] = []
    for row in picked:
        number = _number_of(row)
        if row.exclusive and number in taken:
            parked.append(row)
        elif len(free) < room:
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


def _number_of(row: Any) -> ProjectNumber:
    return row.project_id, row.e164


def _park(conn: Connection, rows: Iterable[Any], taken: Mapping[ProjectNumber, float]) -> None:
    waiting: Counter[ProjectNumber] = Counter()
    parked: list[tuple[str, float]] = []
    for row in rows:
        number = _number_of(row)
        waiting[number] += 1
        step = OTP_PARKED_FOR if row.lane == Lane.OTP else PARKED_FOR
        wait = min(step * waiting[number], LONGEST_PARKED)
        parked.append((row.id, taken[number] + wait))
    _PARK.run(conn, {"parked": parked})


def mark_may_ring(conn: Connection, until: Iterable[tuple[str, float]]) -> None:
    """Keep the numbers of these calls taken until the times given with their ids (Unix seconds)."""
    if rows := list(until):
        _MARK.run(conn, {"marked": rows})


def forget_may_ring(conn: Connection, now: float, limit: int) -> None:
    """Forget up to `limit` of the marks whose time is over."""
    _FORGET.run(conn, {"now": now, "most": limit})


def _taken(conn: Connection, numbers: Set[ProjectNumber], now: float) -> dict[ProjectNumber, float]:
    """Those of the numbers that are taken, each with a time before which it surely stays so."""
    if not numbers:
        return {}
    rows = _TAKEN[conn.dialect.name].rows(conn, {"numbers": sorted(numbers), "now": now})
    return {_number_of(row): row.until or now for row in rows}


def _contested(
    conn: Connection, numbers: Set[ProjectNumber], now: float
) -> dict[ProjectNumber, float]:
    """As `_taken`, those that the claim of another dialer has taken just now, or is about to take.

    The others are locked against such claims until the commit. A lock that is taken is not waited
    for: two claims, each of which looks several times, would wait for each other.
    """
    if conn.dialect.name != "postgresql" or not numbers:
        return {}  # SQLite has one writer
    rows = _LOCK.rows(conn, {"numbers": sorted(numbers)})
    kept = {_number_of(row) for row in rows if row.locked}
    # What another claim had taken before this one held the lock is seen now.
    return dict.fromkeys(numbers - kept, now) | _taken(conn, kept, now)


_numbers = values_parameter("numbers", project_id=project.c.id.type, e164=call.c.e164.type)
_number = (_numbers.c.project_id, _numbers.c.e164)
_now: BindParameter[float] = bindparam("now", type_=Double())


def _taken_in_sqlite() -> Select[Any]:
    of_number = (call.c.project_id == _number[0], call.c.e164 == _number[1])
    until = (
        select(func.max(call.c.may_ring_until))
        .where(*of_number, may_ring, call.c.may_ring_until > _now)
        .scalar_subquery()
    )
    in_flight = select(literal(1)).where(*of_number, is_in_flight).exists()
    return select(*_number, until.label("until")).where(or_(in_flight, until.is_not(None)))


def _taken_in_postgresql() -> Select[Any]:
    # With equality filters its planner may read a whole other index; only the intended index gives
    # this order.
    order = (call.c.project_id, call.c.e164)
    of_number = (tuple_(*order) >= tuple_(*_number), tuple_(*order) <= tuple_(*_number))
    until = (
        select(call.c.may_ring_until)
        .where(*of_number, may_ring, call.c.may_ring_until > _now)
        .order_by(*order, call.c.may_ring_until)
        .limit(literal_column("1"))
        .scalar_subquery()
    )
    in_flight = (
        select(literal_column("1"))
        .where(*of_number, is_in_flight)
        .order_by(*order)
        .limit(literal_column("1"))
        .scalar_subquery()
    )
    return select(*_number, until.label("until")).where(
        or_(in_flight.is_not(None), until.is_not(None))
    )


_TAKEN: Final = {
    "sqlite": Statement(_taken_in_sqlite()),
    "postgresql": Statement(_taken_in_postgresql()),
}
# Of two numbers that share a lock by chance one is looked at again a moment later.
_LOCK: Final = Statement(
    select(
        *_number,
        func.pg_try_advisory_xact_lock(
            func.hashtextextended(_numbers.c.project_id + _numbers.c.e164, literal(0, BigInteger()))
        ).label("locked"),
    )
)
_parked = values_parameter("parked", id=call.c.id.type, due_at=call.c.due_at.type)
_PARK: Final = Statement(
    update(call).where(call.c.id == _parked.c.id, is_due).values(due_at=_parked.c.due_at)
)
_marked = values_parameter("marked", id=call.c.id.type, until=call.c.may_ring_until.type)
_MARK: Final = Statement(
    update(call).where(call.c.id == _marked.c.id).values(may_ring_until=_marked.c.until)
)
_FORGET: Final = Statement(
    update(call)
    .where(
        call.c.id.in_(
            select(call.c.id)
            .where(may_ring, call.c.may_ring_until <= _now)
            .limit(bindparam("most"))
        )
    )
    .values(may_ring_until=None)
)
