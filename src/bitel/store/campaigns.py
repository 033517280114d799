"""Campaigns: the calls of one request, queried, paused, paced and canceled together.

The counts of a campaign are on its row, written in the transaction that ends a call, so that its
state is read without reading its calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, TypedDict, Unpack

from sqlalchemy import Connection, bindparam, exists, func, insert, select, update

from bitel.domain.calls import Call, CallStatus
from bitel.domain.campaign_json import CampaignState
from bitel.errors import ConflictError, NotFoundError
from bitel.store import calls
from bitel.store.calls import Cdr
from bitel.store.schema import call, campaign, campaign_key, is_due_in_campaign, is_waiting
from bitel.store.sql_batch import in_chunks, matches

CHUNK: Final = 2000
"""Calls that are canceled in one transaction; limits how long others wait."""

MOST_PAUSES: Final = 1000
"""Pauses of one campaign."""

DEFAULT_TIME_TO_LIVE: Final = 14_400


@dataclass(frozen=True, slots=True)
class Campaign:
    """A campaign as it was requested. Times are Unix seconds."""

    id: str
    project_id: str
    dialer_id: str
    recording_id: str | None
    requested_at: float
    total: int
    """The number of its calls."""
    name: str | None = None
    reference: str | None = None
    start_at: float | None = None
    """No attempt starts before, by the system clock; None: at once."""
    time_to_live: int = DEFAULT_TIME_TO_LIVE
    """Seconds from the start, or the request, in which attempts may start. They stop while it is
    paused or a calling window is closed."""
    end_at: float | None = None
    """No attempt starts then or later, by the system clock."""
    window: str | None = None
    """Its calling window, besides that of the project, as `CallingWindow.parse` reads it."""
    calls_per_second: float | None = None
    max_channels: int | None = None
    webhook_id: str | None = None
    """Where events go; None: as the project says."""
    template: str | None = None
    """The text of its calls, with variables; None: all of them play the same."""
    language: str | None = None


class CampaignChanges(TypedDict, total=False):
    """The fields that `change` accepts, as in `Campaign`; None removes a limit or a name."""

    name: str | None
    end_at: float | None
    calls_per_second: float | None
    max_channels: int | None


def add(conn: Connection, new: Campaign) -> None:
    """Store a campaign; its calls are placed in the same transaction."""
    conn.execute(insert(campaign).values({**asdict(new), "waiting": new.total}))


_is_it = matches(campaign.c.id, campaign.c.project_id)
_STATUS_COLUMNS: Final = {status: status.name.lower() for status in CallStatus}
STATE_COLUMNS: Final = tuple(
    campaign.c[
        "id", "project_id", "dialer_id", "total", "requested_at", "finished_at", "price",
        "canceled_at", "name", "reference", "start_at", "end_at", "window", "calls_per_second",
        "max_channels", "paused_at", "answered", "humans", "machines", *_STATUS_COLUMNS.values(),
    ]
)  # fmt: skip
"""The columns that `states` needs."""
_FIND = select(*STATE_COLUMNS).where(*_is_it)
_KEYS = select(campaign_key).where(campaign_key.c.campaign_id.in_(bindparam("ids", expanding=True)))


def find(conn: Connection, project_id: str, campaign_id: str) -> CampaignState | None:
    """The state of the project's campaign of that id, if there is one."""
    row = conn.execute(_FIND, {"id": campaign_id, "project_id": project_id}).one_or_none()
    return None if row is None else states(conn, [row])[0]


def states(conn: Connection, rows: Iterable[Any]) -> list[CampaignState]:
    """The states of campaigns, from rows with the columns `STATE_COLUMNS`."""
    found = list(rows)
    keys: dict[str, dict[str, int]] = {row.id: {} for row in found}
    for ids in in_chunks(keys):
        for pressed in conn.execute(_KEYS, ids):
            keys[pressed.campaign_id][pressed.key] = pressed.calls
    return [_state(row._mapping, keys[row.id]) for row in found]


def _state(row: Mapping[str, Any], keys: Mapping[str, int]) -> CampaignState:
    columns = {*_STATUS_COLUMNS.values(), "project_id", "dialer_id"}
    fields = {name: value for name, value in row.items() if name not in columns}
    fields["finished_at"] = row["finished_at"] or 0.0
    counts = {status: row[name] for status, name in _STATUS_COLUMNS.items() if row[name]}
    return CampaignState(**fields, by_status=counts, keys=keys)


_NEWEST = select(*STATE_COLUMNS).order_by(campaign.c.id.desc()).limit(bindparam("most"))
_NEWEST_OF_PROJECT = _NEWEST.where(*matches(campaign.c.project_id))


def newest(conn: Connection, project_id: str | None, limit: int) -> list[tuple[str, CampaignState]]:
    """The `limit` newest campaigns, of one project or (None) of all, with their projects' ids."""
    wanted = {"project_id": project_id, "most": limit}
    rows = conn.execute(_NEWEST if project_id is None else _NEWEST_OF_PROJECT, wanted).all()
    return list(zip([row.project_id for row in rows], states(conn, rows), strict=True))


def pause(
    conn: Connection, project_id: str, campaign_id: str, now: float
) -> tuple[str, CampaignState]:
    """Start no further attempt of the campaign until it is resumed; attempts under way go on.

    Returns its dialer and its state. One that is paused, canceled or finished stays as it is.
    Raises NotFoundError, and ConflictError for a campaign that was paused too often.
    """
    locked = conn.execute(_LOCK, {"id": campaign_id, "project_id": project_id}).one_or_none()
    if locked is not None and locked.paused_at is None and _is_active(locked):
        if len(locked.pauses) >= MOST_PAUSES:
            raise ConflictError(f"a campaign can be paused {MOST_PAUSES} times, as this one was")
        conn.execute(update(campaign).where(campaign.c.id == campaign_id).values(paused_at=now))
    return _found(conn, project_id, campaign_id)


def _is_active(row: Any) -> bool:
    return row.finished_at is None and row.canceled_at is None


_LOCK = (
    select(*campaign.c["paused_at", "pauses", "finished_at", "canceled_at"])
    .where(*_is_it)
    .with_for_update(key_share=True)
)


def resume(
    conn: Connection, project_id: str, campaign_id: str, now: float
) -> tuple[str, CampaignState]:
    """End the pause of a campaign; its time to live goes on from there.

    Returns its dialer and its state. One that is not paused stays as it is. Raises NotFoundError.
    """
    locked = conn.execute(_LOCK, {"id": campaign_id, "project_id": project_id}).one_or_none()
    if locked is not None and locked.paused_at is not None:
        pauses = (*locked.pauses, (locked.paused_at, max(now, locked.paused_at)))
        resumed = update(campaign).where(campaign.c.id == campaign_id)
        conn.execute(resumed.values(paused_at=None, pauses=pauses))
    return _found(conn, project_id, campaign_id)


def change(
    conn: Connection, project_id: str, campaign_id: str, **changes: Unpack[CampaignChanges]
) -> tuple[str, CampaignState]:
    """Change the given fields of a campaign; returns its dialer and its state.

    Raises NotFoundError.
    """
    if changes:
        is_it = (campaign.c.id == campaign_id) & (campaign.c.project_id == project_id)
        conn.execute(update(campaign).where(is_it).values(changes))
    return _found(conn, project_id, campaign_id)


def _found(conn: Connection, project_id: str, campaign_id: str) -> tuple[str, CampaignState]:
    row = conn.execute(_FIND, {"id": campaign_id, "project_id": project_id}).one_or_none()
    if row is None:
        raise NotFoundError("this project has no campaign of that id")
    return row.dialer_id, states(conn, [row])[0]


_in_campaign = call.c.campaign_id == bindparam("campaign_id")
# A condition on the campaign: one on the calls would make SQLite read all those of the project.
_is_theirs = exists(
    select(campaign.c.id).where(
        campaign.c.id == bindparam("campaign_id"), campaign.c.project_id == bindparam("project_id")
    )
)
_ALL = select(*calls.CALL_COLUMNS).where(_in_campaign, _is_theirs).order_by(call.c.id)
_PAGE = _ALL.where(call.c.id > bindparam("after")).limit(bindparam("most"))


def page(
    conn: Connection, project_id: str, campaign_id: str, after: str | None, limit: int
) -> list[Call]:
    """Up to `limit` calls of the campaign, by id; `after` is the last id of the page before.

    Of an unknown campaign, or another project's, there are none.
    """
    wanted = {"campaign_id": campaign_id, "project_id": project_id, "after": after or "",
              "most": limit}  # fmt: skip
    return [calls.from_row(row) for row in conn.execute(_PAGE, wanted)]


def cdrs(conn: Connection, project_id: str, campaign_id: str) -> list[Cdr] | None:
    """The detail records of the campaign's calls, by id; None for an unknown campaign."""
    if find(conn, project_id, campaign_id) is None:
        return None
    rows = conn.execute(_ALL, {"campaign_id": campaign_id, "project_id": project_id})
    return calls.cdrs(conn, [calls.from_row(row) for row in rows])


_DUE = (
    select(call.c.id, call.c.due_at)
    .where(_in_campaign, is_due_in_campaign)
    .order_by(call.c.campaign_id, call.c.due_at, call.c.id)
    .limit(bindparam("most"))
    .with_for_update(key_share=True)
)
_WAITING = (
    select(call.c.id, call.c.due_at)
    .where(_in_campaign, is_waiting)
    .order_by(call.c.id)
    .with_for_update(key_share=True)
)


def mark_canceled(conn: Connection, project_id: str, campaign_id: str, now: float) -> None:
    """Start no further attempt of the campaign; `cancel_calls` ends its calls.

    In a transaction of its own, since calls are locked before campaigns. Raises NotFoundError.
    """
    is_it = (campaign.c.id == campaign_id) & (campaign.c.project_id == project_id)
    canceled_at = func.coalesce(campaign.c.canceled_at, now)
    conn.execute(
        update(campaign)
        .where(is_it, campaign.c.finished_at.is_(None))
        .values(canceled_at=canceled_at)
    )
    _found(conn, project_id, campaign_id)


def cancel_calls(conn: Connection, campaign_id: str, now: float, most: int = CHUNK) -> bool:
    """Cancel up to `most` of the campaign's calls; False: there are more, so call it again.

    Waiting calls are final at once; those that ring or play, when their dialer has ended them.
    """
    due = conn.execute(_DUE, {"campaign_id": campaign_id, "most": most}).all()
    calls.cancel_calls(conn, due, now)
    if len(due) == most:
        return False
    # The rest is being dialled, or became due again while we waited for its lock.
    calls.cancel_calls(conn, conn.execute(_WAITING, {"campaign_id": campaign_id}).all(), now)
    return True
