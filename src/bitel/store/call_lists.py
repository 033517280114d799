"""Lists of a project's calls and campaigns, the newest first, with filters.

A page is read along the index that fits the filters best, whose last column is the id: ids sort by
time. Filters that no index has are checked on the rows of that index, at most `MOST_READ` of them
for one page. So a page may be short, or empty, although older entries follow: its cursor says so.
With several statuses the index of statuses is read once for each of them, and the results merged.

The planner must choose that index, whatever the statistics say. So the other filters are
expressions without an index. On PostgreSQL the condition on the index is a comparison of rows, only
that index gives their order, and sorting is discouraged: with simple conditions it reads all calls
of a project in their order to find the few of a status.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from heapq import merge
from itertools import islice
from typing import Any, Final, Generic, NamedTuple, TypeVar

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Row,
    Select,
    and_,
    bindparam,
    func,
    literal_column,
    not_,
    or_,
    select,
    tuple_,
)

from bitel.domain.calls import Call, CallStatus
from bitel.domain.campaign_json import CampaignPhase, CampaignState
from bitel.store import calls, campaigns
from bitel.store.schema import (
    call,
    campaign,
    has_reference,
    in_campaign,
    incomplete_batch,
    is_alone,
)
from bitel.store.sql_batch import in_chunks

MOST_READ: Final = 10_000
"""Rows that are checked for one page, of each status that is asked for."""

MOST_CAMPAIGNS: Final = 5000
"""Campaigns that are searched for one page of the calls to a number."""

_MILLISECOND: Final = 12
"""Characters of an id that are its time."""

FIRST_ID: Final = ""
"""Sorts before all ids."""
AFTER_LAST_ID: Final = "g"
"""Sorts after all ids."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A page of a list, the newest entry first."""

    entries: Sequence[T]
    next_before: str | None
    """Entries with ids before this one may follow; None: there are no more."""


@dataclass(frozen=True, slots=True)
class Span:
    """The ids of a page: from `first`, inclusive, to `before`, exclusive."""

    first: str = FIRST_ID
    before: str = AFTER_LAST_ID


@dataclass(frozen=True, slots=True)
class CallFilter:
    """Which calls of a project are listed; None: all."""

    statuses: Collection[CallStatus] | None = None
    e164: str | None = None
    reference: str | None = None
    campaign_id: str | None = None


class ListedCall(NamedTuple):
    """A call, and the reference that its client gave it."""

    call: Call
    reference: str | None


class _Key(NamedTuple):
    """The beginning of an index: equal values of its columns. Its next and last column is the id.

    `is_indexed` repeats the condition of a partial index.
    """

    columns: tuple[Column[Any], ...]
    values: tuple[Any, ...]
    is_indexed: ColumnElement[bool] | None = None


class _Scan(NamedTuple):
    """What one walk along an index has found, the newest first."""

    rows: Sequence[Row[*tuple[Any, ...]]]
    checked_to: str | None
    """The oldest id that was checked, if the walk ended there; None: it did not."""


def find_calls(
    conn: Connection, project_id: str, wanted: CallFilter, span: Span, limit: int
) -> Page[ListedCall]:
    """Up to `limit` calls of the project with ids in `span`."""
    with _without_sorting(conn):
        return _find_calls(conn, project_id, wanted, span, limit)


def _find_calls(
    conn: Connection, project_id: str, wanted: CallFilter, span: Span, limit: int
) -> Page[ListedCall]:
    query = select(*calls.CALL_COLUMNS, call.c.reference).where(_is_placed)
    if wanted.e164 is not None:
        scans = _scan_number(conn, query, project_id, wanted, span, limit)
        return _merge(scans, limit, _listed)
    keys, others, within = _choose_index(conn, project_id, wanted, span)
    if len(keys) == 1:
        scans = [_scan(conn, query, call.c.id, key, others, within, limit) for key in keys]
        return _merge(scans, limit, _listed)
    # First only the ids, since most of the calls are not on this page.
    ids = select(call.c.id).where(_is_placed)
    scans = [_scan(conn, ids, call.c.id, key, others, within, limit) for key in keys]
    page = _merge(scans, limit, lambda row: str(row.id))
    of_page = query.where(call.c.id.in_(bindparam("ids", expanding=True)))
    found = {row.id: row for some in in_chunks(page.entries) for row in conn.execute(of_page, some)}
    return Page([_listed(found[id_]) for id_ in page.entries], page.next_before)


def _listed(row: Sequence[Any]) -> ListedCall:
    return ListedCall(calls.from_row(row[:-1]), row[-1])


def _choose_index(
    conn: Connection, project_id: str, wanted: CallFilter, span: Span
) -> tuple[list[_Key], list[ColumnElement[bool]], Span]:
    """The parts of an index to read, the filters that it does not have, and the ids to read."""
    if wanted.statuses is not None and len(set(wanted.statuses)) == len(CallStatus):
        wanted = replace(wanted, statuses=None)
    others, project = _Others(wanted), call.c.project_id
    if wanted.reference is not None:
        key = _Key((project, call.c.reference), (project_id, wanted.reference), has_reference)
        return [key], others.but("reference"), span
    if wanted.statuses is not None:
        keys = [_Key((project, call.c.status), (project_id, int(one))) for one in wanted.statuses]
        if wanted.campaign_id is not None:
            # The calls of a campaign are placed at once, so hardly any other has such an id.
            span = _narrowed(conn, wanted.campaign_id, span)
        return keys, others.but("status"), span
    if wanted.campaign_id is not None:
        key = _Key((call.c.campaign_id,), (wanted.campaign_id,), in_campaign)
        return [key], [_unindexed(project) == project_id], span
    return [_Key((project,), (project_id,))], [], span


def _scan_number(
    conn: Connection,
    query: Select[Any],
    project_id: str,
    wanted: CallFilter,
    span: Span,
    limit: int,
) -> list[_Scan]:
    """Read the calls to one number: those without a campaign, and those in each campaign."""
    others = _Others(wanted).but()
    key = _Key((call.c.project_id, call.c.e164), (project_id, wanted.e164), is_alone)
    alone = _scan(conn, query, call.c.id, key, others, span, limit)
    ids = (
        select(campaign.c.id)
        .where(
            campaign.c.project_id == project_id,
            # Calls of the same millisecond may sort before their campaign.
            campaign.c.id < span.before[:_MILLISECOND] + AFTER_LAST_ID,
        )
        .order_by(campaign.c.id.desc())
        .limit(MOST_CAMPAIGNS)
    )
    newest: Sequence[str] = conn.execute(ids).scalars().all()
    rows = [
        row
        for some in in_chunks(newest)
        for row in conn.execute(_to_number(query, wanted.e164, others, span, limit), some)
    ]
    rows.sort(key=lambda row: str(row.id), reverse=True)
    checked_to = None
    if len(newest) == MOST_CAMPAIGNS and len(rows) < limit:
        # The calls of a campaign are placed in the millisecond of its id, or later.
        checked_to = newest[-1][:_MILLISECOND].ljust(len(newest[-1]), "0")
    return [alone, _Scan(rows[:limit], checked_to)]


def _to_number(
    query: Select[Any],
    e164: str | None,
    others: Sequence[ColumnElement[bool]],
    span: Span,
    limit: int,
) -> Select[Any]:
    """Selects the newest calls to a number in the campaigns `ids`."""
    return (
        query.where(
            call.c.campaign_id.in_(bindparam("ids", expanding=True)),
            in_campaign,
            call.c.e164 == e164,
            _unindexed(call.c.id) >= span.first,
            _unindexed(call.c.id) < span.before,
            *others,
        )
        .order_by(_unindexed(call.c.id).desc())
        .limit(limit)
    )


class _Others:
    """The filters of calls as conditions that no index has."""

    def __init__(self, wanted: CallFilter) -> None:
        self._conditions: dict[str, ColumnElement[bool]] = {}
        if wanted.reference is not None:
            self._conditions["reference"] = _unindexed(call.c.reference) == wanted.reference
        if wanted.campaign_id is not None:
            self._conditions["campaign"] = _unindexed(call.c.campaign_id) == wanted.campaign_id
        if wanted.statuses is not None:
            statuses = [int(each) for each in wanted.statuses]
            self._conditions["status"] = (call.c.status + literal_column("0")).in_(statuses)

    def but(self, *names: str) -> list[ColumnElement[bool]]:
        """All of them but those with these names."""
        return [each for name, each in self._conditions.items() if name not in names]


def _unindexed(column: Column[Any]) -> ColumnElement[Any]:
    return func.coalesce(column, literal_column("''"), type_=column.type)


# Not as a join, which PostgreSQL would plan with a sort.
_is_placed = _unindexed(call.c.campaign_id).not_in(select(incomplete_batch.c.campaign_id))
"""The call is not of a batch that is still being written."""


def _narrowed(conn: Connection, campaign_id: str, span: Span) -> Span:
    """The part of `span` in which calls of the campaign are."""
    theirs = (call.c.campaign_id == campaign_id, in_campaign)
    # Each by itself: of both together SQLite would read the whole campaign.
    ends = (select(end(call.c.id)).where(*theirs) for end in (func.min, func.max))
    first, last = (conn.execute(end).scalar_one() for end in ends)
    if first is None:
        return Span(AFTER_LAST_ID, FIRST_ID)
    return Span(max(first, span.first), min(last + AFTER_LAST_ID, span.before))


def find_campaigns(
    conn: Connection,
    project_id: str,
    phases: Collection[CampaignPhase] | None,
    date: float,
    span: Span,
    limit: int,
) -> Page[CampaignState]:
    """Up to `limit` campaigns of the project with ids in `span`, in one of these phases (None: any)
    at `date`, by the system clock."""
    key = _Key((campaign.c.project_id,), (project_id,))
    others = [] if phases is None else [or_(*(_is_in(each, date) for each in phases))]
    query = select(*campaigns.STATE_COLUMNS)
    with _without_sorting(conn):
        scan = _scan(conn, query, campaign.c.id, key, others, span, limit)
    states = dict(
        zip([row.id for row in scan.rows], campaigns.states(conn, scan.rows), strict=True)
    )
    return _merge([scan], limit, lambda row: states[row.id])


def _is_in(phase: CampaignPhase, date: float) -> ColumnElement[bool]:
    """As `CampaignState.phase` says."""
    is_canceled = campaign.c.canceled_at.is_not(None)
    is_finished = campaign.c.finished_at.is_not(None)
    is_paused = campaign.c.paused_at.is_not(None)
    is_early = func.coalesce(campaign.c.start_at, literal_column("0")) > date
    match phase:
        case CampaignPhase.CANCELED:
            return is_canceled
        case CampaignPhase.FINISHED:
            return and_(not_(is_canceled), is_finished)
        case CampaignPhase.PAUSED:
            return and_(not_(is_canceled), not_(is_finished), is_paused)
        case CampaignPhase.SCHEDULED:
            return and_(not_(is_canceled), not_(is_finished), not_(is_paused), is_early)
        case CampaignPhase.RUNNING:
            return and_(not_(is_canceled), not_(is_finished), not_(is_paused), not_(is_early))


def _scan(
    conn: Connection,
    query: Select[Any],
    id_: Column[str],
    key: _Key,
    others: Sequence[ColumnElement[bool]],
    span: Span,
    limit: int,
) -> _Scan:
    """Read up to `limit` rows with ids in `span` along the index of `key`, the newest first."""
    if not others:
        rows = conn.execute(_along(conn, query, id_, key, span).limit(limit)).all()
        return _Scan(rows, None)
    ids = _along(conn, select(id_), id_, key, span).limit(1).offset(MOST_READ - 1)
    checked_to = conn.execute(ids).scalar_one_or_none()
    within = span if checked_to is None else Span(checked_to, span.before)
    rows = conn.execute(_along(conn, query, id_, key, within).where(*others).limit(limit)).all()
    return _Scan(rows, checked_to if len(rows) < limit else None)


def _along(
    conn: Connection, query: Select[Any], id_: Column[str], key: _Key, span: Span
) -> Select[Any]:
    columns = (*key.columns, id_)
    if conn.dialect.name == "postgresql":
        row = tuple_(*columns)
        query = query.where(
            row >= tuple_(*key.values, span.first), row < tuple_(*key.values, span.before)
        ).order_by(*(each.desc() for each in columns))
    else:
        equal = (column == value for column, value in zip(key.columns, key.values, strict=True))
        query = query.where(*equal, id_ >= span.first, id_ < span.before).order_by(id_.desc())
    return query if key.is_indexed is None else query.where(key.is_indexed)


_SORTS: Final = select(
    func.set_config("enable_sort", bindparam("sorts"), literal_column("true")),
    func.set_config("enable_incremental_sort", bindparam("sorts"), literal_column("true")),
)


@contextmanager
def _without_sorting(conn: Connection) -> Iterator[None]:
    """Have PostgreSQL sort nothing in the block's queries, if it can."""
    if conn.dialect.name != "postgresql":
        yield
        return
    conn.execute(_SORTS, {"sorts": "off"})
    yield  # after an error the transaction is rolled back, which undoes the setting too
    conn.execute(_SORTS, {"sorts": "on"})


def _merge(
    scans: Sequence[_Scan], limit: int, entry: Callable[[Row[*tuple[Any, ...]]], T]
) -> Page[T]:
    """The page of what several scans have found."""
    checked_to = max((one.checked_to for one in scans if one.checked_to is not None), default=None)
    newest_first = merge(*(one.rows for one in scans), key=lambda row: str(row.id), reverse=True)
    rows = [
        row
        for row in islice(newest_first, limit)
        # Before that id another scan may have missed some.
        if checked_to is None or row.id >= checked_to
    ]
    if len(rows) == limit:
        return Page([entry(row) for row in rows], rows[-1].id)
    return Page([entry(row) for row in rows], checked_to)
