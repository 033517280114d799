"""Deletes a project with all its data, in pieces that delay no call of another project.

The rows of the project itself and of its recordings stay, without a name: to delete one, the
database would search the calls of all projects for rows that refer to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection

from bitel.errors import ConflictError
from bitel.store import recipient_lists, retention
from bitel.store.database import Database
from bitel.store.projects import change
from bitel.store.schema import (
    call,
    campaign,
    campaign_key,
    do_not_call,
    idempotency_key,
    is_waiting,
    ledger_entry,
    menu,
    menu_recording,
    placed_number,
    project,
    recording,
    speech_part,
    token,
    webhook,
    webhook_event,
    webhook_try,
)
from bitel.store.sql_batch import in_chunks, matches, next_rows

PIECE: Final = 500
"""Most rows of a table that one transaction deletes."""
WINDOW: Final = 2000
"""Most calls, of all projects, that one transaction reads."""


def disable(conn: Connection, project_id: str) -> None:
    """Refuse the tokens of the project from now on, and deliver no more webhooks."""
    change(conn, project_id, disabled=True, webhook_url=None)
    named = sa.update(webhook).where(webhook.c.project_id == project_id)
    conn.execute(named.values(off_reason="its project is deleted"))


_of_project = matches(call.c.project_id)
_HAS_OPEN_CALLS: Final = sa.select(sa.exists(sa.select(call.c.id).where(*_of_project, is_waiting)))
_WITH_AUDIO: Final = [
    next_rows(sa.select(table.c.id).where(*matches(table.c.project_id)), table.c.id)
    for table in (recording, speech_part)
]


def check_no_open_calls(conn: Connection, project_id: str) -> None:
    """Raises ConflictError while calls of the project are not over."""
    if conn.execute(_HAS_OPEN_CALLS, {"project_id": project_id}).scalar_one():
        raise ConflictError(
            "the project is disabled now, but calls of it are not over; cancel them or wait, "
            "and delete it then"
        )


def recordings(database: Database, project_id: str) -> Iterator[list[str]]:
    """Ids of the project's stored audio: its recordings, deleted ones included, then spoken parts.

    In lists of up to `PIECE`.
    """
    for query in _WITH_AUDIO:
        page = partial(_ids, query=query, project_id=project_id)
        after = ""
        while found := database.read_now(partial(page, after=after)):
            yield found
            after = found[-1]


def delete_project(database: Database, project_id: str, now: float) -> None:
    """Delete all rows of a disabled project without open calls.

    An interrupted deletion can be started again. Raises ConflictError where calls were placed
    meanwhile.
    """
    after: str | None = ""
    while after is not None:
        after = database.write_now(partial(_delete_calls, project_id=project_id, after=after))
    for of_its_rows in (_DELETE_KEYS, _DELETE_OF_MENUS):
        database.write_now(
            lambda conn: conn.execute(of_its_rows, {"project_id": project_id})  # noqa: B023
        )
    lists = partial(recipient_lists.delete_of_project, project_id=project_id)
    while database.write_now(lists):
        pass
    for statement in _DELETIONS:
        piece = partial(_delete_piece, statement=statement, project_id=project_id)
        while database.write_now(piece) == PIECE:
            pass
    database.read_now(partial(check_no_open_calls, project_id=project_id))
    database.write_now(partial(_blank, project_id=project_id, now=now))


def _ids(conn: Connection, query: sa.Select[Any], project_id: str, after: str) -> list[str]:
    wanted = {"project_id": project_id, "after": after, "most": PIECE}
    return list(conn.execute(query, wanted).scalars())


def _delete_calls(conn: Connection, project_id: str, after: str) -> str | None:
    """Delete the project's calls in the next window; returns its last id, None after the end."""
    window = conn.execute(retention.NEXT_CALLS, {"after": after, "most": WINDOW}).all()
    if not window:
        return None
    for ids in in_chunks([row.id for row in window if row.project_id == project_id]):
        retention.delete_by_call(conn, ids)
    last: str = window[-1].id
    return last


def _by_project(table: sa.Table) -> sa.Delete:
    """Deletes up to `most` rows of the project from a table."""
    key = table.primary_key.columns
    some = sa.select(*key).where(*matches(table.c.project_id)).limit(sa.bindparam("most"))
    return sa.delete(table).where(sa.tuple_(*key).in_(some))


_of_its_campaigns = campaign_key.c.campaign_id.in_(
    sa.select(campaign.c.id).where(*matches(campaign.c.project_id))
)
_DELETE_KEYS: Final = sa.delete(campaign_key).where(_of_its_campaigns)
_of_its_menus = menu_recording.c.menu_id.in_(
    sa.select(menu.c.id).where(*matches(menu.c.project_id))
)
_DELETE_OF_MENUS: Final = sa.delete(menu_recording).where(_of_its_menus)
_tries_of_its_events = (
    sa.select(webhook_try.c.id)
    .join(webhook_event, webhook_event.c.id == webhook_try.c.event_id)
    .where(*matches(webhook_event.c.project_id))
    .limit(sa.bindparam("most"))
)
_DELETIONS: Final = (
    # Of events of campaigns; those of calls went with their calls.
    sa.delete(webhook_try).where(webhook_try.c.id.in_(_tries_of_its_events)),
    *map(
        _by_project,
        (
            webhook_event,
            webhook,
            token,
            campaign,
            menu,
            placed_number,
            do_not_call,
            idempotency_key,
            ledger_entry,
            speech_part,
        ),
    ),
)


def _delete_piece(conn: Connection, statement: sa.Delete, project_id: str) -> int:
    return conn.execute(statement, {"project_id": project_id, "most": PIECE}).rowcount


def _blank(conn: Connection, project_id: str, now: float) -> None:
    deleted_at = sa.func.coalesce(recording.c.deleted_at, now)
    conn.execute(
        sa.update(recording)
        .where(recording.c.project_id == project_id)
        .values(name="", speech_key=None, deleted_at=deleted_at)
    )
    # The id can't be the name of a project.
    conn.execute(
        sa.update(project)
        .where(project.c.id == project_id)
        .values(name=project.c.id, webhook_secret=None, deleted_at=now)
    )
