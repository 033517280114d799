"""What is counted of calls, and what waits: exact, and only what was stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Connection

from bitel.domain.calls import CallStatus, Lane
from bitel.store import database as store
from bitel.store import endings, monitoring, projects
from bitel.store.endings import CallEnd
from bitel.store.monitoring import Queue
from tests.support import call_rows

if TYPE_CHECKING:
    from tests.support.store_world import World


def test_calls_are_counted_as_they_are_placed_and_end(world: World) -> None:
    ids = [world.place(lane=lane) for lane in (Lane.OTP, Lane.BATCH, Lane.BATCH)]
    ends = [CallEnd(ids[0], CallStatus.NORMAL)]
    ends += [CallEnd(each, CallStatus.EXPIRED) for each in ids[1:]]
    world.do(lambda conn: endings.end_calls(conn, ends, world.clock()))
    # They are final by now, and don't end again.
    world.do(lambda conn: endings.end_calls(conn, ends, world.clock()))
    assert world.database.stats.calls == {
        ("placed", "OTP"): 1,
        ("placed", "BATCH"): 2,
        ("ended", "NORMAL"): 1,
        ("ended", "EXPIRED"): 2,
    }


def test_what_is_undone_is_not_counted(world: World) -> None:
    def undone(conn: Connection) -> None:
        call_rows.place(conn, [world.new_call()])
        raise RuntimeError("a fault")

    with pytest.raises(RuntimeError):
        world.do(undone)
    assert world.database.stats.calls == {}
    world.place()
    assert world.database.stats.calls == {("placed", "SINGLE"): 1}


def test_what_runs_again_is_counted_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy.exc import OperationalError

    from bitel.store import db_errors

    tries = []

    def deadlocked_once(conn: Connection) -> None:
        call_rows.place(conn, [world.new_call()])
        tries.append(1)
        if len(tries) == 1:
            raise OperationalError("deadlock", {}, Exception("deadlock"))

    real = db_errors.classify
    monkeypatch.setattr(
        db_errors,
        "classify",
        lambda error: db_errors.Fault.AGAIN if isinstance(error, OperationalError) else real(error),
    )
    world.do(deadlocked_once)
    assert len(tries) == 2
    assert world.database.stats.calls == {("placed", "SINGLE"): 1}


def test_other_threads_count_for_themselves() -> None:
    store._take_counts()
    store.count_calls("ended", "NORMAL", 3)
    assert store._take_counts() == {("ended", "NORMAL"): 3}
    assert store._take_counts() == {}


def test_what_waits(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def waiting() -> monitoring.Waiting:
        return world.database.read_now(lambda conn: monitoring.waiting(conn, ["main", "spare"]))

    assert waiting() == monitoring.Waiting({"main": Queue(0, None), "spare": Queue(0, None)}, 0)
    began = world.clock()
    world.place()
    world.clock.advance(30.0)
    world.place()
    world.place(dialer_id="spare")
    lease = world.take_over()
    assert waiting().queues == {"main": Queue(2, began), "spare": Queue(1, began + 30.0)}
    monkeypatch.setattr(monitoring, "MOST", 1)
    assert waiting().queues["main"].waiting == 1
    monkeypatch.undo()
    assert len(world.claim(lease)) == 2
    assert waiting().queues["main"] == Queue(0, None)


def test_webhooks_that_wait(world: World) -> None:
    world.do(
        lambda conn: projects.change(
            conn,
            world.project_id,
            webhook_url="https://a.example/",
            webhook_secret="whsec_eA==",
        )
    )
    ids = [world.place() for _ in range(3)]
    ends = [CallEnd(each, CallStatus.NORMAL) for each in ids]
    world.do(lambda conn: endings.end_calls(conn, ends, world.clock()))
    assert world.database.read_now(lambda conn: monitoring.waiting(conn, [])).webhooks == 3
