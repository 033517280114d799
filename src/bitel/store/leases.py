"""Who runs a dialer: one worker at a time, and none that has lost its turn writes anything.

Each take-over gives the dialer's row a higher epoch. Everything a worker writes about attempts
first checks that its own epoch is still the row's, in the same transaction, and keeps it so until
the commit; so a worker that was paused or cut off finds out before it can do harm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, bindparam, select, text, update

from bitel.calls.call import CallStatus
from bitel.calls.outcome import Attempted, Outcome
from bitel.store import canceling
from bitel.store.bulk import Query
from bitel.store.endings import (
    CallAgain,
    CallEnd,
    call_again,
    end_attempts,
    end_calls,
    forget_requests,
)
from bitel.store.schema import HEARD, attempt, call, dialer, is_open


class LostLease(Exception):
    """Another worker has taken over the dialer: this one must stop."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to run a dialer, until somebody takes over."""

    dialer_id: str
    worker: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Recovered:
    """How many attempts of earlier workers were found open, and what became of their calls."""

    redialled: int = 0
    """Not answered when cut off: due again, expired or canceled."""
    unknown: int = 0
    """Answered, so perhaps heard: final, and never called again."""


def take_over(
    conn: Connection, dialer_id: str, worker: str, now: float, redial_after: float
) -> tuple[Lease, Recovered]:
    """Become the one who runs the dialer, and deal with what earlier workers left open.

    An attempt that somebody had answered makes its call UNKNOWN, at no cost, as nobody knows how
    long it lasted. Any other may still be ringing: its call is due again `redial_after` seconds
    after it began, which must exceed the longest ring time; that spends no retry. One that was to
    be called off is.
    """
    bump = {"id": dialer_id, "worker": worker, "now": now}
    epoch: int = conn.execute(_TAKE_OVER, bump).scalar_one()
    left = conn.execute(_LEFT_OPEN, {"dialer_id": dialer_id}).all()
    canceled = canceling.asked(conn, [row.id for row in left])
    end_attempts(
        conn,
        [
            (row.id, Attempted(Outcome.CUT_OFF, row.started_at, now, row.answered_at))
            for row in left
        ],
    )
    forget_requests(conn, canceled)
    ends: list[CallEnd] = []
    again: list[CallAgain] = []
    heard = [row for row in left if row.claim == HEARD]
    for row in heard:
        ends.append(CallEnd(row.call_id, CallStatus.UNKNOWN, row.started_at))
    for row in left:
        if row.claim == HEARD:
            continue
        due_at = max(now, row.started_at + redial_after)
        if row.id in canceled:
            ends.append(CallEnd(row.call_id, CallStatus.CANCELED, row.started_at))
        elif due_at >= row.expires_at:
            ends.append(CallEnd(row.call_id, CallStatus.EXPIRED))
        else:
            again.append(CallAgain(row.call_id, due_at, spends_retry=False, trouble=None))
    end_calls(conn, ends, now)
    call_again(conn, again)
    return Lease(dialer_id, worker, epoch), Recovered(len(left) - len(heard), len(heard))


def renew(conn: Connection, lease: Lease, now: float) -> bool:
    """Say that the worker is alive. False: another has taken over."""
    seen = conn.execute(
        update(dialer)
        .where(dialer.c.id == lease.dialer_id, dialer.c.epoch == lease.epoch)
        .values(seen_at=now)
    )
    return seen.rowcount == 1


def holds(conn: Connection, lease: Lease) -> bool:
    """Whether the lease is still good; if so, it stays good until this transaction ends."""
    wanted = {"id": lease.dialer_id, "epoch": lease.epoch}
    return bool(_HOLDS.rows(conn, wanted))


@dataclass(frozen=True, slots=True)
class TrunkHistory:
    """What a dialer's worker knows of its trunks, for the API and for the next worker."""

    paused_reason: str = ""
    """Why no calls are placed although the trunks answer; empty while they are."""
    has_worked: bool = False
    """Whether the trunks have ever delivered a call."""


def record_trunks(conn: Connection, lease: Lease, history: TrunkHistory, now: float) -> None:
    """Write what the worker knows of its trunks, if it still holds the lease."""
    values: dict[str, Any] = {"paused_reason": history.paused_reason or None}
    if history.has_worked:
        values["worked_at"] = now
    conn.execute(
        update(dialer)
        .where(dialer.c.id == lease.dialer_id, dialer.c.epoch == lease.epoch)
        .values(values)
    )


def trunk_history(conn: Connection, dialer_id: str) -> TrunkHistory:
    """What the last worker has written with `record_trunks`."""
    columns = (dialer.c.paused_reason, dialer.c.worked_at)
    row = conn.execute(select(*columns).where(dialer.c.id == dialer_id)).one_or_none()
    if row is None:
        return TrunkHistory()
    return TrunkHistory(row.paused_reason or "", row.worked_at is not None)


def paused_reasons(conn: Connection) -> dict[str, str]:
    """Why dialers place no calls although their trunks answer, for those that do not."""
    rows = conn.execute(
        select(dialer.c.id, dialer.c.paused_reason).where(dialer.c.paused_reason.is_not(None))
    )
    return {row.id: row.paused_reason for row in rows}


def dialers_up(conn: Connection, now: float, within: float) -> dict[str, bool]:
    """Each dialer that ever ran, and whether its worker was alive in the last `within` seconds."""
    rows = conn.execute(select(dialer.c.id, dialer.c.seen_at))
    return {row.id: row.seen_at >= now - within for row in rows}


_TAKE_OVER = text(
    """
    INSERT INTO dialer (id, epoch, worker, seen_at) VALUES (:id, 1, :worker, :now)
    ON CONFLICT (id) DO UPDATE
        SET epoch = dialer.epoch + 1, worker = excluded.worker, seen_at = excluded.seen_at
    RETURNING epoch
    """
)

# FOR SHARE: a take-over, which updates the row, waits for our commit, and we for its.
_HOLDS: Final = Query(
    select(dialer.c.epoch)
    .where(dialer.c.id == bindparam("id"), dialer.c.epoch == bindparam("epoch"))
    .with_for_update(read=True)
)

_LEFT_OPEN = (
    select(
        attempt.c.id,
        attempt.c.call_id,
        attempt.c.claim,
        attempt.c.started_at,
        attempt.c.answered_at,
        call.c.expires_at,
    )
    .join(call)
    .where(attempt.c.dialer_id == bindparam("dialer_id"), is_open)
    .order_by(attempt.c.id)
    # Locked, so that a client who cancels at this moment is heard, now or right after us.
    .with_for_update(key_share=True, of=call)
)
