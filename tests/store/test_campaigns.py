"""Campaigns: how they stand, and their calls a page at a time."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

from bitel.domain.attempts import AttemptResult, Outcome
from bitel.domain.calls import CallStatus
from bitel.domain.campaign_json import CampaignState
from bitel.domain.ids import new_id, new_ids
from bitel.domain.pricing import Bill
from bitel.domain.retry import Finish
from bitel.store import campaigns, claims
from bitel.store.campaigns import Campaign
from bitel.store.settling import Settlement
from tests.support import call_rows

if TYPE_CHECKING:
    from tests.support.store_world import World


def start(world: World, count: int) -> tuple[str, list[str]]:
    """A campaign of that many calls: its id, and theirs."""
    now = world.clock()
    new = Campaign(
        new_id(now), world.project_id, "main", world.recording_id, now, count, time_to_live=100
    )
    ids = new_ids(now, count)
    of_it = [
        world.new_call(id=one, campaign_id=new.id, expires_at=now + 100) for one in ids
    ]  # fmt: skip
    world.do(lambda conn: campaigns.add(conn, new))
    world.do(lambda conn: call_rows.place(conn, of_it))
    return new.id, ids


def find(world: World, campaign_id: str) -> CampaignState | None:
    return world.do(lambda conn: campaigns.find(conn, world.project_id, campaign_id))


def test_a_campaign_is_finished_when_its_last_call_is(world: World) -> None:
    placed_at = world.clock()
    campaign_id, ids = start(world, 3)
    world.place(requested_at=placed_at + 1)
    assert find(world, campaign_id) == CampaignState(
        campaign_id, 3, {CallStatus.WAITING: 3}, placed_at, 0.0, Decimal(0)
    )
    lease = world.take_over()
    claimed = world.claim(lease, 2)
    for price, one in zip(("1.5", "0.25"), claimed, strict=True):
        done = AttemptResult(Outcome.ANSWERED, placed_at, placed_at + 9, placed_at + 1)
        bill = Bill(8, Decimal(price))
        ended = Settlement(one.attempt_id, one.call_id, done, Finish(CallStatus.NORMAL), bill)
        world.clock.advance(10)
        world.settle(lease, ended)
    state = find(world, campaign_id)
    assert state is not None
    assert state.by_status == {CallStatus.NORMAL: 2, CallStatus.WAITING: 1}
    assert (state.finished_at, state.price) == (0, Decimal("1.75"))

    world.clock.advance(200)
    world.do(lambda conn: claims.expire(conn, "main", world.clock()))

    state = find(world, campaign_id)
    assert state is not None
    assert state.by_status == {CallStatus.NORMAL: 2, CallStatus.EXPIRED: 1}
    assert state.finished_at == placed_at + 220
    assert [world.call(one).finished_at - placed_at for one in ids] == [10, 20, 220]


def test_a_campaigns_calls_come_in_pages_in_the_order_given(world: World) -> None:
    campaign_id, ids = start(world, 7)
    world.place()
    found, after = [], None
    while page := world.do(
        lambda conn: campaigns.page(conn, world.project_id, campaign_id, after, 3)  # noqa: B023
    ):
        assert len(page) <= 3
        found += [one.id for one in page]
        after = found[-1]

    assert found == ids
    records = world.do(lambda conn: campaigns.cdrs(conn, world.project_id, campaign_id))
    assert records is not None
    assert [one.call.id for one in records] == ids
    assert records[0].call == world.call(ids[0])


def test_another_projects_campaign_is_not_found(world: World) -> None:
    campaign_id, _ = start(world, 2)
    other = world.another("other")

    assert find(other, campaign_id) is None
    assert find(world, "unknown") is None
    assert other.do(lambda c: campaigns.page(c, other.project_id, campaign_id, None, 9)) == []
    assert other.do(lambda c: campaigns.cdrs(c, other.project_id, campaign_id)) is None
