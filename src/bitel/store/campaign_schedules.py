"""Schedules of waiting calls: calling windows of projects, and what campaigns add to them.

A campaign that is paused, too early or outside of its window has no turn in the queue, so that its
calls need not be read. Where windows are by the callee's own clock, each call is looked at when it
is picked.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import sqlalchemy as sa
from sqlalchemy import Connection

from bitel.domain.calling_hours import CallingWindow
from bitel.domain.calls import CallStatus, Lane
from bitel.domain.schedule import Schedule, zones_of
from bitel.store import fair_queue
from bitel.store.dialer_groups import GroupTurn
from bitel.store.endings import CallEnd, end_calls
from bitel.store.fair_queue import CAMPAIGN_CALLS, GROUP_CAMPAIGN_CALLS, DueCall
from bitel.store.schema import (
    call,
    campaign,
    has_end,
    has_window,
    is_due_in_campaign,
    is_unfinished,
    may_run,
    project,
)
from bitel.store.sql_batch import Statement

MOST: Final = 2000
"""Campaigns of a dialer that one claim looks at; it begins after those of the claim before."""

_DAY: Final = 86_400.0
_NO_HURRY: Final = 1_000_000_000


class CampaignRow(Protocol):
    """The row of a campaign that has calls waiting. Times as in `schema`."""

    id: str
    project_id: str
    dialer_id: str
    """Its dialer, or its group of dialers."""
    requested_at: float
    start_at: float | None
    time_to_live: int
    end_at: float | None
    window: str | None
    calls_per_second: float | None
    max_channels: int | None
    paused_at: float | None
    pauses: tuple[tuple[float, float], ...]
    canceled_at: float | None
    first_due: float | None
    """When the first of its waiting calls is due; None: none waits. Of a group's campaign only
    those count that the dialer may take."""


class Pace(Protocol):
    """Limits how many calls of a campaign may begin now."""

    def room(
        self,
        campaign_id: str,
        calls_per_second: float | None,
        max_channels: int | None,
        queue_id: str,
    ) -> int:
        """How many calls of the campaign may begin now; a limit of None does not apply.

        `queue_id` is its dialer or its group of dialers.
        """


class NoPace:
    """As fast as the dialer."""

    def room(
        self,
        campaign_id: str,
        calls_per_second: float | None,
        max_channels: int | None,
        queue_id: str,
    ) -> int:
        """Any number."""
        return _NO_HURRY


class CampaignBudgets:
    """How many further calls of each campaign one claim may begin."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._left: dict[str, int] = {}
        self._held: set[str] = set()

    def left(self, row: CampaignRow) -> int:
        """How many calls of the campaign may still begin."""
        if row.id in self._held:
            return 0
        if row.id not in self._left:
            self._left[row.id] = self._pace.room(
                row.id, row.calls_per_second, row.max_channels, row.dialer_id
            )
        return self._left[row.id]

    def hold(self, campaign_id: str | None) -> None:
        """Pick no further calls of a campaign in this claim: its texts are not rendered yet."""
        if campaign_id is not None:
            self._held.add(campaign_id)

    def allow(self, row: DueCall, chosen: Sequence[DueCall]) -> bool:
        """Whether the call may begin besides those that are chosen already."""
        left = self._left.get(row.campaign_id or "", _NO_HURRY)
        if left > len(chosen):
            return True
        return sum(one.campaign_id == row.campaign_id for one in chosen) < left

    def spend(self, rows: Iterable[DueCall]) -> None:
        """Count calls that begin."""
        for row in rows:
            if row.campaign_id in self._left:
                self._left[row.campaign_id] -= 1


def _first_due(*conditions: sa.ColumnElement[bool]) -> sa.Label[float | None]:
    return (
        sa.select(call.c.due_at)
        .where(call.c.campaign_id == campaign.c.id, is_due_in_campaign, *conditions)
        .order_by(call.c.due_at)
        .limit(sa.literal_column("1"))
        .scalar_subquery()
        .label("first_due")
    )


_takes_paced = sa.bindparam("takes_paced", type_=sa.Boolean()).is_(sa.true())
_is_paced = sa.or_(campaign.c.calls_per_second.is_not(None), campaign.c.max_channels.is_not(None))
_may_take = sa.case(
    (_is_paced, fair_queue.may_take(call, _takes_paced, overdue=sa.false())),
    else_=fair_queue.may_take(call),
)
_COLUMNS: Final = campaign.c[
    "id", "project_id", "dialer_id", "requested_at", "start_at", "time_to_live", "end_at", "window",
    "calls_per_second", "max_channels", "paused_at", "pauses", "canceled_at",
]  # fmt: skip
_after = (
    sa.bindparam("after_project", type_=campaign.c.project_id.type),
    sa.bindparam("after_campaign", type_=campaign.c.id.type),
)


def _select_running(first_due: sa.Label[float | None]) -> Statement:
    return Statement(
        sa.select(*_COLUMNS, first_due)
        .where(
            campaign.c.dialer_id == sa.bindparam("dialer_id"),
            may_run,
            sa.tuple_(campaign.c.project_id, campaign.c.id) > sa.tuple_(*_after),
        )
        .order_by(campaign.c.project_id, campaign.c.id)
        .limit(sa.bindparam("most"))
    )


_RUNNING: Final = _select_running(_first_due())
_RUNNING_OF_GROUP: Final = _select_running(_first_due(_may_take))
_ENDED: Final = Statement(
    sa.select(campaign.c.id)
    .where(
        campaign.c.dialer_id == sa.bindparam("dialer_id"),
        has_end,
        campaign.c.end_at <= sa.bindparam("date"),
    )
    .order_by(campaign.c.end_at)
    .limit(sa.bindparam("most"))
)
_CANCELED: Final = Statement(
    sa.select(campaign.c.id)
    .where(
        campaign.c.dialer_id == sa.bindparam("dialer_id"),
        is_unfinished,
        campaign.c.canceled_at.is_not(None),
    )
    .limit(sa.bindparam("most"))
)
_WINDOWS: Final = Statement(sa.select(project.c.id, project.c.window).where(has_window))
_LEFT: Final = Statement(
    sa.select(call.c.id)
    .where(call.c.campaign_id == sa.bindparam("campaign_id"), is_due_in_campaign)
    .order_by(call.c.campaign_id, call.c.due_at, call.c.id)
    .limit(sa.bindparam("most"))
    .with_for_update(skip_locked=True)
)


@dataclass(slots=True)
class Page:
    """Where reading of a dialer's campaigns goes on, if it has more than `MOST`."""

    after: tuple[str, str] = ("", "")


@dataclass
class Schedules:
    """The schedules in force at one moment, for the calls of one dialer."""

    now: float
    """By the clock of stored times."""
    ahead: float
    """Seconds by which the system clock, which windows follow, is ahead of it."""
    windows: Mapping[str, CallingWindow]
    """The calling window of each project that has one."""
    campaigns: Mapping[str, CampaignRow]
    """Running campaigns by id."""
    _cache: dict[tuple[str, tuple[str, ...]], Schedule] = field(default_factory=dict)

    def closed_projects(self) -> dict[str, float]:
        """The projects whose window is closed for all callees, and when each opens."""
        closed: dict[str, float] = {}
        for project_id, window in self.windows.items():
            if not window.is_local and not window.is_open(self.now + self.ahead):
                # A window without a known opening time is checked again every day.
                opening = window.opens_at(self.now + self.ahead)
                closed[project_id] = self.now + _DAY if opening is None else opening - self.ahead
        return closed

    def has_turn(self, row: CampaignRow) -> bool:
        """Whether calls of the campaign may begin now."""
        return row.canceled_at is None and self.of_campaign(row).is_open(self.now)

    def of_campaign(self, row: CampaignRow) -> Schedule:
        """The schedule of a campaign, with the window of its project."""
        key = (row.id, ())
        if key not in self._cache:
            self._cache[key] = schedule_of(row, self.windows.get(row.project_id), self.ahead)
        return self._cache[key]

    def opens_at(self, row: DueCall) -> float | None:
        """When the call may be dialled if its callee's clock does not allow it now, else None.

        Infinite if no hour is allowed in all time zones in which the callee may be.
        """
        if row.lane == Lane.OTP:
            return None
        schedule = self._of_call(row)
        if schedule is None or not schedule.is_local:
            return None
        opening = self._local(row, schedule).opens_at(self.now)
        if opening is None:
            return math.inf
        return opening if opening > self.now else None

    def expires_at(self, row: DueCall) -> float:
        """The time from which the call is not dialled any more."""
        found = self.campaigns.get(row.campaign_id) if row.campaign_id is not None else None
        if found is None:
            return row.expires_at
        schedule = self.of_campaign(found)
        if not schedule.windows and not schedule.pauses:
            expiry = schedule.start_at + schedule.time_to_live
            return expiry if schedule.end_at is None else min(expiry, schedule.end_at)
        return self._local(row, schedule).expires_at()

    def is_over(self, row: CampaignRow) -> bool:
        """Whether no further call of the campaign may begin, whatever its callee's time zone."""
        schedule = self.of_campaign(row)
        if schedule.end_at is not None and self.now >= schedule.end_at:
            return True
        # Pauses and windows can only extend it.
        if self.now < schedule.start_at + schedule.time_to_live or schedule.is_local:
            return False
        return self.now >= schedule.expires_at()

    def _of_call(self, row: DueCall) -> Schedule | None:
        if row.campaign_id is not None:
            found = self.campaigns.get(row.campaign_id)
            return None if found is None else self.of_campaign(found)
        window = self.windows.get(row.project_id)
        return None if window is None else Schedule(0.0, 0.0, windows=(window,), ahead=self.ahead)

    def _local(self, row: DueCall, schedule: Schedule) -> Schedule:
        if not schedule.is_local:
            return schedule
        zones = zones_of(row.e164, row.time_zone)
        key = (row.campaign_id or row.project_id, tuple(zone.key for zone in zones))
        if key not in self._cache:
            self._cache[key] = schedule.in_zones(zones)
        return self._cache[key]


def schedule_of(row: CampaignRow, of_project: CallingWindow | None, ahead: float) -> Schedule:
    """The schedule of a campaign, by the clock of stored times."""
    windows: tuple[CallingWindow, ...] = () if of_project is None else (of_project,)
    if row.window is not None:
        windows += (CallingWindow.parse(row.window),)
    return Schedule(
        start_at=row.requested_at if row.start_at is None else row.start_at - ahead,
        time_to_live=row.time_to_live,
        end_at=None if row.end_at is None else row.end_at - ahead,
        windows=windows,
        pauses=row.pauses,
        paused_at=row.paused_at,
        ahead=ahead,
    )


def read(
    conn: Connection,
    dialer_id: str,
    now: float,
    ahead: float,
    page: Page | None = None,
    turns: Sequence[GroupTurn] = (),
) -> Schedules:
    """The schedules of the running campaigns of a dialer and its groups, and of all projects.

    Of more than `MOST` campaigns each reading with the same `page` goes on behind the one before,
    whether or not calls of these could begin.
    """
    windows = {row.id: CallingWindow.parse(row.window) for row in _WINDOWS.rows(conn, {})}
    after = ("", "") if page is None else page.after
    rows = _running(conn, dialer_id, after, turns)
    is_full = len(rows) >= MOST
    if page is not None:
        page.after = (rows[-1].project_id, rows[-1].id) if is_full else ("", "")
    if after != ("", "") and not is_full:
        found = {row.id for row in rows}
        first = _running(conn, dialer_id, ("", ""), turns)
        rows += [row for row in first if row.id not in found][: MOST - len(rows)]
    return Schedules(now, ahead, windows, {row.id: row for row in rows})


def _running(
    conn: Connection, dialer_id: str, after: tuple[str, str], turns: Sequence[GroupTurn]
) -> list[CampaignRow]:
    after_project, after_campaign = after
    wanted = {"dialer_id": dialer_id, "after_project": after_project,
              "after_campaign": after_campaign, "most": MOST}  # fmt: skip
    rows: list[CampaignRow] = _RUNNING.rows(conn, wanted)
    for turn in turns:
        takes = {**turn.parameters(), "takes_paced": turn.takes_paced}
        rows += _RUNNING_OF_GROUP.rows(conn, {**wanted, **takes, "dialer_id": turn.queue})
    if turns:
        rows = sorted(rows, key=lambda row: (row.project_id, row.id))[:MOST]
    return rows


def pick(
    conn: Connection,
    schedules: Schedules,
    room: int,
    after_project: str,
    after_campaigns: Mapping[str, str],
    closed: Collection[str],
    budgets: CampaignBudgets,
    least: int = 0,
    turns: Sequence[GroupTurn] = (),
) -> list[DueCall]:
    """Up to `room` due calls of the campaigns that have a turn.

    Projects share the room, and the campaigns of each share its part.

    Args:
        after_project: the turn begins with the project that follows this one.
        after_campaigns: the same within each project.
        closed: projects that have no turn.
        budgets: limit the calls of each campaign.
        least: calls to look at of a campaign that has a budget, even if they are more.
        turns: those of the dialer in its groups.
    """
    queues: dict[_CampaignQueue, dict[str, list[str]]] = {}
    of_groups = {turn.queue: turn for turn in turns}
    most: dict[str, int] = {}
    for row in schedules.campaigns.values():
        is_due = row.first_due is not None and row.first_due <= schedules.now
        if not is_due or row.project_id in closed or not schedules.has_turn(row):
            continue
        left = budgets.left(row)
        if left > 0:
            most[row.id] = max(left, least)
            turn = of_groups.get(row.dialer_id)
            queue = (turn.queue, is_paced(row)) if turn else None
            queues.setdefault(queue, {}).setdefault(row.project_id, []).append(row.id)
    picked: list[DueCall] = []
    for queue, by_project in queues.items():
        keys = [
            _following(by_project[project_id], after_campaigns.get(project_id, ""))
            for project_id in _following(by_project, after_project)
        ]
        if queue is None:
            picked += CAMPAIGN_CALLS.share_out(conn, {}, room, schedules.now, keys, most)
        else:
            parameters = of_groups[queue[0]].parameters(is_paced=queue[1])
            picked += GROUP_CAMPAIGN_CALLS.share_out(
                conn, parameters, room, schedules.now, keys, most
            )
    return picked


def is_paced(row: CampaignRow) -> bool:
    """Whether the campaign has limits of its own."""
    return row.calls_per_second is not None or row.max_channels is not None


_CampaignQueue = tuple[str, bool] | None
"""A group, and whether campaigns are paced; None: the dialer's own."""


def _following(keys: Iterable[str], after: str) -> list[str]:
    """The keys in order, beginning with those that follow `after`."""
    return sorted(keys, key=lambda key: (key <= after, key))


def next_due(schedules: Schedules) -> float | None:
    """When the first call of a campaign that has a turn is due; None: none is."""
    due = (
        row.first_due
        for row in schedules.campaigns.values()
        if row.first_due is not None and schedules.has_turn(row)
    )
    return min(due, default=None)


def expire(conn: Connection, dialer_id: str, schedules: Schedules, most: int) -> int:
    """End up to `most` waiting calls of campaigns whose time is over; returns how many.

    Also those of campaigns that were canceled, where the request was cut off before it ended them.
    """
    wanted = {"dialer_id": dialer_id, "date": schedules.now + schedules.ahead, "most": MOST}
    over = {row.id for row in _ENDED.rows(conn, wanted)}
    canceled = {row.id for row in _CANCELED.rows(conn, wanted)}
    over |= {row.id for row in schedules.campaigns.values() if schedules.is_over(row)}
    ended = 0
    for campaign_id in sorted(over | canceled):
        status = CallStatus.CANCELED if campaign_id in canceled else CallStatus.EXPIRED
        left = _LEFT.rows(conn, {"campaign_id": campaign_id, "most": most - ended})
        ends = [CallEnd(row.id, status) for row in left]
        end_calls(conn, ends, schedules.now)
        ended += len(ends)
        if ended >= most:
            break
    return ended
