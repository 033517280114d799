"""Channels of a campaign that a dead dialer of its group left count for the others."""

from __future__ import annotations

import pytest

from bitel.dialer.caller_identity import CallerIds
from bitel.dialing.dispatcher import Dispatcher
from bitel.dialing.limit_shares import Limits
from bitel.domain.dialer_groups import DialerGroup, Membership
from bitel.domain.ids import new_id
from bitel.store import campaigns, leases, number_exclusion
from bitel.store.campaigns import Campaign
from bitel.store.database import Database
from tests.dialing.scripted import TARIFF, ScriptedDialer
from tests.support import call_rows
from tests.support.clocks import FakeClock
from tests.support.store_world import World

GROUP = DialerGroup("both", ("a", "b"))


@pytest.fixture
def world(database: Database) -> World:
    return World.make(database, FakeClock())


def test_they_count_until_the_phones_can_ring_no_more(world: World) -> None:
    member = {
        each: Membership(GROUP, each, frozenset(["111"]), CallerIds(["111"]).choose)
        for each in GROUP.dialers
    }
    held = {each: world.take_over_of(each) for each in GROUP.dialers}
    new = Campaign(
        new_id(world.clock()), world.project_id, "both", world.recording_id, world.clock(), 2
    )
    placed = [world.new_call(dialer_id="both", campaign_id=new.id) for _ in range(2)]
    world.do(lambda conn: campaigns.add(conn, new))
    world.do(lambda conn: call_rows.place(conn, placed))
    claimed = world.claim(held["a"], groups=[member["a"]])
    assert len(claimed) == 2
    dispatcher = Dispatcher(
        "b", "w", ScriptedDialer(world.clock, []), Limits(9, 9.0, 30.0, 0), world.database, TARIFF,
        world.clock, groups=[member["b"]],
    )  # fmt: skip

    def counted() -> int:
        world.do(dispatcher._find_occupied)
        return sum(dispatcher._shares.occupied.by_campaign.values())

    assert counted() == 0
    until = [(one.call_id, world.clock() + 50) for one in claimed]
    world.do(lambda conn: number_exclusion.mark_may_ring(conn, until))
    world.do(lambda conn: leases.remove_all(conn, "a"))
    assert counted() == 2
    world.clock.now += 51
    assert counted() == 0
