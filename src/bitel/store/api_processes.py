"""Heartbeats of the processes that answer the API."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Connection, delete, select
from sqlalchemy.dialects import postgresql, sqlite

from bitel.store.schema import api_process


def beat(conn: Connection, process_id: str, name: str, beats: int, now: float) -> dict[str, int]:
    """Write the heartbeat of a process; returns the `beats` of all processes by their ids."""
    dialect = sqlite if conn.dialect.name == "sqlite" else postgresql
    mine = {"beats": beats, "seen_at": now}
    conn.execute(
        dialect.insert(api_process)
        .values(id=process_id, name=name, **mine)
        .on_conflict_do_update(index_elements=[api_process.c.id], set_=mine)
    )
    return {row.id: row.beats for row in conn.execute(select(*api_process.c["id", "beats"]))}


def remove(conn: Connection, processes: Mapping[str, int]) -> None:
    """Remove processes, except those that have sent another heartbeat than these."""
    for process_id, beats in sorted(processes.items()):
        conn.execute(
            delete(api_process).where(api_process.c.id == process_id, api_process.c.beats == beats)
        )
