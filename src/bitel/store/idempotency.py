"""Idempotency keys: a repeated request is carried out once, and gets the same answer.

Call `first_answer`, then place the calls, then `keep`, all in one transaction. The key's row is
inserted first: another request with the same key, also in another process, waits there until the
transaction of the first is over. Work that raises rolls back its key too.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, delete, select, text, tuple_, update

from bitel.errors import ConflictError, UnavailableError
from bitel.store.schema import idempotency_key
from bitel.store.sql_batch import matches

_TRIES: Final = 10
LIFETIME: Final = 24 * 3600.0
"""Seconds for which an answer is kept."""

_row = idempotency_key.c
_INSERT: Final = text(
    """
    INSERT INTO idempotency_key (project_id, key, body_hash, created_at)
    VALUES (:project_id, :key, :body_hash, :now)
    ON CONFLICT (project_id, key) DO NOTHING
    """
)
_FIND: Final = select(idempotency_key).where(*matches(_row.project_id, _row.key))
_LOCK: Final = _FIND.with_for_update()
_is_key = (_row.project_id == bindparam("the_project"), _row.key == bindparam("the_key"))
_REPLACE: Final = (
    update(idempotency_key)
    .where(*_is_key)
    .values(body_hash=bindparam("hash"), answer=None, created_at=bindparam("at"))
)
_KEEP: Final = update(idempotency_key).where(*_is_key).values(answer=bindparam("first"))
_OLD: Final = (
    select(_row.project_id, _row.key)
    .where(_row.created_at <= bindparam("before"))
    .limit(bindparam("most"))
)
_FORGET: Final = delete(idempotency_key).where(
    tuple_(_row.project_id, _row.key).in_(bindparam("keys", expanding=True)),
    _row.created_at <= bindparam("before"),
)


def find_answer(
    conn: Connection, project_id: str, key: str, body_hash: str, now: float
) -> bytes | None:
    """The stored answer to an earlier request with this key; None where there is none.

    Raises ConflictError as `first_answer` does.
    """
    row = conn.execute(_FIND, {"project_id": project_id, "key": key}).one_or_none()
    if row is None or row.created_at <= now - LIFETIME:
        return None
    return _answer(row, body_hash)


def first_answer(
    conn: Connection, project_id: str, key: str, body_hash: str, now: float
) -> bytes | None:
    """The answer to the first request with this key; None: this is the first, carry it out.

    `key` has up to 255 characters, `body_hash` up to 64. Raises ConflictError when the key came
    with another body in the last 24 hours.
    """
    wanted = {"project_id": project_id, "key": key, "body_hash": body_hash, "now": now}
    row = None
    for _ in range(_TRIES):
        if conn.execute(_INSERT, wanted).rowcount == 1:
            return None
        row = conn.execute(_LOCK, wanted).one_or_none()
        if row is not None:
            break
        # An old key, which another transaction deleted between the two statements.
    if row is None:
        raise UnavailableError("the Idempotency-Key is being used by others; send it again")
    if row.created_at <= now - LIFETIME:
        is_key = {"the_project": project_id, "the_key": key}
        conn.execute(_REPLACE, {**is_key, "hash": body_hash, "at": now})
        return None
    return _answer(row, body_hash)


def _answer(row: Row[*tuple[Any, ...]], body_hash: str) -> bytes | None:
    if row.body_hash != body_hash:
        raise ConflictError("the Idempotency-Key was used with another body less than a day ago")
    answer: bytes | None = row.answer
    return answer


def keep(conn: Connection, project_id: str, key: str, answer: bytes) -> None:
    """Store the answer to the first request with this key."""
    conn.execute(_KEEP, {"the_project": project_id, "the_key": key, "first": answer})


def forget_old(conn: Connection, now: float, limit: int = 1000) -> int:
    """Delete up to `limit` keys that are older than `LIFETIME`; returns how many."""
    old = conn.execute(_OLD, {"before": now - LIFETIME, "most": limit}).all()
    if old:
        # A key that was used again since it was read is new.
        conn.execute(_FORGET, {"keys": [tuple(row) for row in old], "before": now - LIFETIME})
    return len(old)
