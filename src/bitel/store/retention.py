"""Deletes what is older than the operator keeps it, and what concerns one person, piece by piece.

Identifiers sort by time, so old rows are found by their key alone, a window of it at a time: no
index is needed, and no transaction is long. The ledger keeps one entry for each day of a project's
deleted calls, so that its sums are still those of the balances.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

from sqlalchemy import (
    Connection,
    bindparam,
    case,
    delete,
    exists,
    literal,
    select,
    text,
    update,
)

from bitel.domain.ids import first_id_at
from bitel.domain.pricing import day_of
from bitel.store import balances
from bitel.store.schema import (
    attempt,
    call,
    campaign,
    cancel_request,
    idempotency_key,
    is_waiting,
    placed_number,
    recording,
    retention_cursor,
    webhook_event,
    webhook_try,
)
from bitel.store.sql_batch import in_equal_chunks

PIECE: Final = 300
"""Rows that one transaction looks at."""

ERASED: Final = ""
"""The number of a call whose number is not kept any more."""

Cursor = Literal["numbers"]


def delete_calls(conn: Connection, before: float, after: str) -> tuple[str, int]:
    """Delete calls that were over before a time (Unix seconds), with attempts and webhook events.

    `after` is the id to begin behind. Returns the last id that was looked at, empty at the end, and
    how many calls were deleted. Calls of campaigns go with these, once none of their calls is left.
    """
    rows = _window(conn, _OLD_CALLS, before, after)
    over = [row.id for row in rows if row.is_over]
    for ids in in_equal_chunks(over, PIECE):
        balances.carry_over(conn, ids)
        delete_by_call(conn, ids)
    campaigns = {row.campaign_id for row in rows if row.is_over and row.campaign_id}
    for ids in in_equal_chunks(sorted(campaigns), PIECE):
        conn.execute(_DELETE_EMPTY_CAMPAIGNS, ids)
    return _last(rows), len(over)


def delete_by_call(conn: Connection, ids: dict[str, list[str]]) -> None:
    """Delete calls, given as the parameter `ids`, and all that refers to them but the ledger."""
    for statement in _DELETIONS_BY_CALL:
        conn.execute(statement, ids)


def delete_events(conn: Connection, before: float, after: str) -> tuple[str, int]:
    """Delete webhook events of before a time that need no more tries. As `delete_calls`."""
    rows = _window(conn, _OLD_EVENTS, before, after)
    over = [row.id for row in rows if row.is_over]
    for ids in in_equal_chunks(over, PIECE):
        conn.execute(_DELETE_TRIES, ids)
        conn.execute(_DELETE_EVENTS, ids)
    return _last(rows), len(over)


def blank_numbers(conn: Connection, before: float, after: str) -> tuple[str, int]:
    """Blank the numbers and keyed digits of calls that were over before a time.

    Not while a webhook that names the number is to be delivered. As `delete_calls`; calls that are
    not over are looked at again from the start.
    """
    rows = _window(conn, _OLD_NUMBERS, before, after)
    over = [row.id for row in rows if row.is_over]
    for ids in in_equal_chunks(over, PIECE):
        conn.execute(_BLANK_CALLS, ids)
        conn.execute(_BLANK_ATTEMPTS, ids)
    return _last(rows), len(over)


def are_blank(conn: Connection, after: str, last: str) -> bool:
    """Whether no call behind `after` and up to `last` has a number."""
    wanted = {"after": after, "last": last}
    return not conn.execute(_HAS_NUMBERS, wanted).scalar_one()


def unused_recordings(
    conn: Connection, before: float, after: str
) -> tuple[str, list[tuple[str, str]]]:
    """Recordings that no call was placed with since a time, and no open call needs.

    Returns the last id that was looked at, empty at the end, and (project, recording) of those.
    """
    wanted = {"after": after, "until": first_id_at(before), "most": PIECE, "day": day_of(before)}
    rows = conn.execute(_UNUSED_RECORDINGS, wanted).all()
    return _last(rows), [(row.project_id, row.id) for row in rows if row.is_unused]


def cursor(conn: Connection, name: Cursor) -> str:
    """Up to which id rows have been dealt with, by this process or an earlier one."""
    found = conn.execute(_CURSOR, {"the_name": name}).scalar_one_or_none()
    return found or ""


def move_cursor(conn: Connection, name: Cursor, last_id: str) -> None:
    """Write how far `cursor` is."""
    conn.execute(_MOVE_CURSOR, {"name": name, "last_id": last_id})


# One person


def calls_to(
    conn: Connection, project_id: str, e164: str, after: str
) -> tuple[str, list[tuple[str, bool]]]:
    """Calls of a project to a number among the next ones of all, and whether each is over.

    Returns the last id that was looked at, empty at the end.
    """
    rows = conn.execute(_NEXT_CALLS, {"after": after, "most": 10 * PIECE}).all()
    found = [
        (row.id, row.status != 0)
        for row in rows
        if row.project_id == project_id and row.e164 == e164
    ]
    return _last(rows), found


def erase_calls(conn: Connection, project_id: str, ids: Sequence[str]) -> None:
    """Blank the numbers and keyed digits of calls that are over, also in answers that are kept."""
    for some in in_equal_chunks(ids, PIECE):
        conn.execute(_BLANK_CALLS, some)
        conn.execute(_BLANK_ATTEMPTS, some)
    erased = set(ids)
    rows = conn.execute(_ANSWERS, {"the_project": project_id}).all()
    for row in rows:
        answer = bytes(row.answer)
        changed = _without_numbers(answer, erased)
        if changed != answer:
            conn.execute(
                _REPLACE_ANSWER,
                {"the_project": project_id, "the_key": row.key, "changed": changed},
            )


def forget_number(conn: Connection, project_id: str, e164: str) -> None:
    """Delete what is known of how often a number was called lately."""
    conn.execute(_FORGET_PLACED, {"the_project": project_id, "the_number": e164})


def _without_numbers(answer: bytes, ids: set[str]) -> bytes:
    """An answer of the API in which the calls of these ids have no number."""
    from json import JSONDecodeError, loads

    from bitel import exact_json

    if not any(each.encode() in answer for each in ids):
        return answer
    try:
        body = loads(answer)
    except JSONDecodeError:
        return answer
    result = body.get("result")
    for each in result if isinstance(result, list) else [result]:
        if isinstance(each, dict) and each.get("id") in ids and "phoneNumber" in each:
            each["phoneNumber"] = ERASED
    return exact_json.dumps(body).encode()


def _window(conn: Connection, query: Any, before: float, after: str) -> Sequence[Any]:
    wanted = {"after": after, "until": first_id_at(before), "most": PIECE, "before": before}
    return conn.execute(query, wanted).all()


def _last(rows: Sequence[Any]) -> str:
    return rows[-1].id if rows else ""


_ids: Any = bindparam("ids", expanding=True)


def _next(table: Any, *columns: Any) -> Any:
    """Rows of a table by id, behind `after` and of before `until`."""
    return (
        select(table.c.id, *columns)
        .where(table.c.id > bindparam("after"), table.c.id < bindparam("until"))
        .order_by(table.c.id)
        .limit(bindparam("most"))
    )


_is_over = ~is_waiting & (call.c.finished_at < bindparam("before"))
_OLD_CALLS = _next(call, call.c.campaign_id, _is_over.label("is_over"))
_has_pending_event = exists(
    select(webhook_event.c.id).where(
        webhook_event.c.call_id == call.c.id, webhook_event.c.due_at.is_not(None)
    )
)
_OLD_NUMBERS = _next(
    call, (_is_over & (call.c.e164 != ERASED) & ~_has_pending_event).label("is_over")
)
_HAS_NUMBERS = select(
    exists(
        select(call.c.id).where(
            call.c.id > bindparam("after"), call.c.id <= bindparam("last"), call.c.e164 != ERASED
        )
    )
)
_OLD_EVENTS = _next(
    webhook_event,
    (webhook_event.c.due_at.is_(None) & (webhook_event.c.created_at < bindparam("before"))).label(
        "is_over"
    ),
)
_needed = exists(select(call.c.id).where(call.c.recording_id == recording.c.id, is_waiting))
_UNUSED_RECORDINGS = _next(
    recording,
    recording.c.project_id,
    (recording.c.deleted_at.is_(None) & (recording.c.used_on < bindparam("day")) & ~_needed).label(
        "is_unused"
    ),
)
_attempts = select(attempt.c.id).where(attempt.c.call_id.in_(_ids))
_events = select(webhook_event.c.id).where(webhook_event.c.call_id.in_(_ids))
_DELETIONS_BY_CALL: Final = (
    delete(webhook_try).where(webhook_try.c.event_id.in_(_events)),
    delete(webhook_event).where(webhook_event.c.call_id.in_(_ids)),
    delete(cancel_request).where(cancel_request.c.attempt_id.in_(_attempts)),
    delete(attempt).where(attempt.c.call_id.in_(_ids)),
    delete(call).where(call.c.id.in_(_ids)),
)
_DELETE_EMPTY_CAMPAIGNS = delete(campaign).where(
    campaign.c.id.in_(_ids),
    ~exists(select(call.c.id).where(call.c.campaign_id == campaign.c.id)),
)
_DELETE_TRIES = delete(webhook_try).where(webhook_try.c.event_id.in_(_ids))
_DELETE_EVENTS = delete(webhook_event).where(webhook_event.c.id.in_(_ids))
# The digits of a one-time password are what says that a call without a recording plays something.
_BLANK_CALLS = (
    update(call)
    .where(call.c.id.in_(_ids))
    .values(
        phone_number=ERASED,
        e164=ERASED,
        digits=case((call.c.digits.is_(None), None), else_=literal(ERASED)),
    )
)
_BLANK_ATTEMPTS = (
    update(attempt)
    .where(attempt.c.call_id.in_(_ids), attempt.c.digits.is_not(None))
    .values(digits=ERASED)
)
_CURSOR = select(retention_cursor.c.last_id).where(retention_cursor.c.name == bindparam("the_name"))
_MOVE_CURSOR = text(
    """
    INSERT INTO retention_cursor (name, last_id) VALUES (:name, :last_id)
    ON CONFLICT (name) DO UPDATE SET last_id = excluded.last_id
    """
)
_NEXT_CALLS = (
    select(call.c.id, call.c.project_id, call.c.e164, call.c.status)
    .where(call.c.id > bindparam("after"))
    .order_by(call.c.id)
    .limit(bindparam("most"))
)
_ANSWERS = select(idempotency_key.c.key, idempotency_key.c.answer).where(
    idempotency_key.c.project_id == bindparam("the_project"),
    idempotency_key.c.answer.is_not(None),
)
_REPLACE_ANSWER = (
    update(idempotency_key)
    .where(
        idempotency_key.c.project_id == bindparam("the_project"),
        idempotency_key.c.key == bindparam("the_key"),
    )
    .values(answer=bindparam("changed"))
)
_FORGET_PLACED = delete(placed_number).where(
    placed_number.c.project_id == bindparam("the_project"),
    placed_number.c.e164 == bindparam("the_number"),
)
