"""Fair queue: due rows of a table, shared between projects, which take turns.

However many rows a project has waiting, they cost the others nothing: the projects that have due
rows are found by one index lookup each, and then share the room there is. `FairQueue` does this for
any table; below it stands the queue of calls, whose projects have calling windows.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from sqlalchemy import (
    BindParameter,
    Column,
    ColumnElement,
    Connection,
    FromClause,
    Select,
    Table,
    and_,
    bindparam,
    func,
    literal_column,
    or_,
    select,
    true,
    tuple_,
    update,
)

from bitel.domain.calling_hours import CallingWindow
from bitel.domain.calls import Lane
from bitel.store.schema import call, do_not_call, has_window, is_due, project
from bitel.store.sql_batch import Statement, loose_index_scan, values_parameter

CHUNK: Final = 2000
"""Rows of one project in one query, and calls that are postponed at once, at most."""

_DAY: Final = 86_400.0
_BEGINNING: Final = (-1.0, "")
NONE_TAKEN: Final[Mapping[str, int]] = MappingProxyType({})

_closed = select(values_parameter("closed", id=project.c.id.type).c.id)


@dataclass(eq=False)
class FairQueue:
    """Picks due rows of a table, a share for each project that has any.

    The table has columns `id`, `project_id` and `due_at` (NULL: not waiting), and a partial index
    by the columns `within`, then `project_id`, `due_at` and `id`.
    """

    table: Table
    columns: Sequence[ColumnElement[Any]]
    """What is read of a row; among them `id`, `project_id` and `due_at`."""
    within: Sequence[Column[Any]] = ()
    """Only rows with given values of these count; each value is a parameter of the same name."""
    joined: Sequence[ColumnElement[Any]] = ()
    """What is read of other tables."""
    joins: Callable[[FromClause], Sequence[tuple[FromClause, ColumnElement[bool]]]] = lambda _: ()
    """From the row's table to the other tables, and what they are joined on."""
    may_have_turn: Callable[[ColumnElement[Any]], ColumnElement[bool]] = lambda _: true()
    """Whether the project of an id may have a turn."""

    def __post_init__(self) -> None:
        self._now: BindParameter[float] = bindparam("now", type_=self.table.c.due_at.type)
        self._is_waiting = (
            *(column == _value(column) for column in self.within),
            self.table.c.due_at.is_not(None),
        )
        types = {"project_id": project.c.id.type, "last_due": self.table.c.due_at.type}
        self._asked = values_parameter("asked", **types, last_id=self.table.c.id.type)
        in_sqlite, in_postgresql = self._with_due_in_sqlite(), self._with_due_in_postgresql()
        self.with_due = {"sqlite": in_sqlite, "postgresql": in_postgresql}
        """Selects the projects that have due rows, as `value`, by kind of database."""
        self.turns = {kind: self._turns_of(each) for kind, each in self.with_due.items()}
        in_sqlite, in_postgresql = self._due_in_sqlite(), self._due_in_postgresql()
        self.due = {"sqlite": Statement(in_sqlite), "postgresql": Statement(in_postgresql)}

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
        turns = self._turns(conn, of_turns, after)
        last = dict.fromkeys(turns, _BEGINNING)
        got = {project_id: taken.get(project_id, 0) for project_id in turns}
        picked: list[Any] = []
        while turns and len(picked) < room:
            # What a project leaves of its share is shared in the next round by those that have
            # more, beginning with those that have got least.
            each, left_over = divmod(room - len(picked), len(turns))
            shares = {
                project_id: min(each + (place < left_over), CHUNK, most_each - got[project_id])
                for place, project_id in enumerate(turns if each else turns[:left_over])
            }
            found = self._due(conn, wanted, shares, last)
            for project_id, share in shares.items():
                rows = found[project_id][:share]
                picked += rows
                got[project_id] += len(rows)
                if len(rows) == share and got[project_id] < most_each:
                    last[project_id] = (rows[-1].due_at, rows[-1].id)
                else:
                    turns.remove(project_id)
            turns.sort(key=got.__getitem__)
        return picked

    def _turns(self, conn: Connection, wanted: Mapping[str, Any], after: str) -> list[str]:
        """Up to `most` projects that have due rows, in the order of their turns."""
        query, most = self.turns[conn.dialect.name], wanted["most"]
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
    ) -> dict[str, list[Any]]:
        """The rows of these projects that are due after their last, by project, in order."""
        asked = [(project_id, *last[project_id]) for project_id in shares]
        wanted = {**wanted, "asked": asked, "most": max(shares.values())}
        found: dict[str, list[Any]] = {project_id: [] for project_id in shares}
        for row in self.due[conn.dialect.name].rows(conn, wanted):
            if row.id is not None:
                found[row.project_id].append(row)
        for rows in found.values():
            rows.sort(key=_order)  # neither database promises one
        return found

    def _turns_of(self, with_due: Select[Any]) -> Statement:
        project_id = with_due.selected_columns.value
        turns = with_due.where(project_id.not_in(_closed), self.may_have_turn(project_id))
        return Statement(turns.limit(bindparam("most")))

    def _with_due_in_sqlite(self) -> Select[Any]:
        table = self.table
        waiting = loose_index_scan(table.c.project_id, *self._is_waiting)
        first_due = (
            select(func.min(table.c.due_at))
            .where(*self._is_waiting, table.c.project_id == waiting.c.value)
            .scalar_subquery()
        )
        return select(waiting.c.value).where(waiting.c.value.is_not(None), first_due <= self._now)

    def _with_due_in_postgresql(self) -> Select[Any]:
        # A project's first due time comes with the lookup that finds the project: only the index of
        # the queue has that order, so that no plan reads all that waits.
        first = self._first_after(bindparam("after")).subquery()
        found = select(first).cte("found", recursive=True)
        following = self._first_after(found.c.value).lateral("following")
        found = found.union_all(select(following).select_from(found.join(following, true())))
        return select(found.c.value).where(found.c.due_at <= self._now)

    def _first_after(self, project_id: ColumnElement[Any]) -> Select[Any]:
        columns = self.table.c
        return (
            select(columns.project_id.label("value"), columns.due_at)
            .where(*self._is_waiting, columns.project_id > project_id)
            .order_by(columns.project_id, columns.due_at)
            .limit(literal_column("1"))
        )

    def in_order(
        self,
        one: FromClause,
        project_id: ColumnElement[Any],
        last_due: ColumnElement[Any],
        last_id: ColumnElement[Any],
    ) -> Select[Any]:
        """What is due of a project in `one`, in order, after the last row that is known already.

        Equality filters for all columns of `within` and the project make PostgreSQL choose an index
        by due time: it would read all that others have waiting before this project's rows. So only
        the first column has one, and the others are compared together.
        """
        first, others = self.within[:1], self.within[1:]
        columns = [*(one.c[column.name] for column in others), one.c.project_id, one.c.due_at]
        values = [*map(_value, others), project_id]
        return (
            select()
            .where(
                *(one.c[column.name] == _value(column) for column in first),
                one.c.due_at.is_not(None),
                tuple_(*columns, one.c.id) > tuple_(*values, last_due, last_id),
                tuple_(*columns) <= tuple_(*values, self._now),
            )
            .order_by(*columns, one.c.id)
        )

    def _due_in_sqlite(self) -> Select[Any]:
        # SQLite has no LATERAL. The index alone says which rows; none is read that is not picked.
        table, asked = self.table, self._asked
        rows = (
            self.in_order(table.alias("one"), *asked.c)
            .add_columns(literal_column("one.rowid"))
            .limit(bindparam("most"))
            .correlate(asked)
        )
        is_next = literal_column(f"{table.name}.rowid").in_(rows)
        # SQLite begins an outer join on its left, always: with the projects, not with all rows.
        source = asked.outerjoin(table, is_next)
        for other, on in self.joins(table):
            source = source.outerjoin(other, on)
        return select(*self.columns, *self.joined).select_from(source)

    def _due_in_postgresql(self) -> Select[Any]:
        # PostgreSQL guesses that a LIMIT it does not know is a tenth of all, and might then read
        # and sort them. The constant tells it to follow the index, whatever the statistics say. The
        # rows are locked one by one, as the LIMIT outside asks for them.
        columns, asked = self.table.c, self._asked.c
        if self.within:
            # See `in_order`: no other index gives this order. What is compared to one value alone
            # is compared for a page of the index at once.
            of_project = (
                columns.project_id >= asked.project_id,
                tuple_(columns.project_id, columns.due_at) <= tuple_(asked.project_id, self._now),
            )
        else:
            of_project = (columns.project_id == asked.project_id, columns.due_at <= self._now)
        few = (
            select(*self.columns)
            .where(
                *self._is_waiting,
                *of_project,
                or_(
                    columns.due_at > asked.last_due,
                    and_(columns.due_at == asked.last_due, columns.id > asked.last_id),
                ),
            )
            .order_by(columns.project_id, columns.due_at, columns.id)
            .limit(literal_column(str(CHUNK)))
            .with_for_update(skip_locked=True, of=self.table)
            .correlate(self._asked)
            .lateral("few")
        )
        due = select(few).limit(bindparam("most")).lateral("due")
        source = self._asked.join(due, true())
        for other, on in self.joins(due):
            source = source.join(other, on)
        return select(*due.c, *self.joined).select_from(source)


def _value(column: Column[Any]) -> BindParameter[Any]:
    return bindparam(column.name, type_=column.type)


def _order(row: Any) -> tuple[float, str]:
    return row.due_at, row.id


def closed_now(conn: Connection, now: float, ahead: float = 0.0) -> dict[str, float]:
    """The projects whose calling window is closed, and when each opens (Unix seconds).

    Windows follow the system clock, which is `ahead` seconds ahead of `now` and of what is
    returned.
    """
    date = now + ahead
    closed: dict[str, float] = {}
    for row in _WINDOWS.rows(conn, {}):
        window = CallingWindow.parse(row.window)
        if not window.is_open(date):
            # One that hardly ever opens is looked at again every day.
            closed[row.id] = (window.opens_at(date) or date + _DAY) - ahead
    return closed


def with_waiting(conn: Connection, dialer_id: str, lanes: Iterable[Lane]) -> set[Lane]:
    """Those of the lanes that have any calls waiting, due or not."""
    rows = _LANES.rows(conn, {"dialer_id": dialer_id, "after": -1})
    return {row.value for row in rows}.intersection(lanes)


def pick(
    conn: Connection,
    dialer_id: str,
    lane: Lane,
    room: int,
    now: float,
    after: str,
    closed: Iterable[str],
) -> list[Any]:
    """Up to `room` due calls of the lane, as `FairQueue.pick`.

    Some may have expired, and must not be dialled: to skip them here could take very long.
    """
    return CALLS.pick(conn, {"dialer_id": dialer_id, "lane": int(lane)}, room, now, after, closed)


def one_of_each(picked: Iterable[Any]) -> list[Any]:
    """The calls in another order: the first of each project, then the second of each, and so on."""
    got: Counter[str] = Counter()

    def place(row: Any) -> int:
        got[row.project_id] += 1
        return got[row.project_id]

    return sorted(picked, key=place)


def postpone(
    conn: Connection, dialer_id: str, lane: Lane, now: float, closed: Mapping[str, float]
) -> int:
    """Make up to `CHUNK` due calls of closed projects due when their window opens; how many.

    Those that expire before that do so in time, as any call that waits.
    """
    moved = 0
    of_lane = {"dialer_id": dialer_id, "lane": int(lane), "now": now}
    shut = {**of_lane, "closed": [(one,) for one in closed], "after": ""}
    for row in _CLOSED_WITH_DUE[conn.dialect.name].rows(conn, shut):
        wanted = {**of_lane, "project_id": row.value, "most": CHUNK - moved}
        ids = _DUE_IDS.rows(conn, wanted)
        _POSTPONE.run(conn, {"late": ids, "opens": closed[row.value]})
        moved += len(ids)
        if moved >= CHUNK:
            break
    return moved


CALLS: Final = FairQueue(
    call,
    columns=(
        call.c.id,
        call.c.project_id,
        call.c.lane,
        call.c.e164,
        call.c.recording_id,
        call.c.digits,
        call.c.repeat_count,
        call.c.language,
        call.c.longest_seconds,
        call.c.retries_left,
        call.c.retry_interval,
        call.c.expires_at,
        call.c.trouble,
        call.c.uncertain,
        call.c.attempts,
        call.c.due_at,
        select(literal_column("1"))
        .where(do_not_call.c.project_id == call.c.project_id, do_not_call.c.e164 == call.c.e164)
        .scalar_subquery()
        .is_not(None)
        .label("unwanted"),
        select(project.c.one_call_per_number)
        .where(project.c.id == call.c.project_id)
        .scalar_subquery()
        .label("exclusive"),
    ),
    within=(call.c.dialer_id, call.c.lane),
)
"""The calls that a dialer has waiting in one lane."""

_WINDOWS: Final = Statement(select(project.c.id, project.c.window).where(has_window))
_found = loose_index_scan(call.c.lane, call.c.dialer_id == bindparam("dialer_id"), is_due)
_LANES: Final = Statement(select(_found.c.value).where(_found.c.value.is_not(None)))
_CLOSED_WITH_DUE: Final = {
    dialect: Statement(with_due.where(with_due.selected_columns.value.in_(_closed)))
    for dialect, with_due in CALLS.with_due.items()
}
_DUE_IDS: Final = Statement(
    CALLS.in_order(call, bindparam("project_id"), literal_column("-1"), literal_column("''"))
    .add_columns(call.c.id)
    .limit(bindparam("most"))
    .with_for_update(skip_locked=True)
)
_POSTPONE: Final = Statement(
    update(call)
    .where(call.c.id.in_(select(values_parameter("late", id=call.c.id.type).c.id)), is_due)
    .values(due_at=bindparam("opens"))
)
