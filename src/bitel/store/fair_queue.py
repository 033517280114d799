"""Whose calls are next, within one lane: projects take turns, inside their calling windows.

However many calls a project has waiting, they cost the others nothing: the projects that have due
calls are found by one look into the index each, and then share what room there is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    FromClause,
    Select,
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
"""Calls whose due time is moved out of closed hours in one go, so that nobody waits long."""

_DAY: Final = 86_400.0
_BEGINNING: Final = (-1.0, "")


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
    closed: Mapping[str, float],
) -> list[Any]:
    """Up to `room` due calls of the lane, shared between the projects that have any.

    The turn begins with the project that follows `after`; those that are `closed` have none. Some
    may have expired, and must not be dialled: to pass over them here could take for ever.
    """
    of_lane = {"dialer_id": dialer_id, "lane": int(lane), "now": now}
    turns = _turns(conn, {**of_lane, "most": room, "closed": [(one,) for one in closed]}, after)
    last = dict.fromkeys(turns, _BEGINNING)
    got: Counter[str] = Counter()
    picked: list[Any] = []
    while turns and len(picked) < room:
        # What a project leaves of its share is shared in the next round by those that have more,
        # beginning with those that have got least.
        shares = _shares(turns, room - len(picked))
        found = _due(conn, of_lane, shares, last)
        for project_id, share in shares.items():
            rows = found[project_id][:share]
            picked += rows
            got[project_id] += len(rows)
            if len(rows) == share:
                last[project_id] = (rows[-1].due_at, rows[-1].id)
            else:
                turns.remove(project_id)
        turns.sort(key=got.__getitem__)
    return picked


def one_of_each(picked: Iterable[Any]) -> list[Any]:
    """The calls in another order: the first of each project, then the second of each, and so on."""
    got: Counter[str] = Counter()
    places: list[tuple[int, Any]] = []
    for row in picked:
        places.append((got[row.project_id], row))
        got[row.project_id] += 1
    return [row for _, row in sorted(places, key=lambda place: place[0])]


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


def _shares(turns: Sequence[str], room: int) -> dict[str, int]:
    """How many calls each may have of `room`; those at the end may get none, and are left out."""
    each, left_over = divmod(room, len(turns))
    return {
        project_id: min(each + (place < left_over), CHUNK)
        for place, project_id in enumerate(turns if each else turns[:left_over])
    }


def _due(
    conn: Connection,
    of_lane: Mapping[str, Any],
    shares: Mapping[str, int],
    last: Mapping[str, tuple[float, str]],
) -> dict[str, list[Any]]:
    """The calls of these projects that are due after their last, at least each one's share."""
    asked = [(project_id, *last[project_id]) for project_id in shares]
    wanted = {**of_lane, "asked": asked, "most": max(shares.values())}
    found: dict[str, list[Any]] = {project_id: [] for project_id in shares}
    for row in _DUE[conn.dialect.name].rows(conn, wanted):
        if row.id is not None:
            found[row.project_id].append(row)
    for rows in found.values():
        rows.sort(key=_order)  # neither database promises one
    return found


def _order(row: Any) -> tuple[float, str]:
    return row.due_at, row.id


def _turns(conn: Connection, wanted: Mapping[str, Any], after: str) -> list[str]:
    with_due = _OPEN_WITH_DUE[conn.dialect.name]
    turns = [row.value for row in with_due.rows(conn, {**wanted, "after": ""})]
    if not after:
        return turns
    if len(turns) < wanted["most"]:
        later = [project_id for project_id in turns if project_id > after]
    else:
        later = [row.value for row in with_due.rows(conn, {**wanted, "after": after})]
    return (later + [project_id for project_id in turns if project_id <= after])[: wanted["most"]]


_WINDOWS: Final = Statement(select(project.c.id, project.c.window).where(has_window))
_is_of_dialer = call.c.dialer_id == bindparam("dialer_id")
_found = loose_index_scan(call.c.lane, _is_of_dialer, is_due)
_LANES: Final = Statement(select(_found.c.value).where(_found.c.value.is_not(None)))
_lane: BindParameter[int] = bindparam("lane", type_=call.c.lane.type)
_now: BindParameter[float] = bindparam("now", type_=call.c.due_at.type)
_of_lane = (_is_of_dialer, call.c.lane == _lane, is_due)


def _with_due_in_sqlite() -> Select[Any]:
    waiting = loose_index_scan(call.c.project_id, *_of_lane)
    first_due = (
        select(func.min(call.c.due_at))
        .where(*_of_lane, call.c.project_id == waiting.c.value)
        .scalar_subquery()
    )
    return select(waiting.c.value).where(waiting.c.value.is_not(None), first_due <= _now)


def _with_due_in_postgresql() -> Select[Any]:
    # A project's first due time comes with the look that finds the project: only the index of the
    # queue has that order, so that no plan reads all that waits.
    found = select(_first_after(bindparam("after")).subquery()).cte("found", recursive=True)
    following = _first_after(found.c.value).lateral("following")
    found = found.union_all(select(following).select_from(found.join(following, true())))
    return select(found.c.value).where(found.c.due_at <= _now)


def _first_after(project_id: ColumnElement[Any]) -> Select[Any]:
    return (
        select(call.c.project_id.label("value"), call.c.due_at)
        .where(*_of_lane, call.c.project_id > project_id)
        .order_by(call.c.project_id, call.c.due_at)
        .limit(literal_column("1"))
    )


_WITH_DUE: Final = {"sqlite": _with_due_in_sqlite(), "postgresql": _with_due_in_postgresql()}
_closed = select(values_parameter("closed", id=project.c.id.type).c.id)
_OPEN_WITH_DUE: Final = {
    dialect: Statement(
        with_due.where(with_due.selected_columns.value.not_in(_closed)).limit(bindparam("most"))
    )
    for dialect, with_due in _WITH_DUE.items()
}
_CLOSED_WITH_DUE: Final = {
    dialect: Statement(with_due.where(with_due.selected_columns.value.in_(_closed)))
    for dialect, with_due in _WITH_DUE.items()
}

_asked = values_parameter(
    "asked", project_id=project.c.id.type, last_due=call.c.due_at.type, last_id=call.c.id.type
)
_picked_columns = (
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
)


_BEFORE_ALL: Final[tuple[ColumnElement[Any], ColumnElement[Any]]] = (
    literal_column("-1"),
    literal_column("''"),
)


def _queue(
    one: FromClause,
    project_id: ColumnElement[Any],
    last_due: ColumnElement[Any] = _BEFORE_ALL[0],
    last_id: ColumnElement[Any] = _BEFORE_ALL[1],
) -> Select[Any]:
    """What is due of a project, in order, after the last call that is known already.

    With lane and project said to be equal, PostgreSQL takes an index by due time for as good: it
    would read all that others have waiting, where one project's calls wait behind another's.
    """
    return (
        select()
        .where(
            one.c.dialer_id == bindparam("dialer_id"),
            one.c.due_at.is_not(None),
            tuple_(one.c.lane, one.c.project_id, one.c.due_at, one.c.id)
            > tuple_(_lane, project_id, last_due, last_id),
            tuple_(one.c.lane, one.c.project_id, one.c.due_at) <= tuple_(_lane, project_id, _now),
        )
        .order_by(one.c.lane, one.c.project_id, one.c.due_at, one.c.id)
    )


def _due_in_sqlite() -> Select[Any]:
    # SQLite has no LATERAL. The index alone says which rows; none is read that is not picked.
    one = call.alias("one")
    rows = (
        _queue(one, *_asked.c)
        .add_columns(literal_column("one.rowid"))
        .limit(bindparam("most"))
        .correlate(_asked)
    )
    is_next = literal_column("call.rowid").in_(rows)
    # SQLite begins an outer join on its left, always: with the projects, and not with all calls.
    return select(*_picked_columns).select_from(_asked.outerjoin(call, is_next))


def _due_in_postgresql() -> Select[Any]:
    # PostgreSQL guesses that a LIMIT it does not know is a tenth of all, and might then read and
    # sort them. The constant tells it to follow the index, whatever the statistics say. The rows
    # are locked one by one, as the LIMIT outside asks for them.
    # So does its wording: no other index gives this order, and what is compared to one value alone
    # is compared for a page of the index at once.
    asked = _asked.c
    few = (
        select(*_picked_columns)
        .where(
            *_of_lane,
            call.c.project_id >= asked.project_id,
            tuple_(call.c.project_id, call.c.due_at) <= tuple_(asked.project_id, _now),
            or_(
                call.c.due_at > asked.last_due,
                and_(call.c.due_at == asked.last_due, call.c.id > asked.last_id),
            ),
        )
        .order_by(call.c.project_id, call.c.due_at, call.c.id)
        .limit(literal_column(str(CHUNK)))
        .with_for_update(skip_locked=True, of=call)
        .correlate(_asked)
        .lateral("few")
    )
    due = select(few).limit(bindparam("most")).lateral("due")
    return select(due).select_from(_asked.join(due, true()))


_DUE: Final = {"sqlite": Statement(_due_in_sqlite()), "postgresql": Statement(_due_in_postgresql())}
_DUE_IDS: Final = Statement(
    _queue(call, bindparam("project_id"))
    .add_columns(call.c.id)
    .limit(bindparam("most"))
    .with_for_update(skip_locked=True)
)
_POSTPONE: Final = Statement(
    update(call)
    .where(call.c.id.in_(select(values_parameter("late", id=call.c.id.type).c.id)), is_due)
    .values(due_at=bindparam("opens"))
)
