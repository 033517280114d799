"""At most one attempt at a time for each phone number of a project.

A call that is due while another call of its project to the same number is being dialled, rings or
plays is parked: its due time moves on a little, so that it is looked at again later and other calls
pass it. Several that wait for one number are parked one after the other, which keeps the work small
where a batch holds one number thousands of times. A project may lift the rule.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import BigInteger, Connection, func, literal, select, update

from bitel.calls.call import Lane
from bitel.store.bulk import Change, Query, given
from bitel.store.schema import call, is_due, is_in_flight, project

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
    conn: Connection, picked: Sequence[Any], now: float, quarantine: Mapping[ProjectNumber, float]
) -> list[Any]:
    """Park those of `picked` whose number is taken, and return the others, in their order.

    `picked` are locked rows of due calls, with `id`, `project_id`, `e164`, `lane` and `exclusive`
    (whether their project wants the rule). Of several calls to one number the first is returned.
    A number in `quarantine` is taken until the time (Unix seconds) that it names, because an INVITE
    of a process that crashed may still ring there.
    """
    wanted = {(row.project_id, row.e164) for row in picked if row.exclusive}
    if not wanted:
        return list(picked)
    taken = _in_flight(conn, wanted)
    free: list[Any] = []
    parked: list[tuple[str, float]] = []
    waiting: Counter[ProjectNumber] = Counter()
    for row in picked:
        number = row.project_id, row.e164
        until = quarantine.get(number, now) if row.exclusive else now
        if row.exclusive and (number in taken or until > now):
            waiting[number] += 1
            step = OTP_PARKED_FOR if row.lane == Lane.OTP else PARKED_FOR
            wait = min(step * waiting[number], LONGEST_PARKED)
            parked.append((row.id, max(now, until) + wait))
        else:
            taken.add(number)
            free.append(row)
    if parked:
        _PARK.run(conn, {"parked": parked})
    return free


def _in_flight(conn: Connection, wanted: set[ProjectNumber]) -> set[ProjectNumber]:
    """Those of the numbers that an attempt is under way to; they stay so until the commit."""
    numbers = {"numbers": sorted(wanted)}
    if conn.dialect.name == "postgresql":
        # Dialers claim at the same time there; SQLite has one writer.
        _LOCK.rows(conn, numbers)
    return {(row.project_id, row.e164) for row in _IN_FLIGHT.rows(conn, numbers)}


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
# Two numbers that share a lock by chance only wait for each other.
_LOCK: Final = Query(
    select(
        func.pg_advisory_xact_lock(
            func.hashtextextended(_numbers.c.project_id + _numbers.c.e164, literal(0, BigInteger()))
        ).label("locked")
    )
)
_parked = given("parked", id=call.c.id.type, due_at=call.c.due_at.type)
_PARK: Final = Change(
    update(call).where(call.c.id == _parked.c.id, is_due).values(due_at=_parked.c.due_at)
)
