"""Pauses: what is not claimed meanwhile, and what becomes of calls of before a backup."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from bitel.domain.calls import CallStatus, Lane
from bitel.store import claims, pausing
from bitel.store.pausing import Pause
from tests.support.factories import answered

if TYPE_CHECKING:
    from tests.support.store_world import World

SCOPES = ("service", "dialer", "project")


def paused(world: World, scope: str, target: str = "", **more: bool) -> bool:
    new = Pause(scope, target, "for lunch", world.clock(), **more)  # type: ignore[arg-type]
    return world.do(lambda conn: pausing.add(conn, new))


def target_of(world: World, scope: str) -> str:
    return {"service": "", "dialer": "main", "project": world.project_id}[scope]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("lane", list(Lane))
def test_what_is_paused_begins_no_attempt(world: World, scope: str, lane: Lane) -> None:
    target = target_of(world, scope)
    world.place(lane=lane)
    lease = world.take_over()
    assert paused(world, scope, target)
    assert not paused(world, scope, target), "once"
    assert world.claim(lease) == []
    found = world.do(lambda conn: pausing.remove(conn, scope, target))  # type: ignore[arg-type]
    assert found is not None
    assert (found.scope, found.target, found.reason, found.at) == (
        *(scope, target, "for lunch"),
        world.clock(),
    )
    assert len(world.claim(lease)) == 1
    assert world.do(lambda conn: pausing.remove(conn, scope, target)) is None  # type: ignore[arg-type]


def test_others_go_on(world: World) -> None:
    other = world.another("other")
    world.place()
    theirs = other.place()
    lease = world.take_over()
    paused(world, "project", world.project_id)
    paused(world, "dialer", "another")
    assert [claim.call_id for claim in world.claim(lease)] == [theirs]


def test_what_waits_expires_meanwhile(world: World) -> None:
    call = world.place(expires_at=world.clock() + 5)
    paused(world, "service")
    world.clock.advance(6)
    now = world.clock()
    assert world.do(lambda conn: claims.expire(conn, "main", now)) == 1
    assert world.call(call).status is CallStatus.EXPIRED


def test_only_lanes_that_may_run_make_a_call_due(world: World) -> None:
    now = world.clock()
    world.place(lane=Lane.BATCH)

    def due(*lanes: Lane) -> float | None:
        return world.do(lambda conn: claims.next_due(conn, "main", world.clock(), lanes)).due_at

    assert due(Lane.OTP) is None
    assert due(*Lane) == now
    world.clock.advance(3)
    world.place(lane=Lane.OTP)
    assert due(Lane.OTP) == now + 3
    assert due(*Lane) == now
    expires_at = world.do(
        lambda conn: claims.next_due(conn, "main", world.clock(), (Lane.OTP,))
    ).expires_at
    assert expires_at == now + 14_400, "of any lane, since what expires must end"


# A database from a backup


def test_a_database_that_does_not_know_the_mark_pauses_the_service(world: World) -> None:
    world.place()
    lease = world.take_over()
    [claim] = world.claim(lease)
    newest = claim.attempt_id
    later = "f" * 32
    now = world.clock()

    def older(mark: str) -> bool:
        return world.do(lambda conn: pausing.pause_if_older(conn, "main", mark, now))

    assert not older("")
    assert not older(newest), "it is the newest that the database knows"
    assert older(later)
    [pause] = world.do(pausing.listing)
    assert (pause.scope, pause.is_restored, pause.at) == ("service", True, now)
    world.do(lambda conn: pausing.remove(conn, "service", ""))
    world.settle(lease, answered(claim))
    assert not older(later), "no call is open that could be made again"


def test_the_newest_attempt_is_kept_whatever_clock_a_worker_has(world: World) -> None:
    """After a failover to a machine whose clock is behind, ids may be smaller."""
    first = world.take_over()
    world.do(lambda conn: pausing.note_claims(conn, first, "b" * 32))
    second = world.take_over()
    for newest in ("c", "a"):
        world.do(lambda conn, newest=newest: pausing.note_claims(conn, second, newest * 32))  # type: ignore[misc]
    world.place()
    now = world.clock()
    assert not world.do(lambda conn: pausing.pause_if_older(conn, "main", "c" * 32, now))
    assert world.do(lambda conn: pausing.pause_if_older(conn, "main", "d" * 32, now))


def test_calls_of_before_the_backup_are_dropped_and_others_kept(world: World) -> None:
    """Whether they were called after it is not known; they are not called again."""
    world.set_balance(None)
    lease = world.take_over()
    open_, heard = world.place(), world.place()
    [first, second] = world.claim(lease)
    world.heard(lease, *(one for one in (first, second) if one.call_id == heard))
    waiting = world.place()
    at = world.clock.advance(10)
    paused(world, "service", is_restored=True)
    later = world.place()
    now = world.clock.advance(1)
    dropped = 0
    while ended := world.do(lambda conn: pausing.drop_open(conn, at, now)):
        dropped += ended
    assert dropped == 3
    for call_id in (open_, heard, waiting):
        call = world.call(call_id)
        assert (call.status, call.price) == (CallStatus.UNKNOWN, Decimal(0))
        assert "from a backup" in call.reason
    assert world.call(later).status is CallStatus.WAITING
    assert world.recover("w2")[1].redialled == 0, "no attempt is left open"
    world.do(lambda conn: pausing.remove(conn, "service", ""))
    assert [claim.call_id for claim in world.claim(world.take_over())] == [later]


def test_many_are_dropped_in_pieces(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pausing, "CHUNK", 2)
    for _ in range(5):
        world.place()
    at = world.clock.advance(1)
    counts = []
    while ended := world.do(lambda conn: pausing.drop_open(conn, at, at)):
        counts.append(ended)
    assert counts == [2, 2, 1]
