"""Calls of dialers that are no longer there."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest
import structlog

from bitel.domain.calls import CallStatus
from bitel.domain.limit_shares import Demand
from bitel.maintenance.housekeeping import ABANDONED_AFTER, EVERY, Housekeeper
from bitel.store import leases, recovery, worker_shares
from bitel.store.leases import Lease, Slot
from bitel.store.schema import worker, worker_share
from bitel.store.worker_shares import Need
from tests.support import call_rows
from tests.support.clocks import FakeClock

if TYPE_CHECKING:
    from tests.support.store_world import World


def sweep(world: World, *known: str, limit: int = 1000) -> int:
    now = world.clock()
    return world.do(lambda conn: recovery.expire_orphans(conn, known, now, limit))


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


class Rounds:
    """A process that has no dialer but `main`, and whose rounds come every ten seconds."""

    def __init__(self, world: World, grouped_ids: Sequence[str] = ()) -> None:
        self.world = world
        self.monotonic = FakeClock(50.0)
        self.keeper = Housekeeper(
            world.database, ["main"], world.clock, self.monotonic, grouped_ids=grouped_ids
        )

    async def of(self, seconds: float) -> None:
        for _ in range(round(seconds / EVERY)):
            await self.keeper.round()
            self.monotonic.advance(EVERY)
            self.world.clock.advance(EVERY)


def begin(world: World) -> tuple[Lease, str, str]:
    """A dialer that is not known rings one phone and has been answered by another."""
    ringing, heard = world.place(dialer_id="gone"), world.place(dialer_id="gone")
    now = world.clock()
    lease, _ = world.do(lambda conn: recovery.take_over(conn, Slot("gone"), "w", now, 77))
    claimed = {one.call_id: one for one in world.claim(lease)}
    world.heard(lease, claimed[heard])
    return lease, ringing, heard


async def test_what_a_lost_dialer_was_dialling_is_dealt_with(world: World) -> None:
    lease, ringing, heard = begin(world)
    rounds = Rounds(world)
    await rounds.of(ABANDONED_AFTER)
    assert world.do(lambda conn: leases.renew(conn, lease, world.clock())), "it may only be slow"
    await rounds.of(ABANDONED_AFTER)
    assert world.call(heard).status is CallStatus.WAITING

    await rounds.of(2 * EVERY)

    assert world.call(heard).status is CallStatus.UNKNOWN
    assert world.call(ringing).status is CallStatus.WAITING
    assert world.do(lambda conn: call_rows.in_flight(conn, "gone")) == 0
    assert not world.do(lambda conn: leases.renew(conn, lease, world.clock()))
    world.clock.advance(14_400)
    assert sweep(world, "main") == 1
    assert world.call(ringing).status is CallStatus.EXPIRED


async def test_a_living_worker_loses_no_dialer_to_a_clock_or_a_pause(world: World) -> None:
    lease, _, heard = begin(world)
    rounds = Rounds(world)
    await rounds.of(ABANDONED_AFTER)
    # This process, or the whole machine, was paused; and its wall clock is an hour fast.
    rounds.monotonic.advance(1000)
    world.clock.advance(3600)
    await rounds.of(ABANDONED_AFTER)
    assert world.call(heard).status is CallStatus.WAITING
    assert world.do(lambda conn: leases.renew(conn, lease, world.clock()))


async def test_a_dialer_that_is_known_is_left_alone(world: World) -> None:
    world.place()
    lease = world.take_over()
    world.claim(lease)

    await Rounds(world).of(3 * ABANDONED_AFTER)

    assert world.do(lambda conn: leases.renew(conn, lease, world.clock()))


async def test_what_a_dead_dialer_of_a_group_was_dialling_and_holds_is_free_again(
    world: World,
) -> None:
    """The others of the group dial on, so its shares and its attempts must not wait for it."""
    placed = world.place()
    lease = world.take_over()
    world.claim(lease)
    needs = {"places": Need(10, Demand(1, 1))}
    world.do(lambda conn: worker_shares.update(conn, lease, needs, lambda _: {}))
    rounds = Rounds(world, grouped_ids=["main"])
    await rounds.of(ABANDONED_AFTER)
    assert world.do(lambda conn: leases.renew(conn, lease, world.clock())), "it may only be slow"
    await rounds.of(ABANDONED_AFTER)
    assert world.count(worker_share) == 1

    await rounds.of(2 * EVERY)

    assert world.count(worker_share) == world.count(worker) == 0
    assert not world.do(lambda conn: leases.renew(conn, lease, world.clock()))
    assert world.call(placed).status is CallStatus.WAITING
    assert world.claim(world.take_over()) == [], "its phone may ring"
    world.clock.advance(recovery.REDIAL_AFTER)
    assert [one.call_id for one in world.claim(world.take_over())] == [placed]


async def test_a_clock_that_differs_from_the_database_servers_is_logged_once(
    world: World,
) -> None:
    keeper = Rounds(world).keeper
    with structlog.testing.capture_logs() as logs:
        for ahead in (0.0, -3600.0, -3600.0, 0.0, 60.0):
            world.clock.now = time.time() + ahead
            await keeper.round()
    differ = [line["ahead"] for line in logs if line["event"] == "clocks_differ"]
    on_server = world.do(lambda conn: conn.dialect.name) == "postgresql"
    assert differ == pytest.approx([-3600.0, 60.0] if on_server else [], abs=2.0)
