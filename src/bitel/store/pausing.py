"""Pauses: the service, a dialer or a project begins no new attempts until it is resumed.

The operator pauses and resumes; a database that turns out to be from a backup pauses the service.
Meanwhile calls are accepted and wait, attempts under way go on, and waiting calls expire as usual.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal

from sqlalchemy import Connection, bindparam, delete, exists, select, text, update

from bitel.domain.calls import CallStatus
from bitel.store import call_events
from bitel.store.endings import CallEnd, end_calls, interrupt_attempts
from bitel.store.leases import Lease
from bitel.store.schema import (
    DIALER,
    PROJECT,
    SERVICE,
    attempt,
    call,
    dialer,
    is_open,
    is_waiting,
    pause,
    worker,
)
from bitel.store.sql_batch import Statement

Scope = Literal["service", "dialer", "project"]

DROPPED: Final = "its database is from a backup: whether it was called since is not known"
"""Why a call that was open at the time of a backup ends as UNKNOWN."""

CHUNK: Final = 1000
"""Calls that are ended in one transaction."""


@dataclass(frozen=True, slots=True)
class Pause:
    """A pause that is in force."""

    scope: Scope
    target: str
    """The id of the dialer or project; of the service, empty."""
    reason: str
    at: float
    """Since when, in Unix seconds."""
    is_restored: bool = False
    """The database is from a backup: calls placed before `at` may have been dialled since."""


@dataclass(frozen=True, slots=True)
class InForce:
    """The pauses that affect one dialer."""

    reason: str = ""
    """Why the dialer is paused; empty: it is not."""
    projects: frozenset[str] = frozenset()
    """The projects that are paused."""


NONE: Final = InForce()
_ADD = text(
    """
    INSERT INTO pause (scope, target, reason, at, is_restored)
    VALUES (:scope, :target, :reason, :at, :is_restored)
    ON CONFLICT (scope, target) DO NOTHING
    """
)


def add(conn: Connection, new: Pause) -> bool:
    """Pause. False: it was paused already, and keeps its reason."""
    return conn.execute(_ADD, asdict(new)).rowcount == 1


def remove(conn: Connection, scope: Scope, target: str) -> Pause | None:
    """Resume; returns the pause that was in force, if there was one."""
    found = find(conn, scope, target)
    conn.execute(delete(pause).where(pause.c.scope == scope, pause.c.target == target))
    return found


def find(conn: Connection, scope: Scope, target: str) -> Pause | None:
    """The pause that is in force, if there is one."""
    return next((p for p in listing(conn) if (p.scope, p.target) == (scope, target)), None)


_ALL: Final = Statement(select(pause).order_by(pause.c.at, pause.c.scope, pause.c.target))


def listing(conn: Connection) -> list[Pause]:
    """All pauses, the oldest first."""
    return [Pause(*row) for row in _ALL.rows(conn, {})]


def in_force(conn: Connection, dialer_id: str) -> InForce:
    """The pauses that affect a dialer."""
    found = listing(conn)
    if not found:
        return NONE
    reasons = [
        each.reason
        for each in found
        if each.scope == SERVICE or (each.scope == DIALER and each.target == dialer_id)
    ]
    projects = frozenset(each.target for each in found if each.scope == PROJECT)
    return InForce(reasons[0] if reasons else "", projects)


_NOTE_CLAIMS: Final = Statement(
    update(worker)
    .where(
        worker.c.dialer_id == bindparam("the_dialer"),
        worker.c.epoch == bindparam("the_epoch"),
        worker.c.last_attempt < bindparam("newest"),
    )
    .values(last_attempt=bindparam("newest"))
)


def note_claims(conn: Connection, lease: Lease, newest: str) -> None:
    """Store the id of the newest attempt that a worker has begun."""
    mine = {"the_dialer": lease.dialer_id, "the_epoch": lease.epoch}
    _NOTE_CLAIMS.run(conn, {**mine, "newest": newest})


_HAS_OPEN_CALLS = select(
    exists(select(call.c.id).where(is_waiting)) | exists(select(attempt.c.id).where(is_open))
)


def pause_if_older(conn: Connection, dialer_id: str, mark: str, now: float) -> bool:
    """Pause the service if the database does not know the dialer's attempt `mark`.

    That attempt was begun with a later state of the database, so this one is from a backup, and
    later attempts would be made again. Without open calls nothing would be, and nothing is paused.
    Returns whether the service was paused.
    """
    known = select(dialer.c.last_attempt).where(dialer.c.id == dialer_id)
    of_workers = select(worker.c.last_attempt).where(worker.c.dialer_id == dialer_id)
    last = max(conn.execute(known.union_all(of_workers)).scalars(), default="")
    if not mark or last >= mark or not conn.execute(_HAS_OPEN_CALLS).scalar_one():
        return False
    reason = "the database is older than what this data_dir has dialled with: it is from a backup"
    return add(conn, Pause(SERVICE, "", reason, now, is_restored=True))


_LEFT_OPEN = (
    select(*attempt.c["id", "call_id", "started_at", "answered_at"])
    .join(call)
    .where(is_open, call.c.requested_at < bindparam("before"))
    .limit(bindparam("most"))
)
# Ended calls have left the indexes that this reads.
_OPEN = (
    select(call.c.id)
    .where(is_waiting, call.c.requested_at < bindparam("before"))
    .limit(bindparam("most"))
)


def drop_open(conn: Connection, before: float, now: float) -> int:
    """End up to `CHUNK` calls as UNKNOWN that were placed before `before` (Unix seconds).

    Attempts that a worker left open are ended too. Returns the number of calls; 0: none is left.
    """
    wanted = {"before": before, "most": CHUNK}
    left = conn.execute(_LEFT_OPEN, wanted).all()
    interrupt_attempts(conn, left, now)
    ids: Sequence[str] = conn.execute(_OPEN, wanted).scalars().all()
    end_calls(conn, [CallEnd(each, CallStatus.UNKNOWN, reason=DROPPED) for each in ids], now)
    call_events.write_completed(conn, [row.call_id for row in left], now)
    return len(ids)
