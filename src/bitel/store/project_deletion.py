"""Deletes a project with all that it has, in pieces that delay no call of another project."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Final

from sqlalchemy import (
    Connection,
    Delete,
    Table,
    bindparam,
    delete,
    exists,
    or_,
    select,
    tuple_,
)

from bitel.errors import ConflictError
from bitel.store.chunks import in_chunks
from bitel.store.database import Database
from bitel.store.projects import change
from bitel.store.schema import (
    attempt,
    call,
    campaign,
    cancel_request,
    do_not_call,
    idempotency_key,
    is_due,
    is_in_flight,
    ledger_entry,
    placed_number,
    project,
    recording,
    token,
    webhook_event,
    webhook_try,
)

PIECE: Final = 500
"""Rows of a table that one transaction deletes at most."""
WINDOW: Final = 2000
"""Calls that one transaction reads at most, whichever project's they are."""


def disable(conn: Connection, project_id: str) -> None:
    """Refuse the tokens of the project from now on, and deliver no more webhooks."""
    change(conn, project_id, disabled=True, webhook_url=None)


def check_no_open_calls(conn: Connection, project_id: str) -> None:
    """Raises ConflictError while calls of the project are not over."""
    if conn.execute(_HAS_OPEN_CALLS, {"project_id": project_id}).scalar_one():
        raise ConflictError(
            "the project is disabled now, but calls of it are not over; cancel them or wait, "
            "and delete it then"
        )


def recordings(database: Database, project_id: str) -> Iterator[list[str]]:
    """Ids of the project's recordings, deleted ones included, in lists of up to `PIECE`."""
    after = ""
    while found := database.read_now(partial(_recordings, project_id=project_id, after=after)):
        yield found
        after = found[-1]


def delete_project(database: Database, project_id: str) -> None:
    """Delete all rows of a disabled project without open calls.

    What is interrupted can be begun again. Raises ConflictError where calls were placed meanwhile.
    """
    after: str | None = ""
    while after is not None:
        after = database.write_now(partial(_delete_calls, project_id=project_id, after=after))
    for statement in _DELETIONS:
        piece = partial(_delete_piece, statement=statement, project_id=project_id)
        while database.write_now(piece) == PIECE:
            pass
    database.read_now(partial(check_no_open_calls, project_id=project_id))
    database.write_now(lambda conn: conn.execute(_DELETE_PROJECT, {"project_id": project_id}))


def _recordings(conn: Connection, project_id: str, after: str) -> list[str]:
    wanted = {"project_id": project_id, "after": after, "most": PIECE}
    return list(conn.execute(_RECORDINGS, wanted).scalars())


def _delete_piece(conn: Connection, statement: Delete, project_id: str) -> int:
    return conn.execute(statement, {"project_id": project_id, "most": PIECE}).rowcount


def _delete_calls(conn: Connection, project_id: str, after: str) -> str | None:
    """Delete the project's calls among the next ones of all; the last id, None after the end."""
    window = conn.execute(_WINDOW, {"after": after, "most": WINDOW}).all()
    if not window:
        return None
    theirs = [row.id for row in window if row.project_id == project_id]
    for ids in in_chunks(theirs):
        for statement in _DELETIONS_BY_CALL:
            conn.execute(statement, ids)
    last: str = window[-1].id
    return last


_ids: Any = bindparam("ids", expanding=True)
_of_project = call.c.project_id == bindparam("project_id")
_HAS_OPEN_CALLS = select(
    or_(
        exists(select(call.c.id).where(_of_project, is_due)),
        exists(select(call.c.id).where(_of_project, is_in_flight)),
    )
)
_WINDOW = (
    select(call.c.id, call.c.project_id)
    .where(call.c.id > bindparam("after"))
    .order_by(call.c.id)
    .limit(bindparam("most"))
)
_RECORDINGS = (
    select(recording.c.id)
    .where(recording.c.project_id == bindparam("project_id"), recording.c.id > bindparam("after"))
    .order_by(recording.c.id)
    .limit(bindparam("most"))
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


def _by_project(table: Table) -> Delete:
    """Deletes up to `most` rows of the project from a table."""
    key = table.primary_key.columns
    some = (
        select(*key).where(table.c.project_id == bindparam("project_id")).limit(bindparam("most"))
    )
    return delete(table).where(tuple_(*key).in_(some))


_DELETIONS: Final = tuple(
    _by_project(table)
    for table in (
        token,
        campaign,
        placed_number,
        do_not_call,
        idempotency_key,
        ledger_entry,
        recording,
    )
)
_DELETE_PROJECT = delete(project).where(project.c.id == bindparam("project_id"))
