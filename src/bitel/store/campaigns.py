"""Campaigns: the calls of one request, queried and canceled together."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Final

from sqlalchemy import Connection, bindparam, exists, func, insert, select, update

from bitel.domain.calls import Call, CallStatus
from bitel.errors import NotFoundError
from bitel.store import calls
from bitel.store.calls import Cdr
from bitel.store.schema import call, campaign, is_due, is_waiting
from bitel.store.sql_batch import matches

CHUNK: Final = 2000
"""Calls that are canceled in one transaction; limits how long others wait."""


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
    canceled_at: float | None = None


@dataclass(frozen=True, slots=True)
class CampaignState:
    """The current state of a campaign."""

    id: str
    total: int
    by_status: dict[CallStatus, int]
    """The number of calls by status, without zeros."""
    requested_at: float
    finished_at: float
    """When its last call reached its final status; 0 until then."""
    price: Decimal
    """The total price of its calls: zero or positive."""
    canceled_at: float | None = None


def add(conn: Connection, new: Campaign) -> None:
    """Store a campaign; its calls are placed in the same transaction."""
    conn.execute(insert(campaign).values(asdict(new)))


_FIND = select(campaign).where(*matches(campaign.c.id, campaign.c.project_id))
_in_campaign = call.c.campaign_id == bindparam("campaign_id")
# One pass over the index; with GROUP BY status the database would sort it first.
_STATE = select(
    *(
        func.count().filter(call.c.status == int(status)).label(status.name)
        for status in CallStatus
    ),
    func.max(call.c.finished_at).label("finished_at"),
    func.sum(call.c.price, type_=call.c.price.type).label("price"),
).where(_in_campaign)


def find(conn: Connection, project_id: str, campaign_id: str) -> CampaignState | None:
    """The state of the project's campaign of that id, if there is one."""
    wanted = {"id": campaign_id, "project_id": project_id}
    row = conn.execute(_FIND, wanted).one_or_none()
    if row is None:
        return None
    state = conn.execute(_STATE, {"campaign_id": campaign_id}).one()._mapping
    by_status = {status: state[status.name] for status in CallStatus if state[status.name]}
    over = CallStatus.WAITING not in by_status
    return CampaignState(
        id=row.id,
        total=row.total,
        by_status=by_status,
        requested_at=row.requested_at,
        finished_at=state["finished_at"] or 0.0 if over else 0.0,
        price=state["price"] or Decimal(0),
        canceled_at=row.canceled_at,
    )


_NEWEST = (
    select(campaign.c.id, campaign.c.project_id)
    .order_by(campaign.c.id.desc())
    .limit(bindparam("most"))
)
_NEWEST_OF_PROJECT = _NEWEST.where(*matches(campaign.c.project_id))


def newest(conn: Connection, project_id: str | None, limit: int) -> list[tuple[str, CampaignState]]:
    """The `limit` newest campaigns, of one project or (None) of all, with their projects' ids."""
    wanted = {"project_id": project_id, "most": limit}
    rows = conn.execute(_NEWEST if project_id is None else _NEWEST_OF_PROJECT, wanted).all()
    states = [(row.project_id, find(conn, row.project_id, row.id)) for row in rows]
    return [(project, state) for project, state in states if state is not None]


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


_WAITING = (
    select(call.c.id, call.c.due_at)
    .where(_in_campaign, is_waiting)
    .order_by(call.c.id)
    .with_for_update(key_share=True)
)
_DUE = _WAITING.where(is_due).limit(bindparam("most"))


def cancel(
    conn: Connection, project_id: str, campaign_id: str, now: float, most: int = CHUNK
) -> bool:
    """Cancel up to `most` of the campaign's calls; False: there are more, so call it again.

    Waiting calls are final at once; those that ring or play, when their dialer has ended them.
    Raises NotFoundError for an unknown campaign.
    """
    canceled = (
        update(campaign)
        .where(campaign.c.id == campaign_id, campaign.c.project_id == project_id)
        .values(canceled_at=func.coalesce(campaign.c.canceled_at, now))
    )
    if conn.execute(canceled).rowcount == 0:
        raise NotFoundError("this project has no campaign of that id")
    due = conn.execute(_DUE, {"campaign_id": campaign_id, "most": most}).all()
    calls.cancel_calls(conn, due, now)
    if len(due) == most:
        return False
    # The rest is being dialled, or became due again while we waited for its lock.
    calls.cancel_calls(conn, conn.execute(_WAITING, {"campaign_id": campaign_id}).all(), now)
    return True
