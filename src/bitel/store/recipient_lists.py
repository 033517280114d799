"""Lists of recipients that projects have uploaded, stored in compressed pieces.

A list is written in several transactions, so that none is long. Until the last one its count is 0,
and it is not found.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy import Connection

from bitel.domain.recipients import Recipient, pack, unpack
from bitel.errors import ConflictError, NotFoundError, PayloadTooLargeError
from bitel.store.schema import recipient_list, recipient_list_piece
from bitel.store.sql_batch import matches, next_rows

MOST_LISTS: Final = 1000
"""Lists of one project."""
MOST_RECIPIENTS: Final = 20_000_000
"""Recipients of all its lists together."""
PIECE: Final = 100
"""Most rows of a table that one transaction of a deletion reads."""


@dataclass(frozen=True, slots=True)
class RecipientList:
    """A list of recipients."""

    id: str
    project_id: str
    name: str
    """Of the uploaded file, up to 255 characters."""
    created_at: float
    recipients: int
    """How many there are; 0 while it is being stored."""
    columns: tuple[str, ...]
    """The names of the variables."""


def check_room(conn: Connection, project_id: str, recipients: int = 0) -> None:
    """Raise PayloadTooLargeError if a further list would exceed the limits of a project."""
    sums = sa.select(
        sa.func.count(), sa.func.coalesce(sa.func.sum(recipient_list.c.recipients), 0)
    ).where(recipient_list.c.project_id == project_id)
    lists, stored = conn.execute(sums).one()
    if lists >= MOST_LISTS:
        raise PayloadTooLargeError(
            f"this project keeps {MOST_LISTS} lists, the most that it may; delete some"
        )
    if stored + recipients > MOST_RECIPIENTS:
        raise PayloadTooLargeError(
            f"this project's lists would have more than {MOST_RECIPIENTS} recipients, the most "
            "that they may; delete some"
        )


def begin(conn: Connection, new: RecipientList) -> None:
    """Add a list without recipients, which is not found until `finish`. Raises as `check_room`."""
    check_room(conn, new.project_id, new.recipients)
    conn.execute(
        sa.insert(recipient_list).values(
            id=new.id,
            project_id=new.project_id,
            name=new.name,
            created_at=new.created_at,
            recipients=0,
            columns=json.dumps(new.columns),
        )
    )


_ADD_PIECE: Final = sa.insert(recipient_list_piece)


def add_pieces(conn: Connection, list_id: str, first: int, packed: Sequence[bytes]) -> None:
    """Add pieces, made by `bitel.domain.recipients.pack`, from position `first` on (0 or more)."""
    for position, each in enumerate(packed, first):
        row = {"list_id": list_id, "position": position, "recipients": each}
        conn.execute(_ADD_PIECE, row)


def finish(conn: Connection, new: RecipientList) -> None:
    """Let a list be found whose pieces have been added.

    Raises ConflictError if it was deleted meanwhile, with its project.
    """
    of_list = sa.update(recipient_list).where(recipient_list.c.id == new.id)
    if not conn.execute(of_list.values(recipients=new.recipients)).rowcount:
        raise ConflictError("the list was deleted while it was being stored")


def abandon(conn: Connection, list_id: str) -> None:
    """Delete a list whose storing failed."""
    _delete(conn, [list_id])


def add(conn: Connection, new: RecipientList, packed: Sequence[bytes]) -> None:
    """Add a list with all of its pieces. Raises as `check_room`."""
    begin(conn, new)
    add_pieces(conn, new.id, 0, packed)
    finish(conn, new)


_LISTS: Final = sa.select(*recipient_list.c).where(recipient_list.c.recipients > 0)
_OF_PROJECT: Final = _LISTS.where(*matches(recipient_list.c.project_id))
_FIND: Final = _OF_PROJECT.where(*matches(recipient_list.c.id))


def find(conn: Connection, project_id: str, list_id: str) -> RecipientList | None:
    """The project's list of that id; None when unknown or another project's."""
    row = conn.execute(_FIND, {"id": list_id, "project_id": project_id}).one_or_none()
    return _list(row) if row else None


_PAGE: Final = next_rows(_OF_PROJECT, recipient_list.c.id)


def pages(
    conn: Connection, project_id: str, after: str | None = None, limit: int = 100
) -> list[RecipientList]:
    """Up to `limit` of the project's lists, the oldest first; `after` is the id to go on."""
    wanted = {"project_id": project_id, "after": after or "", "most": limit}
    return [_list(row) for row in conn.execute(_PAGE, wanted)]


def _list(row: sa.Row[tuple[object, ...]]) -> RecipientList:
    return RecipientList(**{**row._mapping, "columns": tuple(json.loads(row.columns))})


_PIECE: Final = sa.select(recipient_list_piece.c.recipients).where(
    *matches(recipient_list_piece.c.list_id, recipient_list_piece.c.position)
)


def recipients(conn: Connection, project_id: str, list_id: str) -> Iterator[Sequence[Recipient]]:
    """The recipients of a list in the order of its file, a piece of up to 2,500 at a time.

    Raises NotFoundError if the project has no such list, at the first piece or, if it was deleted
    meanwhile, at a later one.
    """
    found = find(conn, project_id, list_id)
    if found is None:
        raise _no_list()
    position, left = 0, found.recipients
    while left > 0:
        wanted = {"list_id": list_id, "position": position}
        packed = conn.execute(_PIECE, wanted).scalar_one_or_none()
        if packed is None:
            raise _no_list()
        piece = unpack(bytes(packed))
        yield piece
        left -= len(piece)
        position += 1


_DELETE_PIECES: Final = sa.delete(recipient_list_piece).where(
    recipient_list_piece.c.list_id.in_(sa.bindparam("ids", expanding=True))
)
_DELETE_LISTS: Final = sa.delete(recipient_list).where(
    recipient_list.c.id.in_(sa.bindparam("ids", expanding=True))
)


def _delete(conn: Connection, ids: Sequence[str]) -> None:
    conn.execute(_DELETE_PIECES, {"ids": ids})
    conn.execute(_DELETE_LISTS, {"ids": ids})


def remove(conn: Connection, project_id: str, list_id: str) -> RecipientList:
    """Delete a list and return it. Calls that were placed with it stay.

    Raises NotFoundError where the project has none of that id.
    """
    wanted = {"id": list_id, "project_id": project_id}
    row = conn.execute(_FIND.with_for_update(), wanted).one_or_none()
    if row is None:
        raise _no_list()
    _delete(conn, [list_id])
    return _list(row)


def _no_list() -> NotFoundError:
    return NotFoundError("this project has no list of that id")


_OLD: Final = (
    sa.select(recipient_list.c.id)
    .where(recipient_list.c.id > sa.bindparam("after"))
    .where(recipient_list.c.created_at < sa.bindparam("before"))
    .order_by(recipient_list.c.id)
    .limit(1)
)


def delete_old(conn: Connection, before: float, after: str) -> tuple[str, int]:
    """Delete one list of before a time (Unix seconds), whole or not.

    `after` is an id after which it is. Returns its id, empty if there is none, and how many were
    deleted.
    """
    found = conn.execute(_OLD, {"before": before, "after": after}).scalar_one_or_none()
    if found is None:
        return "", 0
    _delete(conn, [found])
    return found, 1


_ANY_OF_PROJECT: Final = (
    sa.select(recipient_list.c.id).where(*matches(recipient_list.c.project_id)).limit(1)
)


def delete_of_project(conn: Connection, project_id: str) -> bool:
    """Delete one list of a project, whole or not; returns whether there was one."""
    found = conn.execute(_ANY_OF_PROJECT, {"project_id": project_id}).scalar_one_or_none()
    if found is not None:
        _delete(conn, [found])
    return found is not None


_pieces = recipient_list_piece.c
_NEXT_PIECE: Final = (
    sa.select(_pieces.list_id, _pieces.position, _pieces.recipients)
    .join(recipient_list)
    .where(
        *matches(recipient_list.c.project_id),
        sa.tuple_(_pieces.list_id, _pieces.position)
        > sa.tuple_(sa.bindparam("list_id"), sa.bindparam("position")),
    )
    .order_by(_pieces.list_id, _pieces.position)
    .limit(1)
)

Place = tuple[str, int]
"""A piece: its list, and its position in it."""

IsNumber = Callable[[str], bool]
"""Whether a text is a certain phone number."""


def erase_number(
    conn: Connection, project_id: str, is_number: IsNumber, after: Place
) -> tuple[Place | None, int]:
    """Remove a number from the piece of the project's lists that follows the place `after`.

    Its recipients are deleted, and variables of others that are the number become empty. Returns
    the place of the piece, None after the last one, and how many recipients were changed.
    """
    list_id, position = after
    wanted = {"project_id": project_id, "list_id": list_id, "position": position}
    row = conn.execute(_NEXT_PIECE, wanted).one_or_none()
    if row is None:
        return None, 0
    place = (row.list_id, row.position)
    before = unpack(bytes(row.recipients))
    others = [each for each in before if not is_number(each.phone_number)]
    kept = [_without(each, is_number) for each in others]
    removed = len(before) - len(kept)
    changed = removed + sum(old is not new for old, new in zip(others, kept, strict=True))
    if changed:
        is_piece = (_pieces.list_id == place[0]) & (_pieces.position == place[1])
        conn.execute(sa.update(recipient_list_piece).where(is_piece).values(recipients=pack(kept)))
        of_list = recipient_list.c.id == row.list_id
        left = recipient_list.c.recipients - removed
        # A list that is still being stored has no count yet.
        is_stored = recipient_list.c.recipients > 0
        conn.execute(sa.update(recipient_list).where(of_list, is_stored).values(recipients=left))
    return place, changed


def _without(recipient: Recipient, is_number: IsNumber) -> Recipient:
    if not any(map(is_number, recipient.variables.values())):
        return recipient
    variables = {
        name: "" if is_number(value) else value for name, value in recipient.variables.items()
    }
    return recipient._replace(variables=variables)
