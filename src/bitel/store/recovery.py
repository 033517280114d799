"""Recovery of open attempts: after a crash of their worker, or the removal of their dialer."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import CTE, Connection, Select, bindparam, select

from bitel.domain.attempts import Outcome
from bitel.domain.calls import CallStatus
from bitel.domain.retry import Requeue, RetryAt, RetryRule, RetryWaits
from bitel.store import call_events, claims, leases
from bitel.store.endings import (
    CallEnd,
    cancel_requested,
    end_calls,
    forget_requests,
    interrupt_attempts,
    requeue_calls,
)
from bitel.store.leases import Holder, Lease, Slot, Worker
from bitel.store.number_exclusion import mark_may_ring
from bitel.store.schema import (
    ANSWERED,
    attempt,
    call,
    campaign,
    is_due_alone,
    is_open,
    is_unfinished,
    worker,
)
from bitel.store.sql_batch import loose_index_scan, matches

REDIAL_AFTER: Final = 600.0
"""Seconds until a call of such a dialer is due again: more than any dialer's ring time needs."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """Number of open attempts of earlier workers, by what happened to their calls."""

    redialled: int = 0
    """Not answered: due again, expired, canceled, or without retries."""
    unknown: int = 0
    """Answered: final, never called again."""


@dataclass(frozen=True, slots=True)
class FormerWorker:
    """What is known of the workers whose attempts are recovered."""

    seen: Holder | None = None
    """The dialer's row, if one of them had the dialer for itself."""
    has_ended: bool = True
    """Their processes have ended."""
    has_lapsed: bool = False
    """They have known for a while that their lease may be over, so they send no INVITE."""
    ahead: float = 0.0
    """Seconds by which their clock is ahead of ours, at least; negative: behind."""


_LEFT_OPEN = (
    select(
        *attempt.c["id", "call_id", "claim", "started_at", "answered_at", "rang_at"],
        *call.c[
            "campaign_id",
            "expires_at",
            "retries_left",
            "retry_interval",
            "retry_waits",
            "uncertain",
            "longest_seconds",
        ],
    )
    .join(call)
    .where(
        *matches(attempt.c.dialer_id),
        is_open,
        attempt.c.epoch.not_in(
            select(worker.c.epoch).where(worker.c.dialer_id == bindparam("dialer_id"))
        ),
    )
    .order_by(attempt.c.id)
    # Locked: a client that cancels meanwhile takes effect either now or right after us.
    .with_for_update(key_share=True, of=call)
)


def take_over(
    conn: Connection,
    slot: Slot,
    name: str,
    now: float,
    redial_after: float,
    last_invite: float = math.inf,
    former: FormerWorker = FormerWorker(),  # immutable
    address: str = "",
) -> tuple[Lease, Recovered]:
    """Become the worker `name` in a slot, and end the attempts of workers whose lease is over.

    See `recover` and `leases.take` for the other parameters. Raises LostLease where the dialer's
    row is no longer what was seen.
    """
    lease = leases.take(conn, slot, name, now, address, former.seen)
    return lease, recover(conn, slot.dialer_id, now, redial_after, last_invite, former)


def recover(
    conn: Connection,
    dialer_id: str,
    now: float,
    redial_after: float,
    last_invite: float = math.inf,
    former: FormerWorker = FormerWorker(),  # immutable
) -> Recovered:
    """End the open attempts of a dialer's workers whose lease has ended.

    The call of an answered attempt ends as UNKNOWN, at no cost, since its length is not known. One
    whose cancellation was requested ends as CANCELED. Any other is due again once its phone can't
    ring any more: `redial_after` seconds after its INVITE can have left. It spends no retry, unless
    the attempt is known to have rung: then it also waits for its retry interval, and ends as
    NO_ANSWER without retries left. Until then no other call is made to the number, and its channel
    counts as in use. So does that of an answered call until it must be over, and for `redial_after`
    seconds at least.

    Args:
        redial_after: seconds, more than the longest ring time.
        last_invite: seconds after its claim at which an INVITE leaves at the latest, unless the
            former worker can send none any more, as `former` says.
        former: the time of a claim is by the former worker's clock; `former.ahead` converts it.
    """
    left = conn.execute(_LEFT_OPEN, {"dialer_id": dialer_id}).all()
    if not left:
        return Recovered()
    canceled = cancel_requested(conn, [row.id for row in left])
    interrupt_attempts(conn, left, now)
    forget_requests(conn, canceled)
    ends: list[CallEnd] = []
    again: list[tuple[str, RetryAt | Requeue]] = []
    may_ring: list[tuple[str, float]] = []
    answered = 0
    for row in left:
        if row.claim == ANSWERED:
            answered += 1
            ends.append(CallEnd(row.call_id, CallStatus.UNKNOWN, row.started_at, is_answered=True))
            # If the worker is only disconnected, the call plays on.
            plays_until = now if former.has_ended else now + row.longest_seconds
            may_ring.append((row.call_id, max(now + redial_after, plays_until)))
            continue
        sent_at = min(row.started_at - former.ahead, now) + last_invite
        if former.has_ended or former.has_lapsed:
            sent_at = min(now, sent_at)
        due_at = max(now, sent_at + redial_after)
        may_ring.append((row.call_id, due_at))
        if row.id in canceled:
            ends.append(CallEnd(row.call_id, CallStatus.CANCELED, row.started_at))
        elif row.rang_at is not None:
            redial = _rule(row).spend(Outcome.NO_ANSWER)
            due_at = max(due_at, now + (redial[0] if redial else 0.0))
            if redial is not None and due_at < _expires_at(row):
                waits = redial[1]
                retry = RetryAt(due_at, waits is None, 0, row.uncertain, waits)
                again.append((row.call_id, retry))
            else:
                ends.append(CallEnd(row.call_id, CallStatus.NO_ANSWER, row.started_at))
        elif due_at >= _expires_at(row):
            ends.append(CallEnd(row.call_id, CallStatus.EXPIRED))
        else:
            again.append((row.call_id, Requeue(due_at)))
    end_calls(conn, ends, now)
    requeue_calls(conn, again)
    mark_may_ring(conn, may_ring)
    call_events.write_completed(conn, [row.call_id for row in left], now)
    return Recovered(len(left) - answered, answered)


def _rule(row: Any) -> RetryRule:
    waits = None if row.retry_waits is None else RetryWaits.parse(row.retry_waits)
    return RetryRule(row.retries_left, row.retry_interval, row.expires_at, waits=waits)


def _expires_at(row: Any) -> float:
    """When the call expires; infinite in a campaign, whose schedule the next claim checks."""
    expires_at: float = row.expires_at
    return expires_at if row.campaign_id is None else math.inf


def _unknown(dialers: CTE) -> Select[Any]:
    value = dialers.c.value
    return select(value).where(value.is_not(None), value.not_in(bindparam("known", expanding=True)))


Orphan = tuple[Holder, tuple[Worker, ...]]
"""A dialer's row and its workers."""

_ORPHANED_ATTEMPTS = _unknown(loose_index_scan(attempt.c.dialer_id, is_open))


def orphaned(
    conn: Connection, known_dialers: Collection[str], grouped: Collection[str] = ()
) -> dict[str, Orphan]:
    """The dialers that may have to be given up, with their workers.

    They are those that are not known and have attempts under way, and those of groups (`grouped`)
    that have workers or attempts under way.
    """
    known = [each for each in known_dialers if each not in grouped]
    rows = conn.execute(_ORPHANED_ATTEMPTS, {"known": known, "after": ""})
    at_work = {row.value for row in rows}
    found = {
        each: (leases.holder(conn, each), tuple(leases.workers(conn, each)))
        for each in sorted(at_work.union(grouped))
    }
    return {each: seen for each, seen in found.items() if seen[1] or each in at_work}


def give_up(conn: Connection, dialer_id: str, seen: Orphan, now: float) -> bool:
    """End the leases and open attempts of a dialer, as after a crash of its workers.

    False: its workers are no longer what was `seen`.
    """
    leases.lock(conn, dialer_id)
    found = leases.holder(conn, dialer_id), tuple(leases.workers(conn, dialer_id))
    if found != seen:
        return False
    leases.take(conn, Slot(dialer_id), "housekeeping", now)
    leases.remove_all(conn, dialer_id)
    recover(conn, dialer_id, now, REDIAL_AFTER)
    return True


_ORPHANED_CALLS = _unknown(loose_index_scan(call.c.dialer_id, is_due_alone))
_ORPHANED_CAMPAIGNS = _unknown(loose_index_scan(campaign.c.dialer_id, is_unfinished))


def expire_orphans(
    conn: Connection, known_dialers: Collection[str], now: float, limit: int = 1000
) -> int:
    """End up to `limit` expired calls of dialers that are not known; returns how many."""
    known = {"known": list(known_dialers), "after": ""}
    ended = 0
    dialers = {
        dialer_id
        for query in (_ORPHANED_CALLS, _ORPHANED_CAMPAIGNS)
        for dialer_id in conn.execute(query, known).scalars()
    }
    for dialer_id in sorted(dialers):
        ended += claims.expire(conn, dialer_id, now, limit - ended)
        if ended >= limit:
            break
    return ended
