"""Idempotency keys: a request that comes twice is carried out once, and answered alike.

`first_answer`, then what places the calls, then `keep`, all in one transaction. The key's row is
inserted first: whoever else brings the same key, be it in another process, waits there until the
first one's transaction is over. Work that raises takes its key back with it.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import Connection, Row, bindparam, delete, select, text, tuple_, update

from bitel.errors import ConflictError, UnavailableError
from bitel.store.schema import idempotency_key

_TRIES: Final = 10
LIFETIME: Final = 24 * 3600.0
"""Seconds for which an answer is kept."""


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
        # Too old, and deleted by another transaction between the two statements.
    if row is None:
        raise UnavailableError("the Idempotency-Key is being used by others; send it again")
    if row.created_at <= now - LIFETIME:
        conn.execute(_REPLACE, {"the_project": project_id, "the_key": key, "hash": body_hash,
                                "at": now})  # fmt: skip
        return None
    return _answer(row, body_hash)


def _answer(row: Row[*tuple[Any, ...]], body_hash: str) -> bytes | None:
    if row.body_hash != body_hash:
        raise ConflictError("the Idempotency-Key was used with another body less than a day ago")
    answer: bytes | None = row.answer
    return answer


def keep(conn: Connection, project_id: str, key: str, answer: bytes) -> None:
    """Remember the answer to the first request with this key."""
    conn.execute(_KEEP, {"the_project": project_id, "the_key": key, "first": answer})


def forget_old(conn: Connection, now: float, limit: int = 1000) -> int:
    """Delete up to `limit` keys that are too old to count; how many it were."""
    old = conn.execute(_OLD, {"before": now - LIFETIME, "most": limit}).all()
    if old:
        # A key that was used anew since it was read here is young again.
        conn.execute(_FORGET, {"keys": [tuple(row) for row in old], "before": now - LIFETIME})
    return len(old)


_INSERT = text(
    """
    INSERT INTO idempotency_key (project_id, key, body_hash, created_at)
    VALUES (:project_id, :key, :body_hash, :now)
    ON CONFLICT (project_id, key) DO NOTHING
    """
)
_FIND = select(idempotency_key).where(
    idempotency_key.c.project_id == bindparam("project_id"),
    idempotency_key.c.key == bindparam("key"),
)
_LOCK = _FIND.with_for_update()
_the_key = (
    idempotency_key.c.project_id == bindparam("the_project"),
    idempotency_key.c.key == bindparam("the_key"),
)
_REPLACE = (
    update(idempotency_key)
    .where(*_the_key)
    .values(body_hash=bindparam("hash"), answer=None, created_at=bindparam("at"))
)
_KEEP = update(idempotency_key).where(*_the_key).values(answer=bindparam("first"))
_is_old = idempotency_key.c.created_at <= bindparam("before")
_OLD = (
    select(idempotency_key.c.project_id, idempotency_key.c.key)
    .where(_is_old)
    .limit(bindparam("most"))
)
_FORGET = delete(idempotency_key).where(
    tuple_(idempotency_key.c.project_id, idempotency_key.c.key).in_(
        bindparam("keys", expanding=True)
    ),
    _is_old,
)
