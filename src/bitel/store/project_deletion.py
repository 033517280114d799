"""Deletes a project with all that it has, in pieces that delay no call of another project.

The rows of the project itself and of its recordings stay, without a name: to delete one, the
database would look for rows that refer to it, through all calls of all projects.
"""

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
    func,
    or_,
    select,
    tuple_,
    update,
)

from bitel.errors import ConflictError
from bitel.store import retention
from bitel.store.database import Database
from bitel.store.projects import change
from bitel.store.schema import (
    call,
    campaign,
    do_not_call,
    idempotency_key,
    is_due,
    is_in_flight,
    ledger_entry,
    placed_number,
    project,
    recording,
    token,
)
from bitel.store.sql_batch import in_chunks

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


def delete_project(database: Database, project_id: str, now: float) -> None:
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
    database.write_now(partial(_blank, project_id=project_id, now=now))


def _recordings(conn: Connection, project_id: str, after: str) -> list[str]:
    wanted = {"project_id": project_id, "after": after, "most": PIECE}
    return list(conn.execute(_RECORDINGS, wanted).scalars())


def _blank(conn: Connection, project_id: str, now: float) -> None:
    wanted = {"the_project": project_id, "now": now}
    conn.execute(_BLANK_RECORDINGS, wanted)
    # Its id is no name that a project may have.
    conn.execute(_BLANK_PROJECT, wanted)


def _delete_piece(conn: Connection, statement: Delete, project_id: str) -> int:
    return conn.execute(statement, {"project_id": project_id, "most": PIECE}).rowcount


def _delete_calls(conn: Connection, project_id: str, after: str) -> str | None:
    """Delete the project's calls among the next ones of all; the last id, None after the end."""
    window = conn.execute(_WINDOW, {"after": after, "most": WINDOW}).all()
    if not window:
        return None
    theirs = [row.id for row in window if row.project_id == project_id]
    for ids in in_chunks(theirs):
        retention.delete_by_call(conn, ids)
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
    )
)
_BLANK_RECORDINGS = (
    update(recording)
    .where(recording.c.project_id == bindparam("the_project"))
    .values(
        name="",
        speech_key=None,
        deleted_at=func.coalesce(recording.c.deleted_at, bindparam("now")),
    )
)
_BLANK_PROJECT = (
    update(project)
    .where(project.c.id == bindparam("the_project"))
    .values(name=project.c.id, webhook_secret=None, deleted_at=bindparam("now"))
)
