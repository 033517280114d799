"""Whose calls are next, within one lane: projects take turns, inside their calling windows.

However many calls a project has waiting, they cost the others nothing: the projects that have due
calls are found by one look into the index each, and then share what room there is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    FromClause,
    Select,
    bindparam,
    literal_column,
    select,
    true,
    tuple_,
    update,
)

from bitel.calls.call import Lane
from bitel.calls.window import CallingWindow
from bitel.store import loose
from bitel.store.bulk import Change, Query, given
from bitel.store.schema import call, do_not_call, has_window, is_due, project

CHUNK: Final = 2000
"""Calls whose due time is moved out of closed hours in one go, so that nobody waits long."""

_DAY: Final = 86_400.0
_BEGINNING: Final = (-1.0, "")


def closed_now(conn: Connection, now: float) -> dict[str, float]:
    """The projects whose calling window is closed, and when each opens (Unix seconds)."""
    closed: dict[str, float] = {}
    for row in _WINDOWS.rows(conn, {}):
        window = CallingWindow.parse(row.window)
        if not window.is_open(now):
            # One that hardly ever opens is looked at again every day.
            closed[row.id] = window.opens_at(now) or now + _DAY
    return closed


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


def postpone(
    conn: Connection, dialer_id: str, lane: Lane, now: float, closed: Mapping[str, float]
) -> int:
    """Make up to `CHUNK` due calls of closed projects due when their window opens; how many.

    Those that expire before that do so in time, as any call that waits.
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
    turns = [row.value for row in _OPEN_WITH_DUE.rows(conn, {**wanted, "after": ""})]
    if not after:
        return turns
    if len(turns) < wanted["most"]:
        later = [project_id for project_id in turns if project_id > after]
    else:
        later = [row.value for row in _OPEN_WITH_DUE.rows(conn, {**wanted, "after": after})]
    return (later + [project_id for project_id in turns if project_id <= after])[: wanted["most"]]


_WINDOWS: Final = Query(select(project.c.id, project.c.window).where(has_window))
_is_of_dialer = call.c.dialer_id == bindparam("dialer_id")
_lane: BindParameter[int] = bindparam("lane", type_=call.c.lane.type)
_now: BindParameter[float] = bindparam("now", type_=call.c.due_at.type)
_waiting = loose.distinct(call.c.project_id, _is_of_dialer, call.c.lane == _lane, is_due)
# An EXISTS would be a join, and PostgreSQL may read all that waits to make it.
_first_due_of_project = (
    select(call.c.due_at)
    .where(
        _is_of_dialer,
        is_due,
        tuple_(call.c.lane, call.c.project_id) >= tuple_(_lane, _waiting.c.value),
    )
    .order_by(call.c.lane, call.c.project_id, call.c.due_at)
    .limit(literal_column("1"))
    .scalar_subquery()
)
_WITH_DUE = select(_waiting.c.value).where(
    _waiting.c.value.is_not(None), _first_due_of_project <= _now
)
_closed = select(given("closed", id=project.c.id.type).c.id)
_OPEN_WITH_DUE: Final = Query(
    _WITH_DUE.where(_waiting.c.value.not_in(_closed)).limit(bindparam("most"))
)
_CLOSED_WITH_DUE: Final = Query(_WITH_DUE.where(_waiting.c.value.in_(_closed)))

_asked = given(
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
    call.c.retries_left,
    call.c.retry_interval,
    call.c.expires_at,
    call.c.trouble,
    call.c.attempts,
    call.c.due_at,
    select(literal_column("1"))
    .where(do_not_call.c.project_id == call.c.project_id, do_not_call.c.e164 == call.c.e164)
    .scalar_subquery()
    .is_not(None)
    .label("unwanted"),
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
    few = (
        _queue(call, *_asked.c)
        .add_columns(*_picked_columns)
        .limit(literal_column(str(CHUNK)))
        .with_for_update(skip_locked=True, of=call)
        .correlate(_asked)
        .lateral("few")
    )
    due = select(few).limit(bindparam("most")).lateral("due")
    return select(due).select_from(_asked.join(due, true()))


_DUE: Final = {"sqlite": Query(_due_in_sqlite()), "postgresql": Query(_due_in_postgresql())}
_DUE_IDS: Final = Query(
    _queue(call, bindparam("project_id"))
    .add_columns(call.c.id)
    .limit(bindparam("most"))
    .with_for_update(skip_locked=True)
)
_POSTPONE: Final = Change(
    update(call)
    .where(call.c.id.in_(select(given("late", id=call.c.id.type).c.id)), is_due)
    .values(due_at=bindparam("opens"))
)
