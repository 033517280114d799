"""Calls of dialers that are no longer there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitel.calls.call import CallStatus
from bitel.store import claims, housekeeping, leases
from bitel.store.housekeeping import ABANDONED_AFTER

if TYPE_CHECKING:
    from tests.store.conftest import World


def sweep(world: World, *known: str, limit: int = 1000) -> int:
    now = world.clock()
    return world.do(lambda conn: housekeeping.expire_orphans(conn, known, now, limit))


def test_calls_of_dialers_that_are_gone_expire_in_time(world: World) -> None:
    soon = world.clock() + 60
    orphans = [world.place(dialer_id=name, expires_at=soon) for name in ("gone", "lost", "lost")]
    known = world.place(expires_at=soon)
    assert sweep(world, "main") == 0
    world.clock.advance(60)

    assert sweep(world, "main", limit=2) == 2
    assert sweep(world, "main") == 1
    assert sweep(world, "main") == 0
    assert {world.call(one).status for one in orphans} == {CallStatus.EXPIRED}
    assert world.call(known).status is CallStatus.WAITING
    assert sweep(world) == 1


def test_what_a_lost_dialer_was_dialling_is_dealt_with(world: World) -> None:
    ringing, heard = world.place(dialer_id="gone"), world.place(dialer_id="gone")
    now = world.clock()
    lease, _ = world.do(lambda conn: leases.take_over(conn, "gone", "w", now, 77))
    claimed = {one.call_id: one for one in world.claim(lease)}
    world.heard(lease, claimed[heard])
    world.clock.advance(ABANDONED_AFTER)
    sweep(world, "main")
    assert world.do(lambda conn: leases.renew(conn, lease, now)), "it may only be slow"
    world.clock.advance(1)

    sweep(world, "main")

    assert world.call(heard).status is CallStatus.UNKNOWN
    assert world.call(ringing).status is CallStatus.WAITING
    assert world.do(lambda conn: claims.in_flight(conn, "gone")) == 0
    assert not world.do(lambda conn: leases.renew(conn, lease, now))
    world.clock.advance(14_400)
    assert sweep(world, "main") == 1
    assert world.call(ringing).status is CallStatus.EXPIRED


def test_a_dialer_that_is_known_is_left_alone(world: World) -> None:
    world.place()
    lease = world.take_over()
    world.claim(lease)
    world.clock.advance(10 * ABANDONED_AFTER)

    sweep(world, "main")

    assert world.do(lambda conn: leases.renew(conn, lease, world.clock()))
