"""Requests for SIP traces, by which one machine gets a trace from another by way of the database.

Traces are in files of the machine that dialled. `bitel trace` stores a request; each dialer process
looks for requests, and stores a reply with what it has of the call. Both are deleted soon.
"""

from __future__ import annotations

import json
import zlib
from typing import Final, NamedTuple

from sqlalchemy import Connection, delete, insert, select

from bitel.domain.ids import new_id
from bitel.store.schema import trace_reply, trace_request

KEPT: Final = 60.0
"""Seconds for which requests are kept."""
LARGEST: Final = 4 * 1024 * 1024
"""Bytes of a reply, compressed; a larger one is left out."""


_TOO_LARGE: Final = "the trace is too large"


class TraceRequest(NamedTuple):
    """A request for the trace of a call."""

    id: str
    call_id: str


class TraceLines(NamedTuple):
    """The messages of a call as text."""

    short: list[str]
    """A line for each."""
    full: list[str]
    """Each as a whole."""


def ask(conn: Connection, call_id: str, now: float) -> TraceRequest:
    """Store a request; deletes old ones."""
    forget(conn, now)
    made = TraceRequest(new_id(now), call_id)
    conn.execute(insert(trace_request).values(id=made.id, call_id=call_id, at=now))
    return made


def unanswered(conn: Connection, worker: str, now: float) -> list[TraceRequest]:
    """The requests that the process has not replied to yet."""
    replied = select(trace_reply.c.request_id).where(trace_reply.c.worker == worker)
    wanted = select(trace_request.c.id, trace_request.c.call_id).where(
        trace_request.c.at > now - KEPT, trace_request.c.id.not_in(replied)
    )
    return [TraceRequest(*row) for row in conn.execute(wanted)]


def reply(conn: Connection, request: TraceRequest, worker: str, lines: TraceLines) -> None:
    """Store what a process has of the call, if the request is still there."""
    text = zlib.compress(json.dumps(lines).encode())
    if len(text) > LARGEST:
        text = zlib.compress(json.dumps(TraceLines([_TOO_LARGE], [_TOO_LARGE])).encode())
    found = select(trace_request.c.id).where(trace_request.c.id == request.id).with_for_update()
    if conn.execute(found).first() is not None:
        values = {"request_id": request.id, "worker": worker, "lines": text}
        conn.execute(insert(trace_reply).values(values))


def replies(conn: Connection, request: TraceRequest) -> dict[str, TraceLines]:
    """The replies by process."""
    rows = conn.execute(
        select(trace_reply.c.worker, trace_reply.c.lines).where(
            trace_reply.c.request_id == request.id
        )
    )
    return {row.worker: TraceLines(*json.loads(zlib.decompress(row.lines))) for row in rows}


def remove(conn: Connection, request: TraceRequest) -> None:
    """Delete a request with its replies."""
    conn.execute(delete(trace_reply).where(trace_reply.c.request_id == request.id))
    conn.execute(delete(trace_request).where(trace_request.c.id == request.id))


def forget(conn: Connection, now: float) -> None:
    """Delete old requests with their replies."""
    old = select(trace_request.c.id).where(trace_request.c.at <= now - KEPT)
    conn.execute(delete(trace_reply).where(trace_reply.c.request_id.in_(old)))
    conn.execute(delete(trace_request).where(trace_request.c.at <= now - KEPT))
