"""Claims: due calls become attempts of one worker, and answers are written before audio is sent.

A claim is durable before the INVITE leaves, an answer before the first packet of audio. After a
crash `recovery.take_over` deals with the attempts that are still open.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple

from sqlalchemy import Connection, bindparam, func, literal, select, update

from bitel.domain.attempts import AttemptResult, DialRequest, Outcome
from bitel.domain.calls import CallStatus, Lane
from bitel.domain.ids import new_ids
from bitel.domain.retry import Requeue, RetryRule
from bitel.store import (
    calls,
    do_not_call,
    fair_queue,
    leases,
    number_exclusion,
    one_time_passwords,
    pausing,
)
from bitel.store.endings import CallEnd, end_attempts, end_calls, forget_requests, requeue_calls
from bitel.store.fair_queue import DueCall
from bitel.store.leases import Lease, LostLease
from bitel.store.schema import ANSWERED, CLAIMED, attempt, call, cancel_request, is_due, is_open
from bitel.store.sql_batch import Statement, insert_rows, matches, update_each, values_parameter

_LOOKS: Final = 10
"""Queries of one claim: further ones replace calls that can't be dialled now."""
_LOOK_AT: Final = 200
"""Calls that each further query reads, at least."""

_NEVER_DIALLED: Final = "its claim was not known to be durable"

_FROM_THE_START: Mapping[Lane, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim(DialRequest):
    """An attempt that its worker may make now, and no other."""

    project_id: str
    started_at: float
    rule: RetryRule
    """The retries that the call has left."""
    lane: Lane


@dataclass(frozen=True, slots=True)
class Room:
    """How many calls may be claimed now."""

    channels: int
    """In all."""
    others: int
    """Calls other than one-time passwords, for which some channels may be reserved."""
    otp: int
    """One-time passwords, while other calls are due."""


def claim(
    conn: Connection,
    lease: Lease,
    limit: int | Room,
    now: float,
    lanes: Iterable[Lane] = Lane,
    after_project: Mapping[Lane, str] = _FROM_THE_START,
    ahead: float = 0.0,
) -> list[Claim]:
    """Up to `limit` calls that are due, those of the first lane first.

    Within a lane projects take turns, the longest due call of each first. The turns begin after the
    project that `after_project` names for the lane: pass the project of the lane's last claim.
    Outside their project's calling window only one-time passwords are claimed; windows follow the
    system clock, which is `ahead` seconds ahead of `now`. Calls that have expired, whose number is
    on the do-not-call list by now, or that are superseded by a newer one-time password, end
    instead. Calls whose number is in another attempt of the project wait (see `number_exclusion`),
    and so do all calls of what is paused (see `pausing`).

    Raises LostLease when another worker has taken over.
    """
    room = limit if isinstance(limit, Room) else Room(limit, limit, limit)
    if not leases.holds(conn, lease):
        raise LostLease(f"another worker has taken over the dialer {lease.dialer_id}")
    paused = pausing.in_force(conn, lease.dialer_id)
    if paused.reason:
        return []
    closed = fair_queue.closed_now(conn, now, ahead)
    waiting = sorted(fair_queue.with_waiting(conn, lease.dialer_id, lanes))
    if closed:
        for lane in waiting:
            if lane is not Lane.OTP:
                fair_queue.postpone(conn, lease.dialer_id, lane, now, closed)
    turns: list[_LaneTurn] = [
        (
            lane,
            after_project.get(lane, ""),
            paused.projects if lane is Lane.OTP else paused.projects | closed.keys(),
        )
        for lane in waiting
    ]
    claimed: list[Claim] = []
    for look in range(_LOOKS):
        # Calls that can't be dialled must take neither a place nor their project's turn.
        picked = _pick(conn, lease.dialer_id, turns, room, _LOOK_AT if look else 0, now)
        rows = _without_ended(conn, picked, now) if picked else []
        taken, parked = _take_shares(conn, lease, rows, room, now)
        claimed += taken
        otp = sum(one.lane is Lane.OTP for one in taken)
        others = len(taken) - otp
        room = Room(room.channels - len(taken), room.others - others, max(0, room.otp - otp))
        if room.channels <= 0 or not (parked or len(rows) < len(picked)):
            break
    if claimed:
        pausing.note_claims(conn, lease.dialer_id, max(one.attempt_id for one in claimed))
    return claimed


def _take_shares(
    conn: Connection, lease: Lease, rows: list[DueCall], room: Room, now: float
) -> tuple[list[Claim], int]:
    """Claim one-time passwords first, up to their share while other calls are due, then the others,
    then more one-time passwords. Returns the claims, and how many calls were parked."""
    otp = [row for row in rows if row.lane == Lane.OTP]
    others = [row for row in rows if row.lane != Lane.OTP]
    claimed: list[Claim] = []
    gone: set[str] = set()
    parked_calls = 0

    def take(some: list[DueCall], most: int) -> None:
        nonlocal parked_calls
        waiting = [row for row in some if row.id not in gone]
        if not waiting or most <= 0:
            return
        free, parked = number_exclusion.park_taken(conn, waiting, now, most)
        if free:
            claimed.extend(_take(conn, lease, free, now))
        gone.update(row.id for row in (*free, *parked))
        parked_calls += len(parked)

    take(otp, room.otp if others else room.channels)
    take(others, min(room.others, room.channels - len(claimed)))
    if all(row.id in gone for row in others):
        take(otp, room.channels - len(claimed))
    return claimed, parked_calls


_LaneTurn = tuple[Lane, str, Set[str]]
"""A lane, the project after which its turns begin, and the projects that have no turn."""


def _pick(
    conn: Connection,
    dialer_id: str,
    turns: Iterable[_LaneTurn],
    room: Room,
    least: int,
    now: float,
) -> list[DueCall]:
    """Due calls, lane by lane, within a lane one of each project in turn.

    As many as there is room for, or `least`. One-time passwords do not reduce the places of the
    other lanes.
    """
    picked: list[DueCall] = []
    others = max(room.others, least)
    for lane, after, closed in turns:
        most = max(room.channels, least) if lane is Lane.OTP else others
        if most > 0:
            of_lane = fair_queue.pick(conn, dialer_id, lane, most, now, after, closed)
            picked += fair_queue.one_of_each(of_lane)
            others -= 0 if lane is Lane.OTP else len(of_lane)
    return picked


_CLAIMED_AT: Final = select(*attempt.c["id", "call_id", "started_at"]).where(
    *matches(attempt.c.dialer_id, attempt.c.epoch),
    attempt.c.started_at.in_(bindparam("claimed_at", expanding=True)),
    is_open,
)


def undo(
    conn: Connection, lease: Lease, claimed_at: Collection[float], dialled: Collection[str]
) -> int:
    """Make calls due again whose claims at these times (Unix seconds) were never dialled.

    The attempts in `dialled` are left out. Returns how many claims were undone.
    """
    if not leases.holds(conn, lease):
        return 0
    rows = conn.execute(
        _CLAIMED_AT,
        {"dialer_id": lease.dialer_id, "epoch": lease.epoch, "claimed_at": list(claimed_at)},
    )
    undone = [row for row in rows if row.id not in dialled]
    canceled = calls.cancel_requested(conn, [row.id for row in undone])
    now = max(claimed_at, default=0.0)
    results = [
        AttemptResult(Outcome.CANCELED, row.started_at, now, detail=_NEVER_DIALLED)
        for row in undone
    ]
    end_attempts(conn, [(row.id, result) for row, result in zip(undone, results, strict=True)])
    forget_requests(conn, canceled)
    ends = [CallEnd(row.call_id, CallStatus.CANCELED) for row in undone if row.id in canceled]
    end_calls(conn, ends, now)
    requeue_calls(conn, [(row.call_id, Requeue(now)) for row in undone if row.id not in canceled])
    return len(undone)


_CANCEL_REQUESTS: Final = (
    select(cancel_request.c.attempt_id)
    .join(attempt, attempt.c.id == cancel_request.c.attempt_id)
    .where(*matches(cancel_request.c.dialer_id), is_open)
)


def cancel_requests(conn: Connection, dialer_id: str) -> list[str]:
    """The open attempts of the dialer that clients have requested to cancel."""
    return list(conn.execute(_CANCEL_REQUESTS, {"dialer_id": dialer_id}).scalars())


# Open attempts are recognised by their claim: with `is_open` SQLite would search all open attempts
# for each.
_is_mine = (
    attempt.c.dialer_id == bindparam("the_dialer"),
    attempt.c.epoch == bindparam("the_epoch"),
)
_is_claimed = (*_is_mine, attempt.c.claim == CLAIMED)
_MARK_ANSWERED: Final = update_each(
    "answers", attempt.c.id, attempt.c.answered_at, where=_is_claimed, claim=ANSWERED
)
_answers = values_parameter("answers", attempt.c.id, attempt.c.answered_at)
_ANSWERED_BEFORE: Final = Statement(
    select(attempt.c.id).where(
        attempt.c.id.in_(select(_answers.c.id)), *_is_mine, attempt.c.claim == ANSWERED
    )
)


def mark_answered(conn: Connection, lease: Lease, answered_at: Mapping[str, float]) -> set[str]:
    """Write when these attempts were answered (Unix seconds), by attempt.

    Returns the attempts for which it is written, now or by an earlier try. For any other the claim
    is lost, and nothing must be played.
    """
    if not leases.holds(conn, lease):
        return set()
    answers = {
        "answers": list(answered_at.items()),
        "the_dialer": lease.dialer_id,
        "the_epoch": lease.epoch,
    }
    if _MARK_ANSWERED.run(conn, answers).rowcount == len(answered_at):
        return set(answered_at)
    return {row.id for row in _ANSWERED_BEFORE.rows(conn, answers)}


_MARK_RINGING: Final = update_each("ringing", attempt.c.id, attempt.c.rang_at, where=_is_claimed)


def mark_ringing(conn: Connection, lease: Lease, rang_at: Mapping[str, float]) -> None:
    """Write when these attempts began to ring (Unix seconds), by attempt.

    Attempts that are answered, over, or taken over by another worker stay as they are.
    """
    if leases.holds(conn, lease):
        rows = list(rang_at.items())
        mine = {"the_dialer": lease.dialer_id, "the_epoch": lease.epoch}
        _MARK_RINGING.run(conn, {"ringing": rows, **mine})


_of_dialer = (call.c.dialer_id == bindparam("dialer_id"), is_due)
_EXPIRED: Final = Statement(
    select(call.c.id)
    .where(*_of_dialer, call.c.expires_at <= bindparam("now"))
    .order_by(call.c.expires_at)
    .limit(bindparam("most"))
    .with_for_update(skip_locked=True)
)


def expire(conn: Connection, dialer_id: str, now: float, limit: int = 1000) -> int:
    """End up to `limit` waiting calls whose time to live is over; returns how many."""
    rows = _EXPIRED.rows(conn, {"dialer_id": dialer_id, "now": now, "most": limit})
    ends = [CallEnd(row.id, CallStatus.EXPIRED) for row in rows]
    if ends:
        end_calls(conn, ends, now)
    return len(ends)


class NextDue(NamedTuple):
    """The next times at which waiting calls need attention; None: none do."""

    due_at: float | None
    expires_at: float | None

    @property
    def earliest(self) -> float | None:
        """The earlier time; it may be in the past."""
        return min((at for at in self if at is not None), default=None)


_next_due = select(func.min(call.c.due_at).label("due_at")).where(*_of_dialer)
_next_expiry = select(func.min(call.c.expires_at)).where(*_of_dialer)
_NEXT_DUE: Final = Statement(
    select(
        _next_due.scalar_subquery().label("due_at"),
        _next_expiry.scalar_subquery().label("expires_at"),
    )
)
_NEXT_DUE_IN_LANE: Final = Statement(_next_due.where(*matches(call.c.lane)))


def next_due(conn: Connection, dialer_id: str, lanes: Collection[Lane] = tuple(Lane)) -> NextDue:
    """When a waiting call of the dialer becomes due in one of the lanes, or in any lane expires."""
    (row,) = _NEXT_DUE.rows(conn, {"dialer_id": dialer_id})
    if len(lanes) == len(Lane):
        return NextDue(row.due_at, row.expires_at)
    of_lanes = [
        _NEXT_DUE_IN_LANE.rows(conn, {"dialer_id": dialer_id, "lane": int(lane)})[0].due_at
        for lane in lanes
    ]
    due_at = min((at for at in of_lanes if at is not None), default=None)
    return NextDue(due_at, row.expires_at)


def _without_ended(conn: Connection, picked: list[DueCall], now: float) -> list[DueCall]:
    """End the calls that must not be dialled any more; returns the others."""
    otp = [(row.project_id, row.e164, row.id) for row in picked if row.lane == Lane.OTP]
    superseded = one_time_passwords.superseded(conn, otp) if otp else set()
    ends: list[CallEnd] = []
    for row in picked:
        if row.expires_at <= now:
            ends.append(CallEnd(row.id, CallStatus.EXPIRED))
        elif row.unwanted:
            ends.append(CallEnd(row.id, CallStatus.ERROR, reason=do_not_call.REASON))
        elif row.id in superseded:
            ends.append(CallEnd(row.id, CallStatus.CANCELED, reason=one_time_passwords.REASON))
    if not ends:
        return picked
    end_calls(conn, ends, now)
    ended = {end.call_id for end in ends}
    return [row for row in picked if row.id not in ended]


_taken = values_parameter("taken", *attempt.c["id", "call_id", "number"])
_CLAIM_CALLS: Final = Statement(
    update(call)
    .where(call.c.id.in_(select(_taken.c.call_id)))
    .values(due_at=None, attempts=call.c.attempts + 1)
)
_BEGIN_ATTEMPTS: Final = insert_rows(
    _taken,
    attempt,
    dialer_id=bindparam("dialer_id", type_=attempt.c.dialer_id.type),
    epoch=bindparam("epoch", type_=attempt.c.epoch.type),
    claim=literal(CLAIMED),
    started_at=bindparam("started_at", type_=attempt.c.started_at.type),
    ended_by=literal(""),
    detail=literal(""),
)


def _take(conn: Connection, lease: Lease, rows: list[DueCall], now: float) -> list[Claim]:
    ids = new_ids(now, len(rows))
    claims = [_claim(attempt_id, row, now) for attempt_id, row in zip(ids, rows, strict=True)]
    taken = [
        (made.attempt_id, row.id, row.attempts + 1) for row, made in zip(rows, claims, strict=True)
    ]
    _CLAIM_CALLS.run(conn, {"taken": taken})
    _BEGIN_ATTEMPTS.run(
        conn,
        {"taken": taken, "dialer_id": lease.dialer_id, "epoch": lease.epoch, "started_at": now},
    )
    return claims


def _claim(attempt_id: str, row: DueCall, now: float) -> Claim:
    return Claim(
        attempt_id=attempt_id,
        call_id=row.id,
        project_id=row.project_id,
        e164=row.e164,
        recording_id=row.recording_id,
        started_at=now,
        rule=RetryRule(
            row.retries_left, row.retry_interval, row.expires_at, row.trouble, row.uncertain
        ),
        lane=Lane(row.lane),
        digits=row.digits or "",
        repeat_count=row.repeat_count or 1,
        language=row.language or "",
        longest_seconds=row.longest_seconds,
        parts=tuple(row.parts or ()),
    )
