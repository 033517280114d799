"""Menus of calls. Requests with the same menu share a row, whose id is a hash of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import lru_cache
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection

from bitel.domain.menus import Menu, RequestMenu, from_json
from bitel.store.schema import call, has_menu, is_waiting, menu, menu_recording
from bitel.store.sql_batch import Statement, in_chunks, is_among, matches

_NAME: Final = sa.text(
    """
    INSERT INTO menu (id, project_id, body) VALUES (:id, :project_id, :body)
    ON CONFLICT (id) DO UPDATE SET body = excluded.body
    """
)
_NAME_RECORDING: Final = sa.text(
    """
    INSERT INTO menu_recording (menu_id, recording_id) VALUES (:menu_id, :recording_id)
    ON CONFLICT (menu_id, recording_id) DO NOTHING
    """
)


def add(conn: Connection, new: RequestMenu) -> None:
    """Store the menu of a request, in the transaction that places its calls.

    The row is locked, or made anew, so that it is not deleted before the calls are placed.
    """
    conn.execute(_NAME, {"id": new.id, "project_id": new.project_id, "body": new.body})
    for recording_id in sorted(new.recordings):
        conn.execute(_NAME_RECORDING, {"menu_id": new.id, "recording_id": recording_id})


_FIND: Final = Statement(sa.select(*menu.c["id", "body"]).where(is_among(menu.c.id, "wanted")))
_parsed = lru_cache(maxsize=256)(from_json)


def find(conn: Connection, ids: Iterable[str]) -> dict[str, Menu]:
    """The menus of these ids."""
    wanted = sorted(set(ids))
    rows = _FIND.rows(conn, {"wanted": [(each,) for each in wanted]}) if wanted else []
    return {row.id: _parsed(row.body) for row in rows}


_NEEDING: Final = (
    sa.select(call.c.id)
    .join(menu_recording, menu_recording.c.menu_id == call.c.menu_id)
    .where(*matches(menu_recording.c.recording_id), has_menu, is_waiting)
    .limit(1)
)


def is_needed(conn: Connection, recording_id: str) -> bool:
    """Whether calls that are not over have a menu that may play the recording."""
    return conn.execute(_NEEDING, {"recording_id": recording_id}).first() is not None


_ids: Final[Any] = sa.bindparam("ids", expanding=True)
_LOCK_ALL: Final = (
    sa.select(menu.c.id).where(menu.c.id.in_(_ids)).order_by(menu.c.id).with_for_update()
)
_is_used = sa.exists(sa.select(call.c.id).where(call.c.menu_id == menu.c.id, has_menu))
_UNUSED: Final = sa.select(menu.c.id).where(menu.c.id.in_(_ids), ~_is_used)


def delete_unused(conn: Connection, ids: Collection[str]) -> None:
    """Delete those of these menus that no call has any more."""
    for some in in_chunks(sorted(ids)):
        # Locked first: a request with one of them waits, and stores it anew.
        conn.execute(_LOCK_ALL, some)
        unused = {"ids": list(conn.execute(_UNUSED, some).scalars())}
        conn.execute(sa.delete(menu_recording).where(menu_recording.c.menu_id.in_(_ids)), unused)
        conn.execute(sa.delete(menu).where(menu.c.id.in_(_ids)), unused)
