"""Pauses: the service, a dialer or a project begins no new attempts until it is resumed.

The operator pauses and resumes; a database that is recognised as one from a backup pauses the
service by itself. Calls are accepted and wait meanwhile, attempts under way go on, and what waits
expires as ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final, Literal

from sqlalchemy import Connection, bindparam, delete, exists, select, text, update

from bitel.domain.attempts import AttemptResult, Outcome
from bitel.domain.calls import CallStatus
from bitel.store.endings import CallEnd, end_attempts, end_calls
from bitel.store.schema import (
    DIALER,
    PROJECT,
    SERVICE,
    attempt,
    call,
    dialer,
    is_due,
    is_open,
    is_waiting,
    pause,
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
    """What pauses mean for one dialer."""

    reason: str = ""
    """Why the dialer begins no attempt at all; empty: it does."""
    projects: frozenset[str] = frozenset()
    """The projects that are paused."""


NONE: Final = InForce()


def add(conn: Connection, new: Pause) -> bool:
    """Pause. False: it is paused already, and stays so for the reason of before."""
    return conn.execute(_ADD, asdict(new)).rowcount == 1


def remove(conn: Connection, scope: Scope, target: str) -> Pause | None:
    """Resume; the pause that was in force, None where there was none."""
    wanted = {"the_scope": scope, "the_target": target}
    row = conn.execute(_FIND, wanted).one_or_none()
    conn.execute(_REMOVE, wanted)
    return None if row is None else Pause(**row._mapping)


def find(conn: Connection, scope: Scope, target: str) -> Pause | None:
    """The pause that is in force, if there is one."""
    row = conn.execute(_FIND, {"the_scope": scope, "the_target": target}).one_or_none()
    return None if row is None else Pause(**row._mapping)


def listing(conn: Connection) -> list[Pause]:
    """All pauses, the oldest first."""
    return [Pause(*row) for row in _ALL.rows(conn, {})]


def in_force(conn: Connection, dialer_id: str) -> InForce:
    """What is paused of a dialer."""
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


def note_claims(conn: Connection, dialer_id: str, newest: str) -> None:
    """Write the id of the newest attempt that the dialer has begun."""
    conn.execute(_NOTE_CLAIMS, {"the_dialer": dialer_id, "newest": newest})


def pause_if_older(conn: Connection, dialer_id: str, mark: str, now: float) -> bool:
    """Pause the service if the database does not know the dialer's attempt `mark`.

    That attempt was begun with a later state of the database, so this one is from a backup; the
    attempts since then would be made again. Without open calls there are none, and nothing is
    paused. Whether it was paused now is returned.
    """
    last = conn.execute(_LAST_ATTEMPT, {"the_dialer": dialer_id}).scalar_one_or_none() or ""
    if not mark or last >= mark or not conn.execute(_HAS_OPEN_CALLS).scalar_one():
        return False
    reason = "the database is older than what this data_dir has dialled with: it is from a backup"
    return add(conn, Pause(SERVICE, "", reason, now, is_restored=True))


def drop_open(conn: Connection, before: float, now: float) -> int:
    """End up to `CHUNK` calls as UNKNOWN that were placed before `before` (Unix seconds).

    Attempts that a worker left open are ended too. How many calls it were; 0: none is left.
    """
    wanted = {"before": before, "most": CHUNK}
    left = conn.execute(_LEFT_OPEN, wanted).all()
    end_attempts(
        conn,
        [
            (row.id, AttemptResult(Outcome.INTERRUPTED, row.started_at, now, row.answered_at))
            for row in left
        ],
    )
    ids: Sequence[str] = conn.execute(_OPEN, wanted).scalars().all()
    end_calls(conn, [CallEnd(each, CallStatus.UNKNOWN, reason=DROPPED) for each in ids], now)
    return len(ids)


_ADD = text(
    """
    INSERT INTO pause (scope, target, reason, at, is_restored)
    VALUES (:scope, :target, :reason, :at, :is_restored)
    ON CONFLICT (scope, target) DO NOTHING
    """
)
_FIND = select(pause).where(
    pause.c.scope == bindparam("the_scope"), pause.c.target == bindparam("the_target")
)
_REMOVE = delete(pause).where(
    pause.c.scope == bindparam("the_scope"), pause.c.target == bindparam("the_target")
)
_ALL: Final = Statement(select(pause).order_by(pause.c.at, pause.c.scope, pause.c.target))
_NOTE_CLAIMS = (
    update(dialer)
    .where(dialer.c.id == bindparam("the_dialer"), dialer.c.last_attempt < bindparam("newest"))
    .values(last_attempt=bindparam("newest"))
)
_LAST_ATTEMPT = select(dialer.c.last_attempt).where(dialer.c.id == bindparam("the_dialer"))
_HAS_OPEN_CALLS = select(
    exists(select(call.c.id).where(is_due)) | exists(select(attempt.c.id).where(is_open))
)
_LEFT_OPEN = (
    select(attempt.c.id, attempt.c.started_at, attempt.c.answered_at)
    .join(call)
    .where(is_open, call.c.requested_at < bindparam("before"))
    .limit(bindparam("most"))
)
# Those that were ended have left the indexes that this reads.
_OPEN = (
    select(call.c.id)
    .where(is_waiting, call.c.requested_at < bindparam("before"))
    .limit(bindparam("most"))
)
