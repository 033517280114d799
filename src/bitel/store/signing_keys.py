"""Keys that sign API tokens, as they are stored: encrypted, or in plain form."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, NamedTuple

from sqlalchemy import Connection, or_, select, text, update
from sqlalchemy.dialects import postgresql, sqlite

from bitel.store.schema import signing_key

_LOCK: Final = text("LOCK TABLE signing_key IN SHARE ROW EXCLUSIVE MODE")


class StoredKey(NamedTuple):
    """A row of `signing_key`. Times are Unix seconds by the system clock."""

    id: str
    created_at: float
    retired_at: float | None
    """Its tokens are refused from then on; None: it is in use."""
    wrapping: str | None
    """How `material` is encrypted; None: it is the key itself."""
    material: bytes


def lock(conn: Connection) -> None:
    """Let one transaction at a time add keys; others may read them meanwhile."""
    if conn.dialect.name == "postgresql":  # SQLite has one writer at a time
        conn.execute(_LOCK)


def listing(conn: Connection) -> list[StoredKey]:
    """All keys, the newest first."""
    newest_first = (signing_key.c.created_at.desc(), signing_key.c.id.desc())
    rows = conn.execute(select(*signing_key.c[StoredKey._fields]).order_by(*newest_first))
    return [StoredKey._make(row) for row in rows]


def add(conn: Connection, key: StoredKey) -> None:
    """Store a key, unless there is one with its id."""
    dialect = sqlite if conn.dialect.name == "sqlite" else postgresql
    conn.execute(dialect.insert(signing_key).values(**key._asdict()).on_conflict_do_nothing())


def retire(conn: Connection, ids: Collection[str], at: float) -> None:
    """Refuse the tokens of these keys from `at` on; those that are refused earlier stay so."""
    is_later = or_(signing_key.c.retired_at.is_(None), signing_key.c.retired_at > at)
    conn.execute(
        update(signing_key).where(signing_key.c.id.in_(ids), is_later).values(retired_at=at)
    )


def replace_material(conn: Connection, key_id: str, wrapping: str | None, material: bytes) -> None:
    """Store the same key in another form."""
    conn.execute(
        update(signing_key)
        .where(signing_key.c.id == key_id)
        .values(wrapping=wrapping, material=material)
    )
