"""Recordings of a project, uploaded or synthesized.

Their audio is in the storage of `bitel.recordings`, under the recording's id.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Literal

from sqlalchemy import Connection, bindparam, func, select, update
from sqlalchemy.dialects import postgresql, sqlite

from bitel.domain.pricing import day_of
from bitel.errors import ConflictError, NotFoundError, PayloadTooLargeError
from bitel.store import menus
from bitel.store.schema import (
    call,
    has_machine_message,
    has_speech_key,
    is_waiting,
    recording,
)
from bitel.store.sql_batch import in_chunks, matches, next_rows

Kind = Literal["upload", "speech"]


@dataclass(frozen=True, slots=True)
class Recording:
    """A recording. `duration` in seconds, `size` in bytes as uploaded."""

    id: str
    project_id: str
    name: str
    duration: float
    size: int
    created_at: float
    kind: Kind = "upload"
    speech_key: str | None = None
    """Hash of the spoken text and voice, up to 64 characters; None for an upload."""


@dataclass(frozen=True, slots=True)
class Quota:
    """Limits of all recordings of one project: their number, and their bytes as stored."""

    recordings: int
    stored_bytes: int


STORED_BYTES_A_SECOND = 2 * 8000
"""Bytes in the storage of a second of audio: each sample is stored in both G.711 laws."""
_NOTE_USE = (
    update(recording)
    .where(
        recording.c.id.in_(bindparam("ids", expanding=True)),
        recording.c.used_on < bindparam("today"),
    )
    .values(used_on=bindparam("today"))
)


def note_use(conn: Connection, ids: Collection[str], now: float) -> None:
    """Store that calls with these recordings were placed today."""
    today = day_of(now)
    for some in in_chunks(ids):
        conn.execute(_NOTE_USE, {**some, "today": today})


def check_room(conn: Connection, project_id: str, quota: Quota, seconds: float = 0.0) -> None:
    """Raises PayloadTooLargeError where a further recording of `seconds` would exceed the quota."""
    sizes = select(func.count(), func.coalesce(func.sum(recording.c.duration), 0.0)).where(
        recording.c.project_id == project_id, recording.c.deleted_at.is_(None)
    )
    count, stored = conn.execute(sizes).one()
    if count >= quota.recordings:
        raise PayloadTooLargeError(
            f"this project keeps {count} recordings, the most that it may (limits.recordings); "
            "remove some that no call needs"
        )
    if (float(stored) + seconds) * STORED_BYTES_A_SECOND > quota.stored_bytes:
        raise PayloadTooLargeError(
            f"this project's recordings would take more than {quota.stored_bytes >> 20} MiB, the "
            "most that they may (limits.storage_megabytes); remove some that no call needs"
        )


def add(conn: Connection, new: Recording, quota: Quota | None = None) -> Recording:
    """Add a recording whose audio is stored, and return it.

    If the same speech was added meanwhile, that recording is returned instead, and `new` is not
    needed. Raises as `check_room` does.
    """
    if quota is not None:
        check_room(conn, new.project_id, quota, new.duration)
    dialect = sqlite if conn.dialect.name == "sqlite" else postgresql
    added = conn.execute(
        dialect.insert(recording)
        .values(asdict(new) | {"used_on": day_of(new.created_at)})
        .on_conflict_do_nothing(
            index_elements=[recording.c.project_id, recording.c.speech_key],
            index_where=has_speech_key,
        )
    )
    if added.rowcount == 1 or new.speech_key is None:
        return new
    first = find_by_speech_key(conn, new.project_id, new.speech_key)
    assert first is not None
    return first


_ALIVE = select(*(c for c in recording.c if c.name not in ("deleted_at", "used_on"))).where(
    recording.c.deleted_at.is_(None)
)
_OF_PROJECT = _ALIVE.where(*matches(recording.c.project_id))
_FIND = _OF_PROJECT.where(*matches(recording.c.id))


def find(conn: Connection, project_id: str, recording_id: str) -> Recording | None:
    """The project's recording of that id; None when unknown, another project's, or deleted."""
    row = conn.execute(_FIND, {"id": recording_id, "project_id": project_id}).one_or_none()
    return Recording(**row._mapping) if row else None


_DURATION = select(recording.c.duration).where(
    *matches(recording.c.id), recording.c.deleted_at.is_(None)
)


def duration(conn: Connection, recording_id: str) -> float | None:
    """Duration in seconds of any project's recording; None when unknown or deleted."""
    seconds: float | None = conn.execute(_DURATION, {"id": recording_id}).scalar_one_or_none()
    return seconds


_FIND_SPEECH = _OF_PROJECT.where(*matches(recording.c.speech_key))


def find_by_speech_key(conn: Connection, project_id: str, speech_key: str) -> Recording | None:
    """The project's recording of that speech, if there is one that is not deleted."""
    wanted = {"speech_key": speech_key, "project_id": project_id}
    row = conn.execute(_FIND_SPEECH, wanted).one_or_none()
    return Recording(**row._mapping) if row else None


_PAGE = next_rows(_OF_PROJECT, recording.c.id)


def page(
    conn: Connection, project_id: str, after: str | None = None, limit: int = 100
) -> list[Recording]:
    """Up to `limit` of the project's recordings, the oldest first; `after` is the id to go on."""
    wanted = {"project_id": project_id, "after": after or "", "most": limit}
    return [Recording(**row._mapping) for row in conn.execute(_PAGE, wanted)]


_NEEDED = select(call.c.id).where(*matches(call.c.recording_id), is_waiting).limit(1)
_NEEDED_FOR_MACHINES = (
    select(call.c.id)
    .where(call.c.machine_recording_id == bindparam("recording_id"), has_machine_message)
    .where(is_waiting)
    .limit(1)
)


def remove(conn: Connection, project_id: str, recording_id: str, now: float) -> None:
    """Delete a recording; its audio may be removed once this is durable.

    Raises NotFoundError where the project has none of that id, and ConflictError while calls that
    are not over need it.
    """
    # Locked against calls that are placed at this moment, which lock their recordings.
    wanted = {"id": recording_id, "project_id": project_id}
    if conn.execute(_FIND.with_for_update(), wanted).first() is None:
        raise NotFoundError("this project has no recording of that id")
    needing = (_NEEDED, _NEEDED_FOR_MACHINES)
    wanted = {"recording_id": recording_id}
    is_needed = any(conn.execute(each, wanted).first() is not None for each in needing)
    if is_needed or menus.is_needed(conn, recording_id):
        raise ConflictError("calls that are not over need the recording; cancel them or wait")
    gone = update(recording).where(recording.c.id == recording_id)
    conn.execute(gone.values(deleted_at=now, speech_key=None))


_LIVE = select(recording.c.id).where(
    recording.c.id.in_(bindparam("ids", expanding=True)), recording.c.deleted_at.is_(None)
)


def live(conn: Connection, ids: Collection[str]) -> set[str]:
    """The ids of recordings that exist; stored audio of the others is orphaned.

    Audio is stored before its recording is added, so recent audio is not orphaned yet.
    """
    found = (conn.execute(_LIVE, some).scalars() for some in in_chunks(ids))
    return {each for some in found for each in some}
