"""Numbers that a project must not call, whoever asks for it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from sqlalchemy import Connection, bindparam, delete, select, text

from bitel.store.schema import do_not_call
from bitel.store.sql_batch import in_chunks

REASON: Final = "on the do-not-call list"
"""Why a call to such a number ends as an ERROR."""


def add(conn: Connection, project_id: str, e164: str) -> bool:
    """Put a number, in E.164 with its plus sign, on the list. False: it was there."""
    return conn.execute(_ADD, {"project_id": project_id, "e164": e164}).rowcount == 1


def remove(conn: Connection, project_id: str, e164: str) -> bool:
    """Take a number off the list. False: it was not there."""
    return conn.execute(_REMOVE, {"project_id": project_id, "e164": e164}).rowcount == 1


def listing(conn: Connection, project_id: str, after: str = "", limit: int = 1000) -> list[str]:
    """Up to `limit` numbers of the list that come after `after`, in their order as text."""
    wanted = {"project_id": project_id, "after": after, "most": limit}
    return list(conn.execute(_LISTING, wanted).scalars())


def contains_many(conn: Connection, project_id: str, numbers: Collection[str]) -> set[str]:
    """Those of the numbers that are on the project's list."""
    if not numbers or not listing(conn, project_id, limit=1):
        return set()  # for most projects: ten thousand numbers need not be looked up
    found: set[str] = set()
    for ids in in_chunks(set(numbers)):
        found.update(conn.execute(_AMONG, {"project_id": project_id, **ids}).scalars())
    return found


_ADD = text(
    "INSERT INTO do_not_call (project_id, e164) VALUES (:project_id, :e164) "
    "ON CONFLICT (project_id, e164) DO NOTHING"
)
_of_project = do_not_call.c.project_id == bindparam("project_id")
_REMOVE = delete(do_not_call).where(_of_project, do_not_call.c.e164 == bindparam("e164"))
_LISTING = (
    select(do_not_call.c.e164)
    .where(_of_project, do_not_call.c.e164 > bindparam("after"))
    .order_by(do_not_call.c.e164)
    .limit(bindparam("most"))
)
_AMONG = select(do_not_call.c.e164).where(
    _of_project, do_not_call.c.e164.in_(bindparam("ids", expanding=True))
)
