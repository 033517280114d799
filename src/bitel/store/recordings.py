"""Recordings: what a project has uploaded. The audio itself is kept elsewhere, under the id."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from sqlalchemy import Connection, bindparam, insert, select

from bitel.store.schema import recording


@dataclass(frozen=True, slots=True)
class Recording:
    """An uploaded recording. `duration` in seconds, `size` in bytes as uploaded."""

    id: str
    project_id: str
    name: str
    duration: float
    size: int
    created_at: float


def add(conn: Connection, new: Recording) -> None:
    """Remember a recording whose audio is stored."""
    conn.execute(insert(recording).values(asdict(new)))


def find(conn: Connection, project_id: str, recording_id: str) -> Recording | None:
    """The project's recording of that id; None when unknown, another project's, or deleted."""
    row = conn.execute(_FIND, {"id": recording_id, "project_id": project_id}).one_or_none()
    return Recording(**row._mapping) if row else None


_FIND = select(*(c for c in recording.c if c.name != "deleted_at")).where(
    recording.c.id == bindparam("id"),
    recording.c.project_id == bindparam("project_id"),
    recording.c.deleted_at.is_(None),
)
