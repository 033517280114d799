"""Large batches: nothing of one is dialled or listed before all of it is, or ever after a fault."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from bitel.domain.calls import CallStatus, Lane, NewCalls
from bitel.domain.ids import new_id, new_ids
from bitel.errors import InsufficientBalanceError, UnavailableError
from bitel.maintenance.housekeeping import Housekeeper
from bitel.store import call_lists, campaigns, do_not_call, large_batches, placing
from bitel.store.call_lists import CallFilter, Span
from bitel.store.campaigns import Campaign
from bitel.store.large_batches import ABANDONED_AFTER
from bitel.store.placing import LimitsChangedError
from bitel.store.schema import call, incomplete_batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.support.store_world import World

COUNT = 5


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "CHUNK", 2)


def batch(world: World, reserve: str = "1", **more: Any) -> NewCalls:
    like = world.new_call(lane=Lane.BATCH, campaign_id=new_id(world.clock()), **more)
    numbers = [f"0912{number:07}" for number in range(COUNT)]
    e164 = [f"+98{number[1:]}" for number in numbers]
    ids = new_ids(world.clock(), COUNT)
    return NewCalls(like, ids, numbers, e164, [Decimal(reserve)] * COUNT)


def key_of(calls: NewCalls) -> str:
    assert calls.template.campaign_id is not None
    return calls.template.campaign_id


def begin(world: World, calls: NewCalls) -> Sequence[Decimal]:
    reserves = world.do(lambda conn: placing.check_many(conn, calls))
    world.do(lambda conn: large_batches.begin(conn, key_of(calls), world.clock()))
    return reserves


def write(world: World, calls: NewCalls, reserves: Sequence[Decimal], pieces: int = COUNT) -> None:
    for piece in placing.prepare(calls, reserves)[:pieces]:
        world.do(lambda conn: large_batches.write_piece(conn, calls, piece, world.clock()))  # noqa: B023


def complete(world: World, calls: NewCalls, reserves: Sequence[Decimal]) -> set[str]:
    like = calls.template
    new = Campaign(key_of(calls), like.project_id, like.dialer_id, like.recording_id,
                   like.requested_at, COUNT)  # fmt: skip

    def work(conn: Any) -> set[str]:
        campaigns.add(conn, new)
        large_batches.complete(conn, calls)
        return placing.place_written(conn, calls, reserves)

    return world.do(work)


def listed(world: World, wanted: CallFilter = CallFilter()) -> list[str]:  # noqa: B008
    page = world.do(
        lambda conn: call_lists.find_calls(conn, world.project_id, wanted, Span(), 2 * COUNT)
    )
    return [one.call.id for one in page.entries]


def filters(calls: NewCalls) -> list[CallFilter]:
    return [
        CallFilter(),
        CallFilter(statuses=[CallStatus.WAITING]),
        CallFilter(statuses=[CallStatus.WAITING, CallStatus.ERROR]),
        CallFilter(reference="a reference"),
        CallFilter(campaign_id=key_of(calls)),
        CallFilter(campaign_id=key_of(calls), statuses=[CallStatus.WAITING]),
    ]


def test_calls_appear_and_are_dialled_once_all_are_written(world: World) -> None:
    world.set_balance(Decimal(10))
    lease = world.take_over()
    other = world.place()
    calls = batch(world, reference="a reference")
    reserves = begin(world, calls)
    write(world, calls, reserves)
    assert world.count(call) == 1 + COUNT

    assert [one.call_id for one in world.claim(lease)] == [other]
    for wanted in filters(calls):
        assert not set(calls.ids) & set(listed(world, wanted)), wanted
    assert world.do(lambda conn: campaigns.find(conn, world.project_id, key_of(calls))) is None
    assert (
        world.do(lambda conn: campaigns.page(conn, world.project_id, key_of(calls), None, 9)) == []
    )
    assert world.project().reserved == 0

    assert complete(world, calls, reserves) == set()
    for wanted in filters(calls):
        assert set(calls.ids) <= set(listed(world, wanted)), wanted
    assert world.project().reserved == COUNT
    assert world.count(incomplete_batch) == 0
    assert {one.call_id for one in world.claim(lease)} == set(calls.ids)


def test_it_is_placed_as_in_one_transaction(world: World) -> None:
    world.set_balance(Decimal(100))
    world.do(lambda conn: do_not_call.add(conn, world.project_id, "+989120000001"))
    large, whole = batch(world), batch(world)
    reserves = begin(world, large)
    write(world, large, reserves)
    assert complete(world, large, reserves) == {large.ids[1]}
    assert world.do(lambda conn: placing.place_many(conn, whole)) == {whole.ids[1]}
    rows = world.do(lambda conn: conn.execute(select(call).order_by(call.c.id)).all())
    first, second = (
        [{**row._mapping, "id": "", "campaign_id": ""} for row in rows if row.id in calls.ids]
        for calls in (large, whole)
    )
    assert first == second
    assert world.project().reserved == 2 * (COUNT - 1)


def test_a_budget_that_does_not_suffice_is_known_before_anything_is_written(world: World) -> None:
    world.set_balance(Decimal(COUNT - 1))
    with pytest.raises(InsufficientBalanceError):
        begin(world, batch(world))
    assert world.count(call) == world.count(incomplete_batch) == 0


@pytest.mark.parametrize("limited_first", [True, False])
def test_limits_that_changed_meanwhile_count(world: World, *, limited_first: bool) -> None:
    """Calls must not be dialled at no charge because their project got a balance meanwhile."""
    world.set_balance(Decimal(100) if limited_first else None)
    calls = batch(world)
    reserves = begin(world, calls)
    write(world, calls, reserves)
    world.set_balance(None if limited_first else Decimal(100))
    with pytest.raises(LimitsChangedError):
        complete(world, calls, reserves)
    assert listed(world) == []
    discard(world, calls)
    world.do(lambda conn: placing.place_many(conn, calls))
    assert world.project().reserved == (0 if limited_first else COUNT)


def discard(world: World, calls: NewCalls) -> None:
    while not world.do(lambda conn: large_batches.discard(conn, key_of(calls), 2)):
        pass


@pytest.mark.parametrize("pieces", [0, 1, 2, COUNT])
def test_what_is_discarded_leaves_nothing(world: World, pieces: int) -> None:
    other = world.place()
    calls = batch(world)
    write(world, calls, begin(world, calls), pieces)
    discard(world, calls)
    assert world.count(incomplete_batch) == 0
    assert world.count(call) == 1
    assert listed(world) == [other]
    discard(world, calls)


def test_a_batch_that_is_complete_is_not_discarded(world: World) -> None:
    """The answer to the transaction that completed it may have been lost."""
    calls = batch(world)
    reserves = begin(world, calls)
    write(world, calls, reserves)
    complete(world, calls, reserves)
    discard(world, calls)
    assert world.count(call) == COUNT


async def test_what_a_process_has_left_behind_is_discarded(world: World) -> None:
    left, under_way = batch(world), batch(world)
    reserves = begin(world, left)
    write(world, left, reserves, 2)
    keeper = Housekeeper(world.database, ["main"], world.clock)
    world.clock.now += ABANDONED_AFTER - 1
    begin(world, under_way)
    write(world, under_way, reserves, 1)
    await keeper.round()
    assert world.count(call) == 6
    world.clock.now += 2
    await keeper.round()
    assert world.count(call) == 2
    assert world.count(incomplete_batch) == 1

    # Its process was only slow.
    with pytest.raises(UnavailableError, match="took too long"):
        write(world, left, reserves, 1)
    with pytest.raises(UnavailableError, match="took too long"):
        complete(world, left, reserves)
    assert listed(world) == []


async def test_a_batch_whose_deletion_began_is_not_completed(world: World) -> None:
    """Some of its calls are gone: the rest must not be dialled as if they were the batch."""
    calls = batch(world)
    reserves = begin(world, calls)
    write(world, calls, reserves)
    assert world.do(lambda conn: large_batches.discard(conn, key_of(calls), 2)) is False
    with pytest.raises(UnavailableError):
        complete(world, calls, reserves)
    assert listed(world) == []
    await Housekeeper(world.database, ["main"], world.clock).round()
    assert world.count(call) == 0
