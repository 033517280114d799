"""Groups of dialers: one queue, one caller id for all attempts of a call, and whose turn it is."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select

from bitel.dialer.caller_identity import CallerIds
from bitel.domain.calls import CallStatus, Lane
from bitel.domain.dialer_groups import DialerGroup, Membership
from bitel.domain.ids import new_id
from bitel.domain.retry import RetryAt
from bitel.store import campaigns, claims, leases, number_exclusion, pausing, recovery
from bitel.store.campaigns import Campaign
from bitel.store.dialer_groups import PATIENCE, SEEN_WITHIN
from bitel.store.leases import Lease, WorkerState
from bitel.store.pausing import Pause
from bitel.store.schema import call
from tests.support import call_rows, factories

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bitel.store.claims import Claim
    from tests.support.store_world import World

GROUP = "both"


@dataclass
class Two:
    """Two dialers of a group."""

    world: World
    leases: dict[str, Lease]
    members: dict[str, Membership]

    def claim(self, dialer_id: str, limit: int = 100, **more: Any) -> list[Claim]:
        return self.world.claim(
            self.leases[dialer_id], limit, groups=[self.members[dialer_id]], **more
        )

    def ids(self, dialer_id: str, limit: int = 100, **more: Any) -> list[str]:
        return [one.call_id for one in self.claim(dialer_id, limit, **more)]

    def due(self, dialer_id: str, lanes: Sequence[Lane] = tuple(Lane)) -> float | None:
        members = [self.members[dialer_id]]
        now = self.world.clock()
        return self.world.do(
            lambda conn: claims.next_due(conn, dialer_id, now, lanes, groups=members)
        ).due_at

    def state(self, dialer_id: str, **state: Any) -> None:
        """Have the worker of a dialer report its state."""
        lease, now = self.leases[dialer_id], self.world.clock()
        self.world.do(lambda conn: leases.renew(conn, lease, now, WorkerState(**state)))

    def place(self, **more: Any) -> str:
        return self.world.place(dialer_id=GROUP, **more)

    def place_campaign(self, count: int, **terms: Any) -> list[str]:
        world = self.world
        new = Campaign(new_id(world.clock()), world.project_id, GROUP, world.recording_id,
                       world.clock(), count, **terms)  # fmt: skip
        calls = [
            world.new_call(dialer_id=GROUP, campaign_id=new.id, lane=Lane.BATCH)
            for _ in range(count)
        ]
        world.do(lambda conn: campaigns.add(conn, new))
        world.do(lambda conn: call_rows.place(conn, calls))
        return [each.id for each in calls]

    def retry(self, claimed: Claim) -> None:
        """End the attempt as busy; the call is due again at once."""
        decision = RetryAt(self.world.clock(), spends_retry=True, trouble=0)
        lease = next(each for each in self.leases.values() if each.dialer_id == self.of(claimed))
        self.world.settle(lease, factories.settlement(claimed, decision))

    def of(self, claimed: Claim) -> str:
        (row,) = [each for each in self.world.attempts(claimed.call_id)
                  if each.id == claimed.attempt_id]  # fmt: skip
        return row.dialer_id


@pytest.fixture
def make(world: World) -> Callable[..., Two]:
    def two(
        weights: tuple[float, ...] = (), a: Sequence[str] = ("111",), b: Sequence[str] = ("222",)
    ) -> Two:
        group = DialerGroup(GROUP, ("a", "b"), weights)
        members = {
            name: Membership(group, name, frozenset(ids), CallerIds(ids[:1]).choose)
            for name, ids in (("a", a), ("b", b))
        }
        return Two(world, {name: world.take_over_of(name) for name in "ab"}, members)

    return two


def test_calls_of_a_group_are_for_its_first_dialer(make: Callable[..., Two]) -> None:
    two = make()
    placed = [two.place(lane=lane) for lane in Lane]
    assert two.due("b") is None
    assert two.ids("b") == []
    assert two.due("a") == two.world.clock()
    assert set(two.ids("a")) == set(placed)


@pytest.mark.parametrize(
    "state",
    [{"up": False}, {"paused_reason": "it refuses every call"}, {"is_free": False}],
    ids=["down", "paused", "full"],
)
def test_the_next_one_takes_them_while_it_can_not(
    make: Callable[..., Two], state: dict[str, Any]
) -> None:
    two = make()
    placed = [two.place(), *two.place_campaign(3)]
    two.state("a", **state)
    assert set(two.ids("b")) == set(placed)
    two.state("a")
    two.place()
    assert two.ids("b") == []


def test_a_dialer_whose_worker_is_silent_is_not_waited_for(make: Callable[..., Two]) -> None:
    two = make()
    two.world.clock.now += SEEN_WITHIN - 1
    two.state("b")
    placed = two.place()
    assert two.ids("b") == []
    two.world.clock.now += 2
    assert two.ids("b") == [placed]


def test_a_dialer_that_has_room_and_takes_nothing_is_not_waited_for_long(
    make: Callable[..., Two],
) -> None:
    two = make()
    placed = [two.place(), *two.place_campaign(2)]
    paced = two.place_campaign(2, calls_per_second=1.0)
    assert two.due("b") is None
    assert two.ids("b") == []
    two.world.clock.now += PATIENCE + 0.1
    two.state("a")
    new = two.place()
    assert two.due("b") is not None
    assert set(two.ids("b")) == set(placed), "not what has just come"
    assert set(two.ids("a")) == {new, *paced}


def test_what_a_paused_project_has_waiting_changes_no_turn(make: Callable[..., Two]) -> None:
    two = make()
    two.place()
    other = two.world.another("other")
    pause = Pause("project", two.world.project_id, "repairs", two.world.clock())
    two.world.do(lambda conn: pausing.add(conn, pause))
    two.world.clock.now += PATIENCE + 10
    two.state("a")
    new = other.place(dialer_id=GROUP)
    assert two.ids("b") == []
    assert two.ids("a") == [new]


def test_the_backlog_of_a_paced_campaign_changes_no_weight(make: Callable[..., Two]) -> None:
    two = make(weights=(3.0, 1.0))
    two.place_campaign(5, calls_per_second=0.1)
    two.world.clock.now += PATIENCE + 10
    two.state("a")
    for _ in range(20):
        two.place()
    alone = [one for one in two.claim("b") if one.campaign_id is None]
    assert len(alone) == 1


def test_all_attempts_of_a_call_show_one_caller_id(make: Callable[..., Two]) -> None:
    """Who is called again by another number does not know that it is the same caller."""
    two = make()
    alone, in_campaign = two.place(), two.place_campaign(1)[0]
    first = {one.call_id: one for one in two.claim("a")}
    assert {one.caller_id for one in first.values()} == {"111"}
    for one in first.values():
        two.retry(one)
    two.state("a", up=False)
    assert two.ids("b") == []
    assert two.due("b") is None
    assert {two.world.call(key).status for key in (alone, in_campaign)} == {CallStatus.WAITING}

    again = {one.call_id: one.caller_id for one in two.claim("a")}
    assert again == {alone: "111", in_campaign: "111"}


def test_another_dialer_goes_on_if_it_may_show_the_same(make: Callable[..., Two]) -> None:
    two = make(a=["111"], b=["222", "111"])
    placed = {two.place(), two.place_campaign(1)[0]}
    for one in two.claim("a"):
        two.retry(one)
    assert two.due("b") is not None, "though it is not the first, only it takes what it may show"
    two.state("a", up=False)
    again = two.claim("b")
    assert {one.call_id for one in again} == placed
    assert {one.caller_id for one in again} == {"111"}


def test_a_call_that_asks_for_a_caller_id_is_for_those_that_may_show_it(
    make: Callable[..., Two],
) -> None:
    two = make()
    placed = two.place(caller_id="222")
    assert two.ids("a") == []
    assert two.ids("b") == [placed]


def test_without_caller_ids_a_call_may_go_to_any_dialer_without(make: Callable[..., Two]) -> None:
    two = make(a=[""], b=[""])
    placed = two.place()
    for one in two.claim("a"):
        two.retry(one)
    two.state("a", up=False)
    assert two.ids("b") == [placed]


def test_the_first_dialer_has_its_own_calls_too(make: Callable[..., Two]) -> None:
    two = make()
    mine, ours, other = two.world.place(dialer_id="a"), two.place(), two.world.place(dialer_id="b")
    assert set(two.ids("a")) == {mine, ours}
    assert two.ids("b") == [other]


def test_urgent_calls_come_first_whichever_queue_they_wait_in(make: Callable[..., Two]) -> None:
    two = make()
    two.world.place(dialer_id="a", lane=Lane.BATCH)
    single = two.place(lane=Lane.SINGLE)
    otp = two.place(lane=Lane.OTP, digits="1234", recording_id=None)
    other = two.world.place(dialer_id="a", lane=Lane.SINGLE)
    assert two.ids("a", 1) == [otp]
    assert set(two.ids("a", 2)) == {single, other}


@pytest.mark.parametrize("lane", [Lane.SINGLE, Lane.BATCH])
def test_dialers_take_turns_by_weight(make: Callable[..., Two], lane: Lane) -> None:
    two = make(weights=(3.0, 1.0))
    got = {"a": 0, "b": 0}
    for number in range(40):
        if lane is Lane.SINGLE:
            two.place()
        else:
            two.place_campaign(1)
        asking = "ab" if number % 2 else "ba"
        for name in asking:
            got[name] += len(two.ids(name))
    got["a"] += len(two.ids("a"))
    got["b"] += len(two.ids("b"))
    assert sum(got.values()) == 40
    assert abs(got["a"] - 30) <= 3, got


def test_no_dialer_waits_for_one_that_is_full(make: Callable[..., Two]) -> None:
    two = make(weights=(3.0, 1.0))
    placed = two.place_campaign(20)
    two.state("a", is_free=False)
    assert set(two.ids("b")) == set(placed)
    two.state("a")
    placed = two.place_campaign(20)
    first = two.ids("a")
    assert len(first) > 10, "it lags behind"


def test_calls_of_a_group_expire(make: Callable[..., Two]) -> None:
    two = make()
    placed = [two.place(), *two.place_campaign(2)]
    two.world.clock.now += 14_401
    now = two.world.clock()
    assert two.world.do(lambda conn: recovery.expire_orphans(conn, ["a", "b", GROUP], now)) == 0
    assert two.world.do(lambda conn: claims.expire(conn, GROUP, now)) == 3
    assert {two.world.call(key).status for key in placed} == {CallStatus.EXPIRED}


def test_a_window_that_is_closed_holds_for_a_group(make: Callable[..., Two]) -> None:
    two = make()
    two.world.change(window="Mon-Sun 03:00-03:01 UTC")
    two.place()
    two.place_campaign(1)
    assert two.ids("a") == []
    otp = two.place(lane=Lane.OTP, digits="1234", recording_id=None)
    assert two.ids("a") == [otp]


def test_channels_of_a_dead_worker_are_those_of_its_dialer(make: Callable[..., Two]) -> None:
    two = make()
    two.place()
    two.place_campaign(2)
    claimed = two.claim("a")
    now = two.world.clock()
    until = [(one.call_id, now + 50) for one in claimed]
    two.world.do(lambda conn: number_exclusion.mark_may_ring(conn, until))
    of = {
        name: two.world.do(lambda conn: number_exclusion.occupied(conn, [name], now))  # noqa: B023
        for name in "ab"
    }
    assert (of["a"].channels, of["b"].channels) == (3, 0)
    # A campaign's limit holds for all of its dialers.
    assert of["a"].by_campaign == of["b"].by_campaign
    assert sum(of["b"].by_campaign.values()) == 2


def test_rows_of_a_group_have_their_caller_id_before_the_invite(make: Callable[..., Two]) -> None:
    two = make()
    two.world.set_balance(Decimal(100))
    two.place()
    two.claim("a")
    shown = two.world.do(lambda conn: conn.execute(select(call.c.caller_id)).scalar_one())
    assert shown == "111"
