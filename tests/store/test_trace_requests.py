"""Requests for traces: each process replies once, and nothing stays."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sqlalchemy import func, select

from bitel.domain.ids import new_id
from bitel.store import trace_requests
from bitel.store.schema import trace_reply, trace_request
from bitel.store.trace_requests import KEPT, TraceLines

if TYPE_CHECKING:
    from tests.support.store_world import World

LINES = TraceLines(["→ INVITE سلام"], ["→ INVITE\n    Via: x\n"])


def left(world: World) -> int:
    """Rows that are stored."""
    counts = [select(func.count()).select_from(each) for each in (trace_request, trace_reply)]
    found = world.do(lambda conn: [conn.execute(each).scalar_one() for each in counts])
    return sum(found)


def test_each_process_replies_once(world: World) -> None:
    call_id, now = new_id(world.clock()), world.clock()
    request = world.do(lambda conn: trace_requests.ask(conn, call_id, now))
    for worker, lines in (("a", TraceLines([], [])), ("b", LINES)):
        assert world.do(
            lambda conn, one=worker: trace_requests.unanswered(conn, one, now)  # type: ignore[misc]
        ) == [request]
        world.do(
            lambda conn, one=worker, has=lines: trace_requests.reply(conn, request, one, has)  # type: ignore[misc]
        )
        assert (
            world.do(
                lambda conn, one=worker: trace_requests.unanswered(conn, one, now)  # type: ignore[misc]
            )
            == []
        )
    found = world.do(lambda conn: trace_requests.replies(conn, request))
    assert found == {"a": TraceLines([], []), "b": LINES}
    world.do(lambda conn: trace_requests.remove(conn, request))
    assert left(world) == 0
    # A reply that comes after that is left out.
    world.do(lambda conn: trace_requests.reply(conn, request, "c", LINES))
    assert left(world) == 0


def test_old_requests_are_neither_replied_to_nor_kept(world: World) -> None:
    now = world.clock()
    request = world.do(lambda conn: trace_requests.ask(conn, "c" * 32, now))
    world.do(lambda conn: trace_requests.reply(conn, request, "a", LINES))
    later = now + KEPT + 0.1
    assert world.do(lambda conn: trace_requests.unanswered(conn, "b", later)) == []
    world.do(lambda conn: trace_requests.forget(conn, later))
    assert left(world) == 0


def test_a_trace_that_is_too_large_says_so(world: World) -> None:
    request = world.do(lambda conn: trace_requests.ask(conn, "c" * 32, world.clock()))
    huge = TraceLines([os.urandom(trace_requests.LARGEST).hex()], [])
    world.do(lambda conn: trace_requests.reply(conn, request, "a", huge))
    found = world.do(lambda conn: trace_requests.replies(conn, request))
    assert found["a"].short == ["the trace is too large"]
