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

from sqlalchemy import BigInteger, Connection, func, literal, select, update

from bitel.calls.call import Lane
from bitel.store.bulk import Change, Query, given
from bitel.store.schema import call, is_due, is_in_flight, project

PARKED_FOR: Final = 5.0
"""Seconds until a call whose number is taken is looked at again; each further call to the number
waits as much longer."""
OTP_PARKED_FOR: Final = 1.0
"""The same for one-time passwords, which somebody waits for."""
LONGEST_PARKED: Final = 300.0

Number = tuple[str, str]
"""A project's id and a number in E.164 with its plus sign."""


def park_taken(
    conn: Connection,
    picked: Sequence[Any],
    now: float,
    quarantine: Mapping[Number, float],
    room: int,
) -> tuple[list[Any], int]:
    """Park those of `picked` whose number is taken. Up to `room` others, in order, may be dialled.

    Returns these, and how many were parked; what there is no room for stays as it is. `picked` are
    locked rows of due calls, with `id`, `project_id`, `e164`, `lane` and `exclusive` (whether their
    project wants the rule). Of several calls to one number the first is returned. A number in
    `quarantine` is taken until the time (Unix seconds) that it names, because an INVITE of a
    process that crashed may still ring there.
    """
    wanted = {(row.project_id, row.e164) for row in picked if row.exclusive}
    taken = _in_flight(conn, wanted)
    free: list[Any] = []
    parked: list[Any] = []
    for row in picked:
        number = row.project_id, row.e164
        if row.exclusive and (number in taken or quarantine.get(number, now) > now):
            parked.append(row)
        elif len(free) < room:
            free.append(row)
            taken.add(number)
    lost = _contested(conn, {(row.project_id, row.e164) for row in free if row.exclusive})
    if lost:
        parked += [row for row in free if (row.project_id, row.e164) in lost]
        free = [row for row in free if (row.project_id, row.e164) not in lost]
    if parked:
        _PARK.run(conn, {"parked": _until(parked, now, quarantine)})
    return free, len(parked)


def _until(
    parked: Iterable[Any], now: float, quarantine: Mapping[Number, float]
) -> list[tuple[str, float]]:
    """When each call is looked at again, by id."""
    waiting: Counter[Number] = Counter()
    until: list[tuple[str, float]] = []
    for row in parked:
        number = row.project_id, row.e164
        waiting[number] += 1
        step = OTP_PARKED_FOR if row.lane == Lane.OTP else PARKED_FOR
        wait = min(step * waiting[number], LONGEST_PARKED)
        until.append((row.id, max(now, quarantine.get(number, now)) + wait))
    return until


def _in_flight(conn: Connection, numbers: Set[Number]) -> set[Number]:
    """Those of the numbers that an attempt is under way to."""
    if not numbers:
        return set()
    rows = _IN_FLIGHT.rows(conn, {"numbers": sorted(numbers)})
    return {(row.project_id, row.e164) for row in rows}


def _contested(conn: Connection, numbers: Set[Number]) -> Set[Number]:
    """Those of the numbers that the claim of another dialer takes at this moment.

    The others are kept from such claims until the commit. Nobody waits: claims that look several
    times would wait for each other.
    """
    if conn.dialect.name != "postgresql" or not numbers:
        return set()  # SQLite has one writer
    rows = _LOCK.rows(conn, {"numbers": sorted(numbers)})
    kept = {(row.project_id, row.e164) for row in rows if row.locked}
    # What was taken and written until then is seen now.
    return numbers - kept | _in_flight(conn, kept)


_numbers = given("numbers", project_id=project.c.id.type, e164=call.c.e164.type)
_IN_FLIGHT: Final = Query(
    select(_numbers.c.project_id, _numbers.c.e164).where(
        select(literal(1))
        .where(
            call.c.project_id == _numbers.c.project_id,
            call.c.e164 == _numbers.c.e164,
            is_in_flight,
        )
        .exists()
    )
)
# Of two numbers that share a lock by chance one is looked at again a moment later.
_LOCK: Final = Query(
    select(
        _numbers.c.project_id,
        _numbers.c.e164,
        func.pg_try_advisory_xact_lock(
            func.hashtextextended(_numbers.c.project_id + _numbers.c.e164, literal(0, BigInteger()))
        ).label("locked"),
    )
)
_parked = given("parked", id=call.c.id.type, due_at=call.c.due_at.type)
_PARK: Final = Change(
    update(call).where(call.c.id == _parked.c.id, is_due).values(due_at=_parked.c.due_at)
)
