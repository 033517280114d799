"""The lease of each dialer: one worker at a time runs it, and only its holder writes attempts.

Each take-over gives the dialer's row a higher epoch. Everything a worker writes about attempts
first checks that its own epoch is still the row's, in the same transaction, and keeps it so until
the commit; so a worker that was paused or cut off finds out before it can do harm.

The holder renews `seen_at` every few seconds, whether or not its trunks can be reached, which `up`
says. Who may take over, and when, is decided in `bitel.dialing.standby`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, bindparam, select, text, update

from bitel.domain.attempts import AttemptResult, Outcome
from bitel.domain.calls import CallStatus
from bitel.store import canceling
from bitel.store.endings import (
    CallAgain,
    CallEnd,
    call_again,
    end_attempts,
    end_calls,
    forget_requests,
)
from bitel.store.number_exclusion import mark_may_ring
from bitel.store.schema import HEARD, attempt, call, dialer, is_open
from bitel.store.sql_batch import Statement


class LostLease(Exception):
    """Another worker has taken over the dialer: this one must stop."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to run a dialer, until another worker takes over."""

    dialer_id: str
    worker: str
    epoch: int


class Holder(NamedTuple):
    """A dialer's row: the worker that holds the lease, or held it last. The default: no row."""

    epoch: int = 0
    worker: str = ""
    installation: str | None = None
    """Of the data_dir whose lock file the worker holds; None: the lease is free."""
    seen_at: float = 0.0
    """The last renewal, in Unix seconds by the worker's clock."""


class TakeOverTerms(NamedTuple):
    """What a worker that takes over holds, and what it knows of the former one."""

    installation: str | None = None
    """Of the data_dir whose lock file it holds; None: it holds none, so others need not wait."""
    former: Holder | None = None
    """The holder that was seen: the take-over fails if the row names another by then. None: it is
    taken over from any holder."""
    former_ended: bool = True
    """The former worker's process has ended, so none of its INVITEs leaves after this moment."""
    former_ahead: float = 0.0
    """Seconds by which the former worker's clock is ahead of ours, at least; negative: behind."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """How many attempts of earlier workers were found open, and what became of their calls."""

    redialled: int = 0
    """Not answered when cut off: due again, expired, canceled, or rung for the last time."""
    unknown: int = 0
    """Answered, so perhaps heard: final, and never called again."""


def holder(conn: Connection, dialer_id: str) -> Holder:
    """The dialer's row as it is."""
    row = conn.execute(_HOLDER, {"id": dialer_id}).one_or_none()
    return Holder(*row) if row else Holder()


def probe(conn: Connection, dialer_id: str) -> Holder:
    """As `holder`, by a write that changes nothing: it fails where the database can only read."""
    conn.execute(_PROBE, {"id": dialer_id})
    return holder(conn, dialer_id)


def fence(conn: Connection, dialer_id: str, worker: str, installation: str, now: float) -> Holder:
    """Take the lease from a worker that may be alive, and leave its attempts as they are.

    The worker can write nothing any more and stops when it finds out. The row then names `worker`,
    which takes over once the other is gone. Returns the row before.
    """
    before = holder(conn, dialer_id)
    conn.execute(
        _FENCE, {"id": dialer_id, "worker": worker, "installation": installation, "now": now}
    )
    return before


def take_over(
    conn: Connection,
    dialer_id: str,
    worker: str,
    now: float,
    redial_after: float,
    last_invite: float = math.inf,
    terms: TakeOverTerms = TakeOverTerms(),  # noqa: B008 # immutable
) -> tuple[Lease, Recovered]:
    """Become the worker that runs the dialer, and deal with what earlier workers left open.

    An attempt that was answered makes its call UNKNOWN, at no cost, as its length is not known.
    One whose cancellation was requested makes it CANCELED. Any other may still be ringing: its call
    is due again `redial_after` seconds, which must exceed the longest ring time, after its INVITE
    may have left. That is `last_invite` seconds after the claim, or now where the former worker has
    ended; without `last_invite` it must have. The claim's time is by the former worker's clock, and
    is converted to ours by `former_ahead`; no claim that is found was made later than now. The call
    spends no retry, unless the attempt is known to have rung: then it waits for its retry interval
    too, and a call without retries left ends as NO_ANSWER. Until that time no other call is made to
    its number either, nor for `redial_after` seconds to a number that had answered, whose line may
    still be open.

    Raises LostLease where the row is no longer what `terms` expect.
    """
    epoch = _next_epoch(conn, dialer_id, worker, now, terms)
    left = conn.execute(_LEFT_OPEN, {"dialer_id": dialer_id}).all()
    canceled = canceling.asked(conn, [row.id for row in left])
    end_attempts(
        conn,
        [
            (row.id, AttemptResult(Outcome.CUT_OFF, row.started_at, now, row.answered_at))
            for row in left
        ],
    )
    forget_requests(conn, canceled)
    ends: list[CallEnd] = []
    again: list[CallAgain] = []
    heard = [row for row in left if row.claim == HEARD]
    may_ring: list[tuple[str, float]] = []
    for row in heard:
        ends.append(CallEnd(row.call_id, CallStatus.UNKNOWN, row.started_at))
        may_ring.append((row.call_id, now + redial_after))
    for row in left:
        if row.claim == HEARD:
            continue
        sent_at = min(row.started_at - terms.former_ahead, now) + last_invite
        if terms.former_ended:
            sent_at = min(now, sent_at)
        due_at = max(now, sent_at + redial_after)
        may_ring.append((row.call_id, due_at))
        if row.id in canceled:
            ends.append(CallEnd(row.call_id, CallStatus.CANCELED, row.started_at))
        elif row.rang_at is not None:
            due_at = max(due_at, now + row.retry_interval)
            if row.retries_left > 0 and due_at < row.expires_at:
                again.append(CallAgain(row.call_id, due_at, True, 0, row.uncertain))
            else:
                ends.append(CallEnd(row.call_id, CallStatus.NO_ANSWER, row.started_at))
        elif due_at >= row.expires_at:
            ends.append(CallEnd(row.call_id, CallStatus.EXPIRED))
        else:
            again.append(CallAgain(row.call_id, due_at, spends_retry=False, trouble=None))
    end_calls(conn, ends, now)
    call_again(conn, again)
    mark_may_ring(conn, may_ring)
    return Lease(dialer_id, worker, epoch), Recovered(len(left) - len(heard), len(heard))


def _next_epoch(
    conn: Connection, dialer_id: str, worker: str, now: float, terms: TakeOverTerms
) -> int:
    values: dict[str, Any] = {
        "id": dialer_id, "worker": worker, "now": now, "installation": terms.installation,
    }  # fmt: skip
    former = terms.former
    if former is None:
        epoch: int = conn.execute(_TAKE_OVER, values).scalar_one()
        return epoch
    values |= {"epoch": former.epoch, "seen_at": former.seen_at}
    taken: int | None = conn.execute(_TAKE_OVER_FROM, values).scalar_one_or_none()
    if taken is None:
        raise LostLease(f"another worker took over the dialer {dialer_id!r}")
    return taken


def renew(conn: Connection, lease: Lease, now: float, up: bool = True) -> bool:
    """Say that the worker is alive, and whether a carrier can be reached. False: it is replaced."""
    seen = conn.execute(
        update(dialer)
        .where(dialer.c.id == lease.dialer_id, dialer.c.epoch == lease.epoch)
        .values(seen_at=now, up=up)
    )
    return seen.rowcount == 1


def release(conn: Connection, lease: Lease) -> None:
    """Give the lease back, so that the next worker need not wait; none of another is touched."""
    conn.execute(
        update(dialer)
        .where(dialer.c.id == lease.dialer_id, dialer.c.epoch == lease.epoch)
        .values(installation=None, up=False)
    )


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
    """Each dialer that ever ran, and whether it can place calls.

    It can where its worker was alive in the last `within` seconds and then reached a carrier.
    """
    rows = conn.execute(select(dialer.c.id, dialer.c.seen_at, dialer.c.up))
    return {row.id: row.up and row.seen_at >= now - within for row in rows}


_HOLDER = select(dialer.c.epoch, dialer.c.worker, dialer.c.installation, dialer.c.seen_at).where(
    dialer.c.id == bindparam("id")
)

_PROBE = text("UPDATE dialer SET epoch = epoch WHERE id = :id")

_FENCE = text(
    """
    UPDATE dialer SET epoch = epoch + 1, worker = :worker, installation = :installation,
        seen_at = :now, up = false
    WHERE id = :id
    """
)

_INSERT = """
    INSERT INTO dialer (id, epoch, worker, seen_at, installation)
    VALUES (:id, 1, :worker, :now, :installation)
    ON CONFLICT (id) DO UPDATE
        SET epoch = dialer.epoch + 1, worker = excluded.worker, seen_at = excluded.seen_at,
            installation = excluded.installation, up = true
"""
_TAKE_OVER = text(f"{_INSERT} RETURNING epoch")
_TAKE_OVER_FROM = text(
    f"{_INSERT} WHERE dialer.epoch = :epoch AND dialer.seen_at = :seen_at RETURNING epoch"
)

# FOR SHARE: a take-over, which updates the row, waits for our commit, and we for its.
_HOLDS: Final = Statement(
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
        attempt.c.rang_at,
        call.c.expires_at,
        call.c.retries_left,
        call.c.retry_interval,
        call.c.uncertain,
    )
    .join(call)
    .where(attempt.c.dialer_id == bindparam("dialer_id"), is_open)
    .order_by(attempt.c.id)
    # Locked, so that a client who cancels at this moment is heard, now or right after us.
    .with_for_update(key_share=True, of=call)
)
