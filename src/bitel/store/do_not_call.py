"""Do-not-call lists: numbers that a project must not call."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from sqlalchemy import Connection, bindparam, delete, select, text

from bitel.store.schema import do_not_call
from bitel.store.sql_batch import in_chunks, next_rows

REASON: Final = "on the do-not-call list"
"""The reason of calls to such numbers, which end as ERROR."""
_ADD = text(
    "INSERT INTO do_not_call (project_id, e164) VALUES (:project_id, :e164) "
    "ON CONFLICT (project_id, e164) DO NOTHING"
)


def add(conn: Connection, project_id: str, e164: str) -> bool:
    """Put a number, in E.164 with its plus sign, on the list. False: it was there."""
    return conn.execute(_ADD, {"project_id": project_id, "e164": e164}).rowcount == 1


def add_many(conn: Connection, project_id: str, numbers: Collection[str]) -> int:
    """Put numbers, in E.164 with their plus sign, on the list; returns how many were not there."""
    added = 0
    for each in in_chunks(dict.fromkeys(numbers)):
        rows = [{"project_id": project_id, "e164": e164} for e164 in each["ids"]]
        known = conn.execute(_AMONG, {"project_id": project_id, **each}).scalars()
        added += len(rows) - len(set(known))
        conn.execute(_ADD, rows)
    return added


_of_project = do_not_call.c.project_id == bindparam("project_id")


def remove(conn: Connection, project_id: str, e164: str) -> bool:
    """Take a number off the list. False: it was not there."""
    is_entry = (do_not_call.c.project_id == project_id) & (do_not_call.c.e164 == e164)
    return conn.execute(delete(do_not_call).where(is_entry)).rowcount == 1


_LISTING = next_rows(select(do_not_call.c.e164).where(_of_project), do_not_call.c.e164)


def listing(conn: Connection, project_id: str, after: str = "", limit: int = 1000) -> list[str]:
    """Up to `limit` numbers of the list after `after`, in text order."""
    wanted = {"project_id": project_id, "after": after, "most": limit}
    return list(conn.execute(_LISTING, wanted).scalars())


_AMONG = select(do_not_call.c.e164).where(
    _of_project, do_not_call.c.e164.in_(bindparam("ids", expanding=True))
)


def contains_many(conn: Connection, project_id: str, numbers: Collection[str]) -> set[str]:
    """The numbers that are on the project's list, of those given."""
    if not numbers or not listing(conn, project_id, limit=1):
        return set()  # the usual case: no need to look up ten thousand numbers
    wanted = ({"project_id": project_id, **ids} for ids in in_chunks(set(numbers)))
    return {e164 for each in wanted for e164 in conn.execute(_AMONG, each).scalars()}
