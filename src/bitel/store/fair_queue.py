"""Fair queue: due rows of a table, picked round-robin by project.

The rows that one project has waiting do not slow down the others: the projects with due rows are
found by one index lookup each, and then share the free places. `FairQueue` works for any table;
`CALLS` is the queue of calls that belong to no campaign, `CAMPAIGN_CALLS` that of the others, in
which the campaigns of a project share its places.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeVar

import sqlalchemy as sa
from sqlalchemy import Connection

from bitel.domain.calls import Lane
from bitel.store.event_rows import has_webhook
from bitel.store.schema import call, do_not_call, is_alone, is_due, project
from bitel.store.sql_batch import Statement, is_among, loose_index_scan, values_parameter

CHUNK: Final = 2000
"""Most rows of one project in one query, and most calls postponed in one transaction."""

_BEGINNING: Final = (-1.0, "")
NONE_TAKEN: Final[Mapping[str, int]] = MappingProxyType({})

T = TypeVar("T")

_closed = sa.select(values_parameter("closed", project.c.id).c.id)


class DueRow(Protocol):
    """The columns that a fair queue needs."""

    id: str
    project_id: str
    due_at: float


class DueCall(DueRow, Protocol):
    """A waiting call, locked. Times in Unix seconds."""

    dialer_id: str
    """The dialer, or the group of dialers, that it is for."""
    lane: int
    e164: str
    campaign_id: str | None
    time_zone: str | None
    recording_id: str | None
    digits: str | None
    repeat_count: int | None
    language: str | None
    longest_seconds: int
    retries_left: int
    retry_interval: int
    retry_waits: str | None
    expires_at: float
    trouble: int
    uncertain: int
    attempts: int
    parts: str | None
    """Ids of what is played, with commas; empty: it is not rendered yet. None: it has none."""
    caller_id: str | None
    unwanted: bool
    """Its number is on the do-not-call list."""
    exclusive: bool
    """Its project allows one attempt at a time for each number."""
    webhook_id: str | None
    menu_id: str | None
    machine_detection: str | None
    machine_recording_id: str | None
    webhook_events: tuple[str, ...] | None
    """The types of events that its project asks for."""


Turns = Sequence[Sequence[str]]
"""The keys of a queue that share places, by project, each in the order of their turns."""


@dataclass(eq=False)
class FairQueue:
    """Picks due rows of a table, a fair share for each project that has any.

    The table has columns `id`, `project_id` and `due_at` (NULL: not waiting), and a partial index
    by the columns `within`, then `key`, `due_at` and `id`.
    """

    table: sa.Table
    columns: Sequence[sa.ColumnElement[Any]]
    """The columns that are read of a row, at least those of `DueRow`."""
    within: Sequence[sa.Column[Any]] = ()
    """Columns that divide the table into queues; each value is a parameter of the same name."""
    key: sa.Column[Any] | None = None
    """The column whose values have a share each, within that of their project; None: the project's
    own."""
    where: Callable[[sa.FromClause], Sequence[sa.ColumnElement[bool]]] = lambda _: ()
    """Maps the table to the conditions of the index, besides that of a due time."""
    joined: Sequence[sa.ColumnElement[Any]] = ()
    """The columns that are read of other tables."""
    joins: Callable[[sa.FromClause], Sequence[tuple[sa.FromClause, sa.ColumnElement[bool]]]] = (
        lambda _: ()
    )
    """Maps the row's table to the other tables and the conditions that join them."""
    may_have_turn: Callable[[sa.ColumnElement[Any]], sa.ColumnElement[bool]] = lambda _: sa.true()
    """Whether the project of an id may have a turn."""

    def __post_init__(self) -> None:
        columns = self.table.c
        self._now: sa.BindParameter[float] = sa.bindparam("now", type_=columns.due_at.type)
        self._key = columns.project_id if self.key is None else self.key
        self._is_waiting = (
            *(column == _value(column) for column in self.within),
            columns.due_at.is_not(None),
            *self.where(self.table),
        )
        types = {"key": self._key.type, "last_due": columns.due_at.type}
        self._asked = values_parameter("asked", **types, last_id=columns.id.type)
        self.turns = self.with_due(
            lambda query, project_id: query.where(
                project_id.not_in(_closed), self.may_have_turn(project_id)
            ).limit(sa.bindparam("most"))
        )
        self.due = Statement(self._due_in_sqlite(), postgresql=self._due_in_postgresql())

    def with_due(
        self, restrict: Callable[[sa.Select[Any], sa.ColumnElement[Any]], sa.Select[Any]]
    ) -> Statement:
        """Selects the projects that have due rows, as `value`; `restrict` adds to the query.

        Only for a queue whose key is the project.
        """
        queries = (self._with_due_in_sqlite(), self._with_due_in_postgresql())
        in_sqlite, in_postgresql = (restrict(q, q.selected_columns.value) for q in queries)
        return Statement(in_sqlite, postgresql=in_postgresql)

    def pick(
        self,
        conn: Connection,
        of_queue: Mapping[str, Any],
        room: int,
        now: float,
        after: str,
        closed: Iterable[str],
        most_each: int = sys.maxsize,
        taken: Mapping[str, int] = NONE_TAKEN,
    ) -> list[Any]:
        """Up to `room` due rows, locked, the longest due of each project first.

        Args:
            of_queue: values of the columns `within`.
            now: rows are due whose `due_at` is not later.
            after: the turn begins with the project that follows this one.
            closed: projects that have no turn.
            most_each: rows that a project may have, those that it has `taken` before included.
        """
        wanted = {**of_queue, "now": now}
        of_turns = {**wanted, "most": room, "closed": [(one,) for one in closed]}
        turns = [(project_id,) for project_id in self._turns(conn, of_turns, after)]
        most = {project_id: most_each for (project_id,) in turns}
        return self.share_out(conn, of_queue, room, now, turns, most, taken)

    def share_out(
        self,
        conn: Connection,
        of_queue: Mapping[str, Any],
        room: int,
        now: float,
        turns: Turns,
        most: Mapping[str, int],
        taken: Mapping[str, int] = NONE_TAKEN,
    ) -> list[Any]:
        """As `pick`, for these turns; `most` is how many rows each key may have."""
        wanted = {**of_queue, "now": now}
        key_of = attrgetter(self._key.name)
        got = {key: taken.get(key, 0) for keys in turns for key in keys}
        last = dict.fromkeys(got, _BEGINNING)
        groups = [[key for key in keys if got[key] < most[key]] for keys in turns]
        picked: list[Any] = []
        while len(picked) < room and (groups := [keys for keys in groups if keys]):
            # The unused part of a share goes to the others in the next round, beginning with those
            # that have got least.
            shares = {
                key: min(share, CHUNK, most[key] - got[key])
                for keys, of_group in _split(room - len(picked), groups)
                for key, share in _split(of_group, keys)
            }
            found: dict[str, list[Any]] = {key: [] for key in shares}
            for row in self._due(conn, wanted, shares, last):
                found[key_of(row)].append(row)
            ended = set()
            for key, share in shares.items():
                # Neither database guarantees the order.
                rows = sorted(found[key], key=_order)[:share]
                picked += rows
                got[key] += len(rows)
                if len(rows) == share and got[key] < most[key]:
                    last[key] = (rows[-1].due_at, rows[-1].id)
                else:
                    ended.add(key)
            groups = [
                sorted((key for key in keys if key not in ended), key=got.__getitem__)
                for keys in sorted(groups, key=lambda keys: sum(map(got.__getitem__, keys)))
            ]
        return picked

    def _turns(self, conn: Connection, wanted: Mapping[str, Any], after: str) -> list[str]:
        """Up to `most` projects that have due rows, in the order of their turns."""
        query, most = self.turns, wanted["most"]
        turns = [row.value for row in query.rows(conn, {**wanted, "after": ""})]
        if not after:
            return turns
        if len(turns) < most:
            later = [project_id for project_id in turns if project_id > after]
        else:
            later = [row.value for row in query.rows(conn, {**wanted, "after": after})]
        return (later + [project_id for project_id in turns if project_id <= after])[:most]

    def _due(
        self,
        conn: Connection,
        wanted: Mapping[str, Any],
        shares: Mapping[str, int],
        last: Mapping[str, tuple[float, str]],
    ) -> list[Any]:
        """Due rows of these keys that follow their last ones."""
        asked = [(key, *last[key]) for key in shares]
        wanted = {**wanted, "asked": asked, "most": max(shares.values())}
        return [row for row in self.due.rows(conn, wanted) if row.id is not None]

    def _with_due_in_sqlite(self) -> sa.Select[Any]:
        table = self.table
        waiting = loose_index_scan(table.c.project_id, *self._is_waiting)
        first_due = (
            sa.select(sa.func.min(table.c.due_at))
            .where(*self._is_waiting, table.c.project_id == waiting.c.value)
            .scalar_subquery()
        )
        return sa.select(waiting.c.value).where(
            waiting.c.value.is_not(None), first_due <= self._now
        )

    def _with_due_in_postgresql(self) -> sa.Select[Any]:
        # The lookup that finds a project also reads its first due time: only the index of the queue
        # has that order, so no plan reads all waiting rows.
        first = self._first_after(sa.bindparam("after")).subquery()
        found = sa.select(first).cte("found", recursive=True)
        following = self._first_after(found.c.value).lateral("following")
        found = found.union_all(sa.select(following).select_from(found.join(following, sa.true())))
        return sa.select(found.c.value).where(found.c.due_at <= self._now)

    def _first_after(self, project_id: sa.ColumnElement[Any]) -> sa.Select[Any]:
        columns = self.table.c
        return (
            sa.select(columns.project_id.label("value"), columns.due_at)
            .where(*self._is_waiting, columns.project_id > project_id)
            .order_by(columns.project_id, columns.due_at)
            .limit(sa.literal_column("1"))
        )

    def in_order(
        self,
        one: sa.FromClause,
        key: sa.ColumnElement[Any],
        last_due: sa.ColumnElement[Any],
        last_id: sa.ColumnElement[Any],
    ) -> sa.Select[Any]:
        """Selects the due rows of a key in `one`, in order, after the last known row.

        With equality filters for all columns of `within` and the key PostgreSQL may choose an
        index by due time, and read the waiting rows of other keys first. So only the first
        column has one, and the others are compared as a row.
        """
        first, others = self.within[:1], self.within[1:]
        columns = [*(one.c[column.name] for column in others), one.c[self._key.name], one.c.due_at]
        values = [*map(_value, others), key]
        return (
            sa.select()
            .where(
                *(one.c[column.name] == _value(column) for column in first),
                one.c.due_at.is_not(None),
                *self.where(one),
                sa.tuple_(*columns, one.c.id) > sa.tuple_(*values, last_due, last_id),
                sa.tuple_(*columns) <= sa.tuple_(*values, self._now),
            )
            .order_by(*columns, one.c.id)
        )

    def _due_in_sqlite(self) -> sa.Select[Any]:
        # SQLite has no LATERAL. The rows are found in the index alone, so that only picked rows are
        # read.
        table, asked = self.table, self._asked
        rows = (
            self.in_order(table.alias("one"), *asked.c)
            .add_columns(sa.literal_column("one.rowid"))
            .limit(sa.bindparam("most"))
            .correlate(asked)
        )
        is_next = sa.literal_column(f"{table.name}.rowid").in_(rows)
        # SQLite always begins an outer join on its left, so with the projects and not all rows.
        source = asked.outerjoin(table, is_next)
        for other, on in self.joins(table):
            source = source.outerjoin(other, on)
        return sa.select(*self.columns, *self.joined).select_from(source)

    def _due_in_postgresql(self) -> sa.Select[Any]:
        # PostgreSQL estimates that an unknown LIMIT is a tenth of all rows, and might then read and
        # sort them. With the constant it follows the index, whatever the statistics say. The rows
        # are locked one by one, as the outer LIMIT reads them.
        columns, asked = self.table.c, self._asked.c
        key = columns[self._key.name]
        first, others = self.within[:1], self.within[1:]
        row, wanted = [*others, key], [*map(_value, others), asked.key]
        if others:
            # See `in_order`: other indexes begin with the key, and none gives this order.
            of_key = (
                sa.tuple_(*row) >= sa.tuple_(*wanted),
                sa.tuple_(*row, columns.due_at) <= sa.tuple_(*wanted, self._now),
            )
        else:
            of_key = (key == asked.key, columns.due_at <= self._now)
        few = (
            sa.select(*self.columns)
            .where(
                *(column == _value(column) for column in first),
                columns.due_at.is_not(None),
                *self.where(self.table),
                *of_key,
                sa.or_(
                    columns.due_at > asked.last_due,
                    sa.and_(columns.due_at == asked.last_due, columns.id > asked.last_id),
                ),
            )
            .order_by(*row, columns.due_at, columns.id)
            .limit(sa.literal_column(str(CHUNK)))
            .with_for_update(skip_locked=True, of=self.table)
            .correlate(self._asked)
            .lateral("few")
        )
        due = sa.select(few).limit(sa.bindparam("most")).lateral("due")
        source = self._asked.join(due, sa.true())
        for other, on in self.joins(due):
            source = source.outerjoin(other, on)
        return sa.select(*due.c, *self.joined).select_from(source)


def _split(count: int, items: Sequence[T]) -> Iterator[tuple[T, int]]:
    """The shares of `count` places, as equal as possible, without those of none."""
    each, left_over = divmod(count, len(items))
    for place, item in enumerate(items if each else items[:left_over]):
        yield item, each + (place < left_over)


def _value(column: sa.Column[Any]) -> sa.BindParameter[Any]:
    return sa.bindparam(column.name, type_=column.type)


def _order(row: Any) -> tuple[float, str]:
    return row.due_at, row.id


_found = loose_index_scan(
    call.c.lane, call.c.dialer_id == sa.bindparam("dialer_id"), is_due, is_alone
)
_LANES: Final = Statement(sa.select(_found.c.value).where(_found.c.value.is_not(None)))


def with_waiting(conn: Connection, dialer_id: str, lanes: Iterable[Lane]) -> set[Lane]:
    """The lanes that have calls without a campaign waiting, due or not, of those given."""
    rows = _LANES.rows(conn, {"dialer_id": dialer_id, "after": -1})
    return {row.value for row in rows}.intersection(lanes)


_CALL_COLUMNS: Final = (
    *call.c[
        "id", "project_id", "campaign_id", "dialer_id", "lane", "e164", "time_zone",
        "recording_id", "digits",
        "repeat_count", "language", "longest_seconds", "retries_left", "retry_interval",
        "retry_waits", "expires_at", "trouble", "uncertain", "attempts", "due_at",
        "caller_id", "webhook_id", "menu_id", "machine_detection",
        "machine_recording_id",
    ],
    # As text, since most calls have none.
    sa.type_coerce(call.c.parts, sa.Text).label("parts"),
    sa.select(sa.literal_column("1"))
    .where(do_not_call.c.project_id == call.c.project_id, do_not_call.c.e164 == call.c.e164)
    .scalar_subquery()
    .is_not(None)
    .label("unwanted"),
    sa.select(project.c.one_call_per_number)
    .where(project.c.id == call.c.project_id)
    .scalar_subquery()
    .label("exclusive"),
    sa.select(project.c.webhook_events)
    .where(project.c.id == call.c.project_id, has_webhook)
    .scalar_subquery()
    .label("webhook_events"),
)  # fmt: skip
CALLS: Final = FairQueue(
    call,
    columns=_CALL_COLUMNS,
    within=(call.c.dialer_id, call.c.lane),
    where=lambda one: (one.c.campaign_id.is_(None),),
)
"""The calls without a campaign that a dialer has waiting in one lane."""

CAMPAIGN_CALLS: Final = FairQueue(
    call,
    columns=_CALL_COLUMNS,
    key=call.c.campaign_id,
    where=lambda one: (one.c.campaign_id.is_not(None),),
)
"""The waiting calls of campaigns; `campaign_schedules` says whose turn it may be."""


takes_new: Final = sa.bindparam("takes_new", type_=sa.Boolean()).is_(sa.true())


def may_take(
    one: sa.FromClause,
    new: sa.ColumnElement[bool] = takes_new,
    overdue: sa.ColumnElement[bool] | None = None,
) -> sa.ColumnElement[bool]:
    """Whether a dialer may take a call of its group: see `dialer_groups.GroupTurn.parameters`.

    `new` is the condition for calls that have no caller id yet, `overdue` for those of them that
    have waited for too long; None: by the parameter.
    """
    before = one.c.due_at <= sa.bindparam("overdue_before", type_=sa.Double())
    is_overdue = before if overdue is None else overdue
    is_new = sa.and_(one.c.caller_id.is_(None), sa.or_(new, is_overdue))
    return sa.or_(is_new, one.c.caller_id.in_(sa.select(_shown.c.caller_id)))


_shown = values_parameter("caller_ids", call.c.caller_id)
GROUP_CALLS: Final = FairQueue(
    call,
    columns=_CALL_COLUMNS,
    within=(call.c.dialer_id, call.c.lane),
    where=lambda one: (one.c.campaign_id.is_(None), may_take(one)),
)
"""As `CALLS`, of a group of dialers: the calls that one of its dialers may take."""

GROUP_CAMPAIGN_CALLS: Final = FairQueue(
    call,
    columns=_CALL_COLUMNS,
    key=call.c.campaign_id,
    where=lambda one: (one.c.campaign_id.is_not(None), may_take(one)),
)
"""As `CAMPAIGN_CALLS`, in the same way."""


def pick(
    conn: Connection,
    dialer_id: str,
    lane: Lane,
    room: int,
    now: float,
    after: str,
    closed: Iterable[str],
    group: Mapping[str, Any] | None = None,
) -> list[DueCall]:
    """Up to `room` due calls of the lane that belong to no campaign, as `FairQueue.pick`.

    Expired calls are among them: to skip them here could take very long. `group` has the parameters
    of `may_take`, if the queue is a group's.
    """
    of_queue = {"dialer_id": dialer_id, "lane": int(lane)}
    if group is None:
        return CALLS.pick(conn, of_queue, room, now, after, closed)
    return GROUP_CALLS.pick(conn, {**of_queue, **group}, room, now, after, closed)


def one_of_each(picked: Iterable[DueCall]) -> list[DueCall]:
    """The calls reordered: the first of each project, then the second of each, and so on."""
    got: Counter[str] = Counter()

    def place(row: DueCall) -> int:
        got[row.project_id] += 1
        return got[row.project_id]

    return sorted(picked, key=place)


_CLOSED_WITH_DUE: Final = CALLS.with_due(
    lambda query, project_id: query.where(project_id.in_(_closed))
)
_DUE_IDS: Final = Statement(
    CALLS.in_order(
        call, sa.bindparam("project_id"), sa.literal_column("-1"), sa.literal_column("''")
    )
    .add_columns(call.c.id)
    .limit(sa.bindparam("most"))
    .with_for_update(skip_locked=True)
)
_POSTPONE: Final = Statement(
    sa.update(call).where(is_among(call.c.id, "late"), is_due).values(due_at=sa.bindparam("opens"))
)


def postpone(
    conn: Connection, dialer_id: str, lane: Lane, now: float, closed: Mapping[str, float]
) -> int:
    """Move up to `CHUNK` due calls of closed projects to when their window opens.

    Calls that expire before that do so as usual. Returns the number of calls.
    """
    moved = 0
    of_lane = {"dialer_id": dialer_id, "lane": int(lane), "now": now}
    shut = {**of_lane, "closed": [(one,) for one in closed], "after": ""}
    for row in _CLOSED_WITH_DUE.rows(conn, shut):
        wanted = {**of_lane, "project_id": row.value, "most": CHUNK - moved}
        ids = _DUE_IDS.rows(conn, wanted)
        _POSTPONE.run(conn, {"late": ids, "opens": closed[row.value]})
        moved += len(ids)
        if moved >= CHUNK:
            break
    return moved
