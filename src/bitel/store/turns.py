"""Whose calls are next, within one lane: projects take turns, inside their calling windows.

However many calls a project has waiting, they cost the others nothing: the projects that have due
calls are found by one look into the index each, and then share what room there is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import (
    Connection,
    bindparam,
    exists,
    literal,
    select,
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
    given: Counter[str] = Counter()
    picked: list[Any] = []
    while turns and len(picked) < room:
        have_more = []
        # What a project leaves of its share is shared in the next round by those that have more,
        # beginning with those that have got least.
        each, left_over = divmod(room - len(picked), len(turns))
        for done, project_id in enumerate(turns):
            share = each + (done < left_over)
            if share == 0:
                have_more += turns[done:]
                break
            due_at, call_id = last[project_id]
            rows = _DUE.rows(conn, {**of_lane, "project_id": project_id, "most": share,
                                    "last_due": due_at, "last_id": call_id})  # fmt: skip
            picked += rows
            given[project_id] += len(rows)
            if len(rows) == share:
                last[project_id] = (rows[-1].due_at, rows[-1].id)
                have_more.append(project_id)
        turns = sorted(have_more, key=given.__getitem__)
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
_of_lane = (call.c.dialer_id == bindparam("dialer_id"), call.c.lane == bindparam("lane"))
_waiting = loose.distinct(call.c.project_id, *_of_lane, is_due)
_WITH_DUE = select(_waiting.c.value).where(
    exists(
        select(literal(1)).where(
            *_of_lane,
            call.c.project_id == _waiting.c.value,
            call.c.due_at <= bindparam("now"),
        )
    )
)
_closed = select(given("closed", id=project.c.id.type).c.id)
_OPEN_WITH_DUE: Final = Query(
    _WITH_DUE.where(_waiting.c.value.not_in(_closed)).limit(bindparam("most"))
)
_CLOSED_WITH_DUE: Final = Query(_WITH_DUE.where(_waiting.c.value.in_(_closed)))

_of_project = (*_of_lane, call.c.project_id == bindparam("project_id"))
_is_now_due = call.c.due_at <= bindparam("now")
_DUE: Final = Query(
    select(
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
        exists(
            select(literal(1)).where(
                do_not_call.c.project_id == call.c.project_id,
                do_not_call.c.e164 == call.c.e164,
            )
        ).label("unwanted"),
    )
    .where(
        *_of_project,
        _is_now_due,
        tuple_(call.c.due_at, call.c.id) > tuple_(bindparam("last_due"), bindparam("last_id")),
    )
    .order_by(call.c.due_at, call.c.id)
    .limit(bindparam("most"))
    .with_for_update(skip_locked=True, of=call)
)
_DUE_IDS: Final = Query(
    select(call.c.id)
    .where(*_of_project, _is_now_due)
    .order_by(call.c.due_at, call.c.id)
    .limit(bindparam("most"))
    .with_for_update(skip_locked=True)
)
_POSTPONE: Final = Change(
    update(call)
    .where(call.c.id.in_(select(given("late", id=call.c.id.type).c.id)), is_due)
    .values(due_at=bindparam("opens"))
)
