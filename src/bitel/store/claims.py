"""Claims: due calls become attempts of one worker, and answers are written before audio is sent.

A claim is durable before the INVITE leaves, an answer before the first packet of audio. After a
crash `recovery.take_over` deals with the attempts that are still open.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, bindparam, exists, func, literal, select, update

from bitel.domain.attempts import AttemptResult, DialRequest, Outcome
from bitel.domain.calls import CallStatus, Lane
from bitel.domain.dialer_groups import Membership
from bitel.domain.ids import new_ids
from bitel.domain.machines import MachineDetection
from bitel.domain.menus import Menu
from bitel.domain.retry import Requeue, RetryRule, RetryWaits
from bitel.domain.webhooks import CALL_ANSWERED, CALL_INITIATED, CALL_RINGING
from bitel.store import (
    call_events,
    campaign_schedules,
    dialer_groups,
    do_not_call,
    event_rows,
    fair_queue,
    leases,
    menus,
    number_exclusion,
    one_time_passwords,
    pausing,
)
from bitel.store.call_events import CallEvent
from bitel.store.campaign_schedules import CampaignBudgets, NoPace, Pace, Page, Schedules
from bitel.store.dialer_groups import GroupTurn
from bitel.store.endings import (
    CallEnd,
    cancel_requested,
    end_attempts,
    end_calls,
    forget_requests,
    requeue_calls,
)
from bitel.store.fair_queue import DueCall
from bitel.store.leases import Lease, LostLease
from bitel.store.schema import (
    ANSWERED,
    CLAIMED,
    attempt,
    call,
    campaign,
    cancel_request,
    has_window,
    is_alone,
    is_due,
    is_open,
    is_unfinished,
    project,
)
from bitel.store.sql_batch import (
    Statement,
    insert_rows,
    is_among,
    matches,
    update_each,
    values_parameter,
)

_LOOKS: Final = 10
"""Queries of one claim: further ones replace calls that can't be dialled now."""
_LOOK_AT: Final = 200
"""Calls that each further query reads, at least."""

_NEVER_DIALLED: Final = "its claim was not known to be durable"

_NO_HOUR: Final = "no hour is allowed in all time zones of the number; give its timeZone"
_NO_MENU: Final = "its menu is missing"
_UNRENDERED_WAIT: Final = 1.0
"""Seconds until a call is looked at again whose text was not rendered yet."""

_FROM_THE_START: Final[Mapping[Lane, str]] = MappingProxyType({})
_FROM_THE_FIRST: Final[Mapping[str, str]] = MappingProxyType({})
_NO_PACE: Final = NoPace()


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim(DialRequest):
    """An attempt that its worker may make now, and no other."""

    project_id: str
    started_at: float
    rule: RetryRule
    """The retries that the call has left."""
    lane: Lane
    campaign_id: str | None = None
    events: tuple[str, ...] = ()
    """The types of events that its call asks for."""


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
    after_campaign: Mapping[str, str] = _FROM_THE_FIRST,
    pace: Pace = _NO_PACE,
    page: Page | None = None,
    groups: Sequence[Membership] = (),
) -> list[Claim]:
    """Up to `limit` calls that are due, those of the first lane first.

    Within a lane projects take turns, the longest due call of each first, and so do the campaigns
    of a project. Outside of calling windows only one-time passwords are claimed; windows follow the
    system clock, which is `ahead` seconds ahead of `now`. Calls that have expired, whose number is
    on the do-not-call list by now, or that are superseded by a newer one-time password, end
    instead. Calls whose number is in another attempt of the project wait (see `number_exclusion`),
    and so do all calls of what is paused (see `pausing`), and calls whose text is not rendered.

    Args:
        after_project: the turns of a lane begin after this project: pass that of its last claim.
        after_campaign: the same for the campaigns of each project.
        pace: limits the calls of each campaign.
        groups: those of the dialer; it claims from their queues too.

    Raises LostLease when another worker has taken over.
    """
    room = limit if isinstance(limit, Room) else Room(limit, limit, limit)
    if not leases.holds(conn, lease):
        raise LostLease(f"the lease of the dialer {lease.dialer_id!r} has ended")
    paused = pausing.in_force(conn, lease.dialer_id)
    if paused.reason:
        return []
    of_groups = dialer_groups.turns(conn, groups, now) if groups else []
    schedules = _schedules(conn, lease.dialer_id, now, ahead, page, of_groups)
    closed = {} if schedules is None else schedules.closed_projects()
    alone = set[Lane]()
    for queue_id in (lease.dialer_id, *(turn.queue for turn in of_groups)):
        waiting = fair_queue.with_waiting(conn, queue_id, lanes)
        if closed:
            for lane in sorted(waiting - {Lane.OTP}):
                fair_queue.postpone(conn, queue_id, lane, now, closed)
        alone |= waiting
    has_campaigns = schedules is not None and bool(schedules.campaigns)
    in_campaigns = {Lane.BATCH}.intersection(lanes) if has_campaigns else set()
    turns: list[_LaneTurn] = [
        (
            lane,
            after_project.get(lane, ""),
            paused.projects if lane is Lane.OTP else paused.projects | closed.keys(),
        )
        for lane in sorted(alone | in_campaigns)
    ]
    claimed: list[Claim] = []
    budgets = None if schedules is None else CampaignBudgets(pace)
    queue = _Queue(lease.dialer_id, now, schedules, after_campaign, budgets,
                   {turn.queue: turn for turn in of_groups}, Counter(), {})  # fmt: skip
    for look in range(_LOOKS):
        # Calls that can't be dialled must take neither a place nor their project's turn.
        picked = _pick(conn, queue, turns, room, _LOOK_AT if look else 0, now)
        rows = _ready(conn, picked, queue) if picked else []
        taken, parked = _take_shares(conn, lease, rows, room, queue)
        claimed += taken
        otp = sum(one.lane is Lane.OTP for one in taken)
        others = len(taken) - otp
        room = Room(room.channels - len(taken), room.others - others, max(0, room.otp - otp))
        if room.channels <= 0 or not (parked or len(rows) < len(picked)):
            break
    if claimed:
        pausing.note_claims(conn, lease, max(one.attempt_id for one in claimed))
    for queue_id, calls in queue.new.items():
        dialer_groups.note_taken(conn, queue.groups[queue_id], calls)
    return claimed


class _Queue(NamedTuple):
    """The waiting calls of a dialer."""

    dialer_id: str
    now: float
    schedules: Schedules | None
    """None: it has no campaigns, and no project has a window."""
    after_campaign: Mapping[str, str]
    budgets: CampaignBudgets | None
    """None: as for schedules."""
    groups: Mapping[str, GroupTurn]
    """The dialer's turns in its groups, by the group."""
    new: Counter[str]
    """New calls that were claimed, by group."""
    menus: dict[str, Menu]
    """Those of the calls that were picked."""

    def expires_at(self, row: DueCall) -> float:
        """The time from which the call is not dialled any more."""
        return row.expires_at if self.schedules is None else self.schedules.expires_at(row)

    def opens_at(self, row: DueCall) -> float | None:
        """When the call may be dialled if its callee's clock does not allow it now, else None."""
        return None if self.schedules is None else self.schedules.opens_at(row)

    def within_turns(self, rows: Sequence[DueCall]) -> list[DueCall]:
        """The calls without the new ones of groups for which it is the turn of other dialers."""
        left = {key: turn.new - self.new[key] for key, turn in self.groups.items()}
        kept = []
        for row in rows:
            is_new = row.dialer_id in left and row.caller_id is None
            if is_new and not self._is_paced(row) and not self._is_overdue(row):
                left[row.dialer_id] -= 1
                if left[row.dialer_id] < 0:
                    continue
            kept.append(row)
        return kept

    def _is_overdue(self, row: DueCall) -> bool:
        return row.due_at <= self.groups[row.dialer_id].overdue_before

    def _is_paced(self, row: DueCall) -> bool:
        of = self.schedules.campaigns if self.schedules is not None else {}
        found = of.get(row.campaign_id or "")
        return found is not None and campaign_schedules.is_paced(found)


_has_campaigns = exists(
    select(campaign.c.id).where(is_among(campaign.c.dialer_id, "queues"), is_unfinished)
)
_HAS_SCHEDULES: Final = Statement(
    select((_has_campaigns | exists(select(project.c.id).where(has_window))).label("any"))
)


def _schedules(
    conn: Connection,
    dialer_id: str,
    now: float,
    ahead: float,
    page: Page | None = None,
    turns: Sequence[GroupTurn] = (),
) -> Schedules | None:
    """The schedules in force; None: there are none, as mostly with single calls only."""
    queues = [(dialer_id,), *((turn.queue,) for turn in turns)]
    (row,) = _HAS_SCHEDULES.rows(conn, {"queues": queues})
    return campaign_schedules.read(conn, dialer_id, now, ahead, page, turns) if row.any else None


def _take_shares(
    conn: Connection, lease: Lease, rows: list[DueCall], room: Room, queue: _Queue
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
        allow = _anything if queue.budgets is None else queue.budgets.allow
        free, parked = number_exclusion.park_taken(conn, waiting, queue.now, most, allow)
        if free:
            if queue.budgets is not None:
                queue.budgets.spend(free)
            claimed.extend(_take(conn, lease, free, queue))
        gone.update(row.id for row in (*free, *parked))
        parked_calls += len(parked)

    take(otp, room.otp if others else room.channels)
    take(others, min(room.others, room.channels - len(claimed)))
    if all(row.id in gone for row in others):
        take(otp, room.channels - len(claimed))
    return claimed, parked_calls


def _anything(row: DueCall, chosen: Sequence[DueCall]) -> bool:
    return True


_LaneTurn = tuple[Lane, str, Set[str]]
"""A lane, the project after which its turns begin, and the projects that have no turn."""


def _pick(
    conn: Connection,
    queue: _Queue,
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
            of_lane = fair_queue.pick(conn, queue.dialer_id, lane, most, now, after, closed)
            for turn in queue.groups.values():
                of_group = turn.parameters()
                of_lane += fair_queue.pick(
                    conn, turn.queue, lane, most, now, after, closed, of_group
                )
            is_batch = lane is Lane.BATCH and len(of_lane) < most
            if is_batch and queue.schedules is not None and queue.budgets is not None:
                of_lane += campaign_schedules.pick(
                    conn,
                    queue.schedules,
                    most - len(of_lane),
                    after,
                    queue.after_campaign,
                    closed,
                    queue.budgets,
                    least,
                    list(queue.groups.values()),
                )
            if queue.groups:
                of_lane = queue.within_turns(of_lane)
            picked += fair_queue.one_of_each(of_lane)
            others -= 0 if lane is Lane.OTP else len(of_lane)
    return picked


_CLAIMED_AT: Final = (
    select(*attempt.c["id", "call_id", "started_at"])
    .join(call, call.c.id == attempt.c.call_id)
    .where(
        *matches(attempt.c.dialer_id, attempt.c.epoch),
        attempt.c.started_at.in_(bindparam("claimed_at", expanding=True)),
        is_open,
    )
    .order_by(attempt.c.call_id)
    # Locked: a client that cancels meanwhile takes effect either now or right after us.
    .with_for_update(key_share=True, of=call)
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
    ).all()
    undone = [row for row in rows if row.id not in dialled]
    canceled = cancel_requested(conn, [row.id for row in undone])
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
    call_events.write_completed(conn, [row.call_id for row in undone], now)
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


_TO_REPORT = (
    select(attempt.c.id, attempt.c.call_id, call.c.project_id, call.c.webhook_id)
    .join(call, call.c.id == attempt.c.call_id)
    .where(is_among(attempt.c.id, "reported"), *_is_claimed)
)
_UNANSWERED: Final = Statement(_TO_REPORT)
_UNRUNG: Final = Statement(_TO_REPORT.where(attempt.c.rang_at.is_(None)))


def mark_answered(
    conn: Connection,
    lease: Lease,
    answered_at: Mapping[str, float],
    reported: Collection[str] = (),
) -> set[str]:
    """Write when these attempts were answered (Unix seconds), by attempt.

    An event is written for those that are `reported`.

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
    wanted = {**answers, "reported": [(each,) for each in reported]}
    to_report = _UNANSWERED.rows(conn, wanted) if reported else []
    marked = _MARK_ANSWERED.run(conn, answers).rowcount
    if to_report:
        call_events.write(conn, _of_attempts(CALL_ANSWERED, to_report, answered_at))
    if marked == len(answered_at):
        return set(answered_at)
    return {row.id for row in _ANSWERED_BEFORE.rows(conn, answers)}


def _of_attempts(type_: str, rows: Iterable[Any], at: Mapping[str, float]) -> list[CallEvent]:
    return [
        CallEvent(type_, row.call_id, row.project_id, row.webhook_id, at[row.id]) for row in rows
    ]


_MARK_RINGING: Final = update_each("ringing", attempt.c.id, attempt.c.rang_at, where=_is_claimed)


def mark_ringing(
    conn: Connection,
    lease: Lease,
    rang_at: Mapping[str, float],
    reported: Collection[str] = (),
) -> None:
    """Write when these attempts began to ring (Unix seconds), by attempt.

    Attempts that are answered, over, or taken over by another worker stay as they are. An event is
    written for those that are `reported`.
    """
    if leases.holds(conn, lease):
        rows = list(rang_at.items())
        mine = {"the_dialer": lease.dialer_id, "the_epoch": lease.epoch}
        wanted = {**mine, "reported": [(each,) for each in reported]}
        to_report = _UNRUNG.rows(conn, wanted) if reported else []
        _MARK_RINGING.run(conn, {"ringing": rows, **mine})
        if to_report:
            call_events.write(conn, _of_attempts(CALL_RINGING, to_report, rang_at))


_of_dialer = (call.c.dialer_id == bindparam("dialer_id"), is_due, is_alone)
_EXPIRED: Final = Statement(
    select(call.c.id)
    .where(*_of_dialer, call.c.expires_at <= bindparam("now"))
    .order_by(call.c.expires_at)
    .limit(bindparam("most"))
    .with_for_update(skip_locked=True)
)


def expire(
    conn: Connection,
    queue_id: str,
    now: float,
    limit: int = 1000,
    ahead: float = 0.0,
    page: Page | None = None,
) -> int:
    """End up to `limit` waiting calls of a dialer, or of a group, whose time to live is over.

    Returns how many.

    The system clock, which the ends of campaigns follow, is `ahead` seconds ahead of `now`.
    """
    rows = _EXPIRED.rows(conn, {"dialer_id": queue_id, "now": now, "most": limit})
    ends = [CallEnd(row.id, CallStatus.EXPIRED) for row in rows]
    if ends:
        end_calls(conn, ends, now)
    if len(ends) >= limit:
        return len(ends)
    schedules = _schedules(conn, queue_id, now, ahead, page)
    if schedules is None:
        return len(ends)
    return len(ends) + campaign_schedules.expire(conn, queue_id, schedules, limit - len(ends))


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
_next_of_group = (
    select(call.c.due_at)
    .where(*_of_dialer, fair_queue.may_take(call), *matches(call.c.lane))
    .order_by(call.c.due_at)
    .limit(1)
)
_NEXT_DUE_OF_GROUP: Final = Statement(_next_of_group)


def next_due(
    conn: Connection,
    dialer_id: str,
    now: float,
    lanes: Collection[Lane] = tuple(Lane),
    ahead: float = 0.0,
    page: Page | None = None,
    groups: Sequence[Membership] = (),
) -> NextDue:
    """When a waiting call of the dialer becomes due in one of the lanes, or in any lane expires.

    Calls of campaigns that have no turn at `now` are left out, and calls of its groups that are for
    other dialers.
    """
    turns = dialer_groups.turns(conn, groups, now) if groups else []
    (row,) = _NEXT_DUE.rows(conn, {"dialer_id": dialer_id})
    due: list[float | None] = [row.due_at]
    if len(lanes) < len(Lane):
        due = [
            _NEXT_DUE_IN_LANE.rows(conn, {"dialer_id": dialer_id, "lane": int(lane)})[0].due_at
            for lane in lanes
        ]
    for turn in turns:
        for lane in lanes:
            of_lane = {"dialer_id": turn.queue, "lane": int(lane), **turn.parameters()}
            due += [row.due_at for row in _NEXT_DUE_OF_GROUP.rows(conn, of_lane)]
    has_batches = Lane.BATCH in lanes
    schedules = _schedules(conn, dialer_id, now, ahead, page, turns) if has_batches else None
    if schedules is not None:
        due.append(campaign_schedules.next_due(schedules))
    return NextDue(min((at for at in due if at is not None), default=None), row.expires_at)


_WAIT: Final = update_each("late", call.c.id, call.c.due_at, where=[is_due])


def _ready(conn: Connection, picked: list[DueCall], queue: _Queue) -> list[DueCall]:
    """The calls that may be dialled now; ends those that must not be dialled any more.

    Calls whose callee's clock does not allow it, and whose text is not rendered, wait.
    """
    named = [row.menu_id for row in picked if row.menu_id is not None]
    if named:
        queue.menus.update(menus.find(conn, named))
    otp = [(row.project_id, row.e164, row.id) for row in picked if row.lane == Lane.OTP]
    superseded = one_time_passwords.superseded(conn, otp) if otp else set()
    ends: list[CallEnd] = []
    late: list[tuple[str, float]] = []
    ready: list[DueCall] = []
    for row in picked:
        if queue.expires_at(row) <= queue.now:
            ends.append(CallEnd(row.id, CallStatus.EXPIRED))
        elif row.unwanted:
            ends.append(CallEnd(row.id, CallStatus.ERROR, reason=do_not_call.REASON))
        elif row.id in superseded:
            ends.append(CallEnd(row.id, CallStatus.CANCELED, reason=one_time_passwords.REASON))
        elif (opening := queue.opens_at(row)) == math.inf:
            ends.append(CallEnd(row.id, CallStatus.ERROR, reason=_NO_HOUR))
        elif opening is not None:
            late.append((row.id, opening))
        elif row.menu_id is not None and row.menu_id not in queue.menus:
            # Without it the callee could not opt out.
            ends.append(CallEnd(row.id, CallStatus.ERROR, reason=_NO_MENU))
        elif row.parts == "":
            late.append((row.id, queue.now + _UNRENDERED_WAIT))
            if queue.budgets is not None:
                queue.budgets.hold(row.campaign_id)
        else:
            ready.append(row)
    if ends:
        end_calls(conn, ends, queue.now)
    if late:
        _WAIT.run(conn, {"late": late})
    return ready


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


def _take(conn: Connection, lease: Lease, rows: list[DueCall], queue: _Queue) -> list[Claim]:
    now = queue.now
    if queue.groups:
        rows = _bind_caller_ids(conn, rows, queue)
    ids = new_ids(now, len(rows))
    asking = [row for row in rows if row.webhook_id is not None or row.webhook_events]
    own = event_rows.own_types(conn, asking) if asking else {}
    events = {row.id: event_rows.types_of(row, own) for row in asking}
    claims = [
        _claim(attempt_id, row, queue, events.get(row.id, ()), queue.menus.get(row.menu_id or ""))
        for attempt_id, row in zip(ids, rows, strict=True)
    ]
    taken = [
        (made.attempt_id, row.id, row.attempts + 1) for row, made in zip(rows, claims, strict=True)
    ]
    _CLAIM_CALLS.run(conn, {"taken": taken})
    _BEGIN_ATTEMPTS.run(
        conn,
        {"taken": taken, "dialer_id": lease.dialer_id, "epoch": lease.epoch, "started_at": now},
    )
    initiated = [
        CallEvent(CALL_INITIATED, row.id, row.project_id, row.webhook_id, now)
        for row in asking
        if CALL_INITIATED in events[row.id]
    ]
    if initiated:
        call_events.write(conn, initiated)
    return claims


_BIND: Final = update_each("bound", call.c.id, call.c.caller_id)


def _bind_caller_ids(conn: Connection, rows: list[DueCall], queue: _Queue) -> list[DueCall]:
    """Choose the caller ids of new calls of groups: later attempts show the same."""
    bound: list[DueCall] = []
    for row in rows:
        turn = queue.groups.get(row.dialer_id)
        if turn is not None and row.caller_id is None:
            queue.new[turn.queue] += 1
            chosen = turn.of.choose_caller_id(row.e164, row.id)
            # A named tuple with the columns of the query, which the protocol can't say.
            row = row._replace(caller_id=chosen)  # type: ignore[attr-defined]
            bound.append(row)
    if bound:
        _BIND.run(conn, {"bound": [(row.id, row.caller_id) for row in bound]})
        by_id = {row.id: row for row in bound}
        rows = [by_id.get(row.id, row) for row in rows]
    return rows


def _claim(
    attempt_id: str, row: DueCall, queue: _Queue, events: tuple[str, ...], menu: Menu | None
) -> Claim:
    rule = RetryRule(
        row.retries_left,
        row.retry_interval,
        queue.expires_at(row),
        row.trouble,
        row.uncertain,
        waits=None if row.retry_waits is None else RetryWaits.parse(row.retry_waits),
    )
    return Claim(
        attempt_id=attempt_id,
        call_id=row.id,
        project_id=row.project_id,
        e164=row.e164,
        recording_id=row.recording_id,
        started_at=queue.now,
        rule=rule,
        lane=Lane(row.lane),
        digits=row.digits or "",
        repeat_count=row.repeat_count or 1,
        language=row.language or "",
        longest_seconds=row.longest_seconds,
        campaign_id=row.campaign_id,
        events=events,
        caller_id=row.caller_id or "",
        parts=tuple(row.parts.split(",")) if row.parts else (),
        menu=menu,
        machine_detection=MachineDetection(row.machine_detection)
        if row.machine_detection
        else None,
        machine_recording_id=row.machine_recording_id,
    )
