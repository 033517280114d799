"""Retention: deletes or blanks old rows, and the data of one phone number, piece by piece.

Identifiers sort by time, so old rows are found by primary key, a window at a time: no index is
needed, and no transaction is long. For each day of a project's deleted calls the ledger keeps one
entry, so that its sum still equals the balance.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy import Connection

from bitel import exact_json
from bitel.domain.calls import CallStatus
from bitel.domain.ids import first_id_at
from bitel.domain.pricing import day_of
from bitel.store import balances, call_events, event_rows, menus
from bitel.store.schema import (
    attempt,
    call,
    campaign,
    campaign_key,
    cancel_request,
    has_machine_message,
    has_menu,
    idempotency_key,
    is_waiting,
    menu_recording,
    placed_number,
    recording,
    retention_cursor,
    webhook_event,
    webhook_try,
)
from bitel.store.sql_batch import Statement, in_equal_chunks, next_rows, values_parameter

PIECE: Final = 300
"""Rows that one transaction reads."""

ERASED: Final = ""
"""The number of a call whose number is not kept any more."""

Cursor = Literal["numbers"]

_ids: Final[Any] = sa.bindparam("ids", expanding=True)
_before: Final[Any] = sa.bindparam("before")


def _old(table: sa.Table, condition: sa.ColumnElement[bool], *columns: Any) -> sa.Select[Any]:
    """Rows of a table by id, after `after` and made before `until`, and whether each is over."""
    rows = sa.select(table.c.id, condition.label("is_over"), *columns)
    return next_rows(rows.where(table.c.id < sa.bindparam("until")), table.c.id)


def _read(
    conn: Connection, query: sa.Select[Any], before: float, after: str
) -> tuple[str, list[Any]]:
    """The last id of the window, empty at the end, and the rows that are over."""
    wanted = {"after": after, "until": first_id_at(before), "most": PIECE, "before": before}
    rows = conn.execute(query, wanted).all()
    return _last(rows), [row for row in rows if row.is_over]


def _last(rows: Sequence[Any]) -> str:
    return rows[-1].id if rows else ""


def _apply(conn: Connection, ids: Sequence[str], *statements: sa.Executable) -> None:
    for some in in_equal_chunks(ids, PIECE):
        for statement in statements:
            conn.execute(statement, some)


_is_over = ~is_waiting & (call.c.finished_at < _before)
_OLD_CALLS: Final = _old(call, _is_over, call.c.campaign_id, call.c.webhook_id, call.c.menu_id)
_attempts = sa.select(attempt.c.id).where(attempt.c.call_id.in_(_ids))
_events = sa.select(webhook_event.c.id).where(webhook_event.c.call_id.in_(_ids))
_DELETIONS_BY_CALL: Final = (
    sa.delete(webhook_try).where(webhook_try.c.event_id.in_(_events)),
    sa.delete(webhook_event).where(webhook_event.c.call_id.in_(_ids)),
    sa.delete(cancel_request).where(cancel_request.c.attempt_id.in_(_attempts)),
    sa.delete(attempt).where(attempt.c.call_id.in_(_ids)),
    sa.delete(call).where(call.c.id.in_(_ids)),
)
_empty_campaigns = sa.select(campaign.c.id).where(
    campaign.c.id.in_(_ids),
    ~sa.exists(sa.select(call.c.id).where(call.c.campaign_id == campaign.c.id)),
)
_events_of_campaigns = webhook_event.c.campaign_id.in_(_empty_campaigns)
_DELETE_EMPTY_CAMPAIGNS: Final = (
    sa.delete(webhook_try).where(
        webhook_try.c.event_id.in_(sa.select(webhook_event.c.id).where(_events_of_campaigns))
    ),
    sa.delete(webhook_event).where(_events_of_campaigns),
    sa.delete(campaign_key).where(campaign_key.c.campaign_id.in_(_empty_campaigns)),
    sa.delete(campaign).where(campaign.c.id.in_(_empty_campaigns)),
)


def delete_calls(conn: Connection, before: float, after: str) -> tuple[str, int]:
    """Delete calls that were over before a time (Unix seconds), with attempts and webhook events.

    `after` is the id after which the window begins. Returns the last id of the window, empty at the
    end, and how many calls were deleted. A campaign, and a webhook that
    requests named, is deleted with its last call.
    """
    last, over = _read(conn, _OLD_CALLS, before, after)
    for ids in in_equal_chunks([row.id for row in over], PIECE):
        balances.carry_over(conn, ids)
        delete_by_call(conn, ids)
    campaigns = {row.campaign_id for row in over if row.campaign_id}
    _apply(conn, sorted(campaigns), *_DELETE_EMPTY_CAMPAIGNS)
    event_rows.delete_unused(conn, {row.webhook_id for row in over if row.webhook_id})
    menus.delete_unused(conn, {row.menu_id for row in over if row.menu_id})
    return last, len(over)


def delete_by_call(conn: Connection, ids: dict[str, list[str]]) -> None:
    """Delete calls, given as the parameter `ids`, and all that refers to them but the ledger."""
    for statement in _DELETIONS_BY_CALL:
        conn.execute(statement, ids)


_OLD_EVENTS: Final = _old(
    webhook_event, webhook_event.c.due_at.is_(None) & (webhook_event.c.created_at < _before)
)
_DELETE_TRIES: Final = sa.delete(webhook_try).where(webhook_try.c.event_id.in_(_ids))
_DELETE_EVENTS: Final = sa.delete(webhook_event).where(webhook_event.c.id.in_(_ids))


def delete_events(conn: Connection, before: float, after: str) -> tuple[str, int]:
    """Delete webhook events of before a time that are not tried any more. As `delete_calls`."""
    last, over = _read(conn, _OLD_EVENTS, before, after)
    _apply(conn, [row.id for row in over], _DELETE_TRIES, _DELETE_EVENTS)
    return last, len(over)


_has_number = call.c.e164 != ERASED
_has_pending_event = sa.exists(
    sa.select(webhook_event.c.id).where(
        webhook_event.c.call_id == call.c.id, webhook_event.c.due_at.is_not(None)
    )
)
_OLD_NUMBERS: Final = _old(call, _is_over & _has_number & ~_has_pending_event)
# A call without a recording must keep non-NULL digits.
_BLANK_CALLS: Final = (
    sa.update(call)
    .where(call.c.id.in_(_ids))
    .values(
        phone_number=ERASED,
        e164=ERASED,
        digits=sa.case((call.c.digits.is_(None), None), else_=sa.literal(ERASED)),
        reference=None,
        variables=None,
        parts=None,
    )
)
_BLANK_ATTEMPTS: Final = (
    sa.update(attempt)
    .where(attempt.c.call_id.in_(_ids), attempt.c.digits.is_not(None))
    .values(digits=ERASED, reports=None)
)


def blank_numbers(conn: Connection, before: float, after: str) -> tuple[str, int]:
    """Blank the numbers, references, variables and keyed digits of calls that were over before a
    time.

    Not while a webhook event with the number is to be delivered. As `delete_calls`; calls that are
    not over are read again by a later pass.
    """
    last, over = _read(conn, _OLD_NUMBERS, before, after)
    ids = [row.id for row in over]
    _apply(conn, ids, _BLANK_CALLS, _BLANK_ATTEMPTS)
    _blank_bodies(conn, ids)
    return last, len(over)


_BODIES: Final = sa.select(webhook_event.c.id, webhook_event.c.body).where(
    webhook_event.c.call_id.in_(_ids), webhook_event.c.body.is_not(None)
)
_bodies = values_parameter("bodies", *webhook_event.c["id", "body"])
_BLANK_BODIES: Final = Statement(
    sa.update(webhook_event).where(webhook_event.c.id == _bodies.c.id).values(body=_bodies.c.body)
)


def _blank_bodies(conn: Connection, call_ids: Sequence[str]) -> None:
    """Blank what `_BLANK_CALLS` and `_BLANK_ATTEMPTS` blank also in webhook events."""
    for ids in in_equal_chunks(call_ids, PIECE):
        bodies = [
            (row.id, call_events.without_numbers(row.body)) for row in conn.execute(_BODIES, ids)
        ]
        if bodies:
            _BLANK_BODIES.run(conn, {"bodies": bodies})


def are_blank(conn: Connection, after: str, last: str) -> bool:
    """Whether no call after `after` and up to `last` has a number."""
    with_number = sa.select(call.c.id).where(call.c.id > after, call.c.id <= last, _has_number)
    return conn.execute(with_number.limit(1)).first() is None


_played = sa.exists(sa.select(call.c.id).where(call.c.recording_id == recording.c.id, is_waiting))
_of_menus = (
    sa.select(call.c.id)
    .join(menu_recording, menu_recording.c.menu_id == call.c.menu_id)
    .where(menu_recording.c.recording_id == recording.c.id, has_menu, is_waiting)
)
_for_machines = sa.select(call.c.id).where(
    call.c.machine_recording_id == recording.c.id, has_machine_message, is_waiting
)
_needed = _played | sa.exists(_of_menus) | sa.exists(_for_machines)
_UNUSED_RECORDINGS: Final = _old(
    recording,
    recording.c.deleted_at.is_(None) & (recording.c.used_on < sa.bindparam("day")) & ~_needed,
    recording.c.project_id,
)


def unused_recordings(
    conn: Connection, before: float, after: str
) -> tuple[str, list[tuple[str, str]]]:
    """Recordings that no call was placed with since a time, and no open call needs.

    Returns the last id of the window, empty at the end, and (project, recording) of each.
    """
    wanted = {"after": after, "until": first_id_at(before), "most": PIECE, "day": day_of(before)}
    rows = conn.execute(_UNUSED_RECORDINGS, wanted).all()
    return _last(rows), [(row.project_id, row.id) for row in rows if row.is_over]


_MOVE_CURSOR: Final = sa.text(
    """
    INSERT INTO retention_cursor (name, last_id) VALUES (:name, :last_id)
    ON CONFLICT (name) DO UPDATE SET last_id = excluded.last_id
    """
)


def cursor(conn: Connection, name: Cursor) -> str:
    """The last id that was processed, by this process or an earlier one."""
    position = sa.select(retention_cursor.c.last_id).where(retention_cursor.c.name == name)
    return conn.execute(position).scalar_one_or_none() or ""


def move_cursor(conn: Connection, name: Cursor, last_id: str) -> None:
    """Store the position of `cursor`."""
    conn.execute(_MOVE_CURSOR, {"name": name, "last_id": last_id})


# The data of one phone number

NEXT_CALLS: Final = next_rows(
    sa.select(call.c.id, call.c.project_id, call.c.e164, call.c.status), call.c.id
)
"""A window of the calls of all projects."""


def calls_to(
    conn: Connection, project_id: str, e164: str, after: str
) -> tuple[str, list[tuple[str, bool]]]:
    """The project's calls to a number in the next window of all calls, and whether each is over.

    Returns the last id of the window, empty at the end.
    """
    rows = conn.execute(NEXT_CALLS, {"after": after, "most": 10 * PIECE}).all()
    found = [
        (row.id, row.status != CallStatus.WAITING)
        for row in rows
        if row.project_id == project_id and row.e164 == e164
    ]
    return _last(rows), found


def erase_calls(conn: Connection, project_id: str, ids: Sequence[str]) -> None:
    """Blank the numbers, references, variables and keyed digits of calls that are over.

    Also in webhook events, whether or not they are delivered, and numbers in stored answers of the
    API.
    """
    _apply(conn, ids, _BLANK_CALLS, _BLANK_ATTEMPTS)
    _blank_bodies(conn, ids)
    stored = idempotency_key.c
    answers = sa.select(stored.key, stored.answer).where(
        stored.project_id == project_id, stored.answer.is_not(None)
    )
    for row in conn.execute(answers).all():
        answer = bytes(row.answer)
        changed = _without_numbers(answer, set(ids))
        if changed != answer:
            is_key = (stored.project_id == project_id) & (stored.key == row.key)
            conn.execute(sa.update(idempotency_key).where(is_key).values(answer=changed))


def forget_number(conn: Connection, project_id: str, e164: str) -> None:
    """Delete the rows that count recent calls to a number."""
    placed = placed_number.c
    is_number = (placed.project_id == project_id) & (placed.e164 == e164)
    conn.execute(sa.delete(placed_number).where(is_number))


def _without_numbers(answer: bytes, ids: set[str]) -> bytes:
    """An answer of the API in which the calls of these ids have no number."""
    if not any(each.encode() in answer for each in ids):
        return answer
    try:
        body = json.loads(answer)
    except json.JSONDecodeError:
        return answer
    result = body.get("result")
    for each in result if isinstance(result, list) else [result]:
        if isinstance(each, dict) and each.get("id") in ids and "phoneNumber" in each:
            each["phoneNumber"] = ERASED
    return exact_json.dumps(body).encode()
