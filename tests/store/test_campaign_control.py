"""Campaigns in the queue: turns, pauses, starts, ends, windows, paces, and their counts."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitel.domain.attempts import Media, Outcome
from bitel.domain.calls import CallStatus, Lane, NewCalls
from bitel.domain.campaign_json import CampaignPhase, CampaignState
from bitel.domain.ids import new_id, new_ids
from bitel.domain.pricing import Bill
from bitel.domain.recipients import Recipient
from bitel.domain.retry import Finish, RetryAt, RetryWaits
from bitel.errors import ConflictError, NotFoundError
from bitel.store import campaign_schedules, campaigns, claims, placing, recovery
from bitel.store.campaigns import Campaign
from tests.support import call_rows
from tests.support.factories import NORMAL, settlement

if TYPE_CHECKING:
    from bitel.store.claims import Claim
    from tests.support.store_world import World


def start(world: World, count: int, of_call: Any = None, **fields: Any) -> str:
    """A campaign of that many calls; `fields` are its own, `of_call` those of its calls."""
    now = world.clock()
    new = Campaign(new_id(now), world.project_id, "main", world.recording_id, now, count, **fields)
    of_it = [
        world.new_call(id=one, campaign_id=new.id, lane=Lane.BATCH, **(of_call or {}))
        for one in new_ids(now, count)
    ]
    world.do(lambda conn: campaigns.add(conn, new))
    world.do(lambda conn: call_rows.place(conn, of_it))
    return new.id


def state(world: World, campaign_id: str) -> CampaignState:
    found = world.do(lambda conn: campaigns.find(conn, world.project_id, campaign_id))
    assert found is not None
    return found


def pause(world: World, campaign_id: str) -> CampaignState:
    now = world.clock()
    return world.do(lambda conn: campaigns.pause(conn, world.project_id, campaign_id, now))[1]


def resume(world: World, campaign_id: str) -> CampaignState:
    now = world.clock()
    return world.do(lambda conn: campaigns.resume(conn, world.project_id, campaign_id, now))[1]


def expire(world: World) -> int:
    return world.do(lambda conn: claims.expire(conn, "main", world.clock()))


def by_campaign(claimed: list[Claim]) -> dict[str | None, int]:
    return dict(Counter(one.campaign_id for one in claimed))


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def test_the_campaigns_of_a_project_share_its_places(world: World) -> None:
    large, small = start(world, 50), start(world, 3)
    other = world.another("other")
    theirs = start(other, 50)
    lease = world.take_over()

    assert by_campaign(world.claim(lease, 8)) == {theirs: 4, large: 2, small: 2}
    assert by_campaign(world.claim(lease, 8)) == {theirs: 4, large: 3, small: 1}


def test_single_places_go_round_the_campaigns_of_a_project(world: World) -> None:
    ids = sorted(start(world, 3) for _ in range(3))
    lease = world.take_over()
    last: dict[str, str] = {}
    served = []
    for _ in range(9):
        (claimed,) = world.claim(lease, 1, after_campaign=last)
        assert claimed.campaign_id is not None
        last[claimed.project_id] = claimed.campaign_id
        served.append(claimed.campaign_id)

    assert served == ids * 3


def test_a_paused_campaign_has_no_turn_and_holds_up_no_other(world: World) -> None:
    paused, running = start(world, 5), start(world, 5)
    assert pause(world, paused).phase(world.clock()) is CampaignPhase.PAUSED
    lease = world.take_over()

    assert by_campaign(world.claim(lease)) == {running: 5}
    now = world.clock()
    assert world.do(lambda conn: claims.next_due(conn, "main", now)).due_at is None
    assert resume(world, paused).phase(world.clock()) is CampaignPhase.RUNNING
    assert by_campaign(world.claim(lease)) == {paused: 5}


def test_pausing_twice_is_pausing_once(world: World) -> None:
    campaign_id = start(world, 1)
    first = pause(world, campaign_id)
    world.clock.advance(10)
    assert pause(world, campaign_id) == first
    resume(world, campaign_id)
    assert resume(world, campaign_id).paused_at is None


def test_what_is_over_can_be_neither_paused_nor_resumed(world: World) -> None:
    campaign_id = start(world, 1)
    lease = world.take_over()
    (claimed,) = world.claim(lease)
    world.settle(lease, settlement(claimed, Finish(CallStatus.USER_BUSY)))
    assert pause(world, campaign_id).phase(world.clock()) is CampaignPhase.FINISHED

    canceled, now = start(world, 1), world.clock()
    world.do(lambda conn: campaigns.mark_canceled(conn, world.project_id, canceled, now))
    assert pause(world, canceled).phase(now) is CampaignPhase.CANCELED
    assert world.claim(lease) == [], "it is canceled before its calls are"


def test_pauses_are_limited(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaigns, "MOST_PAUSES", 2)
    campaign_id = start(world, 1)
    for _ in range(2):
        pause(world, campaign_id)
        resume(world, campaign_id)
    with pytest.raises(ConflictError, match="2 times"):
        pause(world, campaign_id)


def test_another_projects_campaign_can_be_neither_paused_nor_changed(world: World) -> None:
    campaign_id = start(world, 1)
    other = world.another("other")
    for work in (pause, resume):
        with pytest.raises(NotFoundError):
            work(other, campaign_id)
    with pytest.raises(NotFoundError):
        other.do(lambda conn: campaigns.change(conn, other.project_id, campaign_id, name="x"))
    assert state(world, campaign_id).name is None


def test_the_time_to_live_stops_while_it_is_paused(world: World) -> None:
    campaign_id = start(world, 2, time_to_live=100)
    lease = world.take_over()
    world.clock.advance(60)
    pause(world, campaign_id)
    world.clock.advance(10_000)
    assert expire(world) == 0
    resume(world, campaign_id)
    world.clock.advance(39)
    assert expire(world) == 0
    (claimed,) = world.claim(lease, 1)
    assert claimed.rule.expires_at == world.clock() + 1
    world.clock.advance(1)
    assert world.claim(lease, 1) == []

    assert expire(world) + state(world, campaign_id).by_status[CallStatus.EXPIRED] >= 1
    assert state(world, campaign_id).by_status == {CallStatus.WAITING: 1, CallStatus.EXPIRED: 1}


def test_its_end_comes_also_while_it_is_paused(world: World) -> None:
    now = world.clock()
    campaign_id = start(world, 3, end_at=now + 50)
    pause(world, campaign_id)
    world.clock.advance(49)
    assert expire(world) == 0
    world.clock.advance(1)
    assert expire(world) == 3
    over = state(world, campaign_id)
    assert over.by_status == {CallStatus.EXPIRED: 3}
    assert (over.finished_at, over.phase(world.clock())) == (now + 50, CampaignPhase.FINISHED)


def test_an_end_that_is_changed_counts_at_once(world: World) -> None:
    campaign_id, now = start(world, 3), world.clock()
    world.do(lambda conn: campaigns.change(conn, world.project_id, campaign_id, end_at=now + 5))
    lease = world.take_over()
    (claimed,) = world.claim(lease, 1)
    assert claimed.rule.expires_at == now + 5
    world.clock.advance(5)
    assert world.claim(lease) == []
    world.do(lambda conn: campaigns.change(conn, world.project_id, campaign_id, end_at=None))
    assert state(world, campaign_id).end_at is None


def test_nothing_is_dialled_before_its_start(world: World) -> None:
    now = world.clock()
    campaign_id = start(world, 2, start_at=now + 30, time_to_live=60)
    lease = world.take_over()
    assert state(world, campaign_id).phase(now) is CampaignPhase.SCHEDULED
    assert world.claim(lease) == []
    world.clock.advance(29.5)
    assert world.claim(lease) == []
    # The start is by the system clock, which is half a second ahead.
    (claimed,) = world.claim(lease, 1, ahead=0.5)
    assert claimed.rule.expires_at == now + 29.5 + 60, "its time to live counts from the start"
    assert state(world, campaign_id).phase(now + 30) is CampaignPhase.RUNNING


def test_a_window_of_the_campaign_and_that_of_its_project_must_both_be_open(world: World) -> None:
    world.clock.now = at("2026-03-16T08:00")
    world.change(window="09:00-21:00 UTC")
    campaign_id = start(world, 1, window="07:00-10:00 UTC", time_to_live=60)
    lease = world.take_over()
    assert world.claim(lease) == []
    world.clock.now = at("2026-03-16T09:00")
    assert by_campaign(world.claim(lease)) == {campaign_id: 1}


def test_a_closed_window_stops_the_time_to_live(world: World) -> None:
    world.clock.now = at("2026-03-16T20:50")
    world.change(window="09:00-21:00 UTC")
    campaign_id = start(world, 1, time_to_live=3600)
    lease = world.take_over()
    world.clock.now = at("2026-03-17T09:30")
    assert expire(world) == 0
    (claimed,) = world.claim(lease)
    assert claimed.rule.expires_at == at("2026-03-17T09:50")
    assert state(world, campaign_id).by_status == {CallStatus.WAITING: 1}


def test_local_windows_are_by_the_clock_of_each_callee(world: World) -> None:
    world.clock.now = at("2026-03-16T05:00")  # 08:30 in Tehran, 06:00 in Berlin
    numbers = {"+989121234567": "Asia/Tehran", "+4915112345678": "Europe/Berlin"}
    campaign_id = start(world, 0, window="09:00-21:00 local")
    for e164 in numbers:
        world.place(campaign_id=campaign_id, lane=Lane.BATCH, e164=e164)
    lease = world.take_over()
    assert world.claim(lease) == []
    world.clock.now = at("2026-03-16T05:30")
    assert [one.e164 for one in world.claim(lease)] == ["+989121234567"]
    world.clock.now = at("2026-03-16T07:59")
    assert world.claim(lease) == []
    world.clock.now = at("2026-03-16T08:00")
    assert [one.e164 for one in world.claim(lease)] == ["+4915112345678"]


def test_a_number_whose_zones_allow_no_common_hour_is_not_called(world: World) -> None:
    world.clock.now = at("2026-03-16T08:00")
    campaign_id = start(world, 2, window="10:00-18:00 local")
    of_it = {"campaign_id": campaign_id, "lane": Lane.BATCH}
    unknown = world.place(**of_it, e164="+79161234567")
    lease = world.take_over()

    assert unknown not in [one.call_id for one in world.claim(lease)]
    assert world.call(unknown).status is CallStatus.ERROR
    assert "timeZone" in world.call(unknown).reason


@pytest.mark.parametrize("is_paused", [False, True])
def test_a_cancel_that_a_crash_cut_off_is_completed(world: World, is_paused: bool) -> None:
    campaign_id = start(world, 5)
    if is_paused:
        pause(world, campaign_id)
    now = world.clock()
    world.do(lambda conn: campaigns.mark_canceled(conn, world.project_id, campaign_id, now))

    expire(world)

    assert state(world, campaign_id).by_status == {CallStatus.CANCELED: 5}
    assert state(world, campaign_id).finished_at == now


def test_campaigns_behind_many_that_wait_have_turns(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign_schedules, "MOST", 3)
    for _ in range(5):
        start(world, 1, start_at=world.clock() + 1000)
    ready = start(world, 1)
    lease = world.take_over()
    due, claimed = campaign_schedules.Page(), campaign_schedules.Page()
    now = world.clock()

    found = [world.do(lambda conn: claims.next_due(conn, "main", now, page=due)).due_at
             for _ in range(3)]  # fmt: skip
    assert now in found
    served = [one.campaign_id for _ in range(3) for one in world.claim(lease, 5, page=claimed)]
    assert served == [ready]


def test_single_calls_follow_a_local_window_and_passwords_do_not(world: World) -> None:
    world.clock.now = at("2026-03-16T05:00")
    world.change(window="09:00-21:00 local")
    world.place()
    otp = world.place(lane=Lane.OTP)
    lease = world.take_over()
    assert [one.call_id for one in world.claim(lease)] == [otp]
    world.clock.now = at("2026-03-16T05:30")
    assert len(world.claim(lease)) == 1


class Pace:
    """Lets so many calls of each campaign begin."""

    def __init__(self, **most: int) -> None:
        self.most = most
        self.limits: dict[str, tuple[float | None, int | None]] = {}

    def room(
        self,
        campaign_id: str,
        calls_per_second: float | None,
        channels: int | None,
        queue_id: str,
    ) -> int:
        self.limits[campaign_id] = (calls_per_second, channels)
        return self.most.get(campaign_id, 1000)


def test_what_a_slow_campaign_does_not_use_goes_to_the_others(world: World) -> None:
    slow = start(world, 20, calls_per_second=2.5, max_channels=9)
    fast = start(world, 20)
    pace = Pace(**{slow: 3})

    assert by_campaign(world.claim(world.take_over(), 15, pace=pace)) == {slow: 3, fast: 12}
    assert pace.limits == {slow: (2.5, 9), fast: (None, None)}


def test_a_pace_holds_over_several_looks_of_one_claim(world: World) -> None:
    # Numbers that are taken make the claim look again.
    campaign_id = start(world, 30, of_call={"e164": "+989120000000"})
    for _ in range(5):
        world.place(campaign_id=campaign_id, lane=Lane.BATCH)

    claimed = world.claim(world.take_over(), 10, pace=Pace(**{campaign_id: 2}))

    assert len(claimed) == 2


def test_more_campaigns_than_one_claim_looks_at_have_turns(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaign_schedules, "MOST", 2)
    ids = {start(world, 1) for _ in range(5)}
    lease = world.take_over()
    last_project: dict[Lane, str] = {}
    last: dict[str, str] = {}
    served = set()
    page = campaign_schedules.Page()
    for _ in range(5):
        claimed = world.claim(lease, 1, after_project=last_project, after_campaign=last, page=page)
        for one in claimed:
            assert one.campaign_id is not None
            last_project[one.lane] = one.project_id
            last[one.project_id] = one.campaign_id
            served.add(one.campaign_id)

    assert served == ids


def test_counts_follow_the_ends_of_its_calls(world: World) -> None:
    campaign_id = start(world, 5)
    lease = world.take_over()
    claimed = world.claim(lease)
    began = world.clock()
    pressed = Media(250, 240, "1#1", None, None)
    world.settle(
        lease,
        settlement(
            claimed[0], NORMAL, Outcome.ANSWERED, Bill(9, Decimal("1.5")),
            answered_at=began + 1, media=pressed,
        ),
        settlement(
            claimed[1], NORMAL, Outcome.ANSWERED, Bill(9, Decimal("0.5")),
            answered_at=began + 1, media=pressed._replace(digits="2"),
        ),
        settlement(claimed[2], Finish(CallStatus.USER_BUSY)),
        settlement(claimed[3], RetryAt(began + 60, spends_retry=True, trouble=0)),
    )  # fmt: skip
    world.heard(lease, claimed[4])

    now = state(world, campaign_id)
    assert now.by_status == {
        CallStatus.NORMAL: 2, CallStatus.USER_BUSY: 1, CallStatus.WAITING: 2
    }  # fmt: skip
    assert (now.answered, now.price, now.finished_at) == (2, Decimal("2.0"), 0.0)
    assert now.keys == {"1": 1, "#": 1, "2": 1}

    # A crash: the answered call is unknown, and counts as answered.
    world.recover("other")
    now = state(world, campaign_id)
    assert now.by_status[CallStatus.UNKNOWN] == 1
    assert now.answered == 3


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    ends=st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from([s for s in CallStatus if s.final])),
        max_size=12,
    )
)
def test_counts_equal_the_rows(sqlite_world: World, ends: list[tuple[int, CallStatus]]) -> None:
    world = sqlite_world
    world.clock.advance(1)
    ids = [start(world, 4) for _ in range(3)]
    lease = world.take_over()
    waiting: dict[str | None, list[Claim]] = {campaign_id: [] for campaign_id in ids}
    for one in world.claim(lease, 10_000):
        if one.campaign_id in waiting:
            waiting[one.campaign_id].append(one)
    for which, status in ends:
        left = waiting[ids[which]]
        if left:
            price = Bill(3, Decimal("0.25"))
            world.settle(lease, settlement(left.pop(), Finish(status), Outcome.ANSWERED, price,
                                           answered_at=world.clock()))  # fmt: skip
    for campaign_id in ids:
        page = world.do(
            lambda conn: campaigns.page(conn, world.project_id, campaign_id, None, 100)  # noqa: B023
        )
        now = state(world, campaign_id)
        assert now.by_status == Counter(call.status for call in page)
        assert now.price == sum((call.price for call in page), Decimal(0))
        assert bool(now.finished_at) == all(call.status.final for call in page)


def test_waits_of_each_outcome_are_kept_with_the_call(world: World) -> None:
    waits = RetryWaits((60, 300), (600,))
    start(world, 1, of_call={"retry_waits": str(waits)})
    lease = world.take_over()
    (first,) = world.claim(lease)
    assert first.rule.waits == waits
    left = RetryWaits((300,), (600,))
    world.settle(lease, settlement(first, RetryAt(world.clock() + 60, False, 0, waits=left)))
    world.clock.advance(60)
    (second,) = world.claim(lease)
    assert second.rule.waits == left

    # It rang when its worker crashed: that spends the wait of no answer.
    began = {second.attempt_id: world.clock()}
    world.do(lambda conn: claims.mark_ringing(conn, lease, began))
    lease, _ = world.recover("other")
    world.clock.advance(600)
    (third,) = world.claim(lease)
    assert third.rule.waits == RetryWaits((300,), ())


def test_calls_whose_text_is_not_rendered_wait(world: World) -> None:
    campaign_id = start(world, 1)
    personal = world.new_call(
        campaign_id=campaign_id, lane=Lane.BATCH, recording_id=None, is_personal=True
    )
    people = [Recipient("09121234567", "ref", {"name": "Sara"}, "Asia/Tehran")]
    calls = NewCalls(personal, [personal.id], ["09121234567"], [personal.e164], [Decimal(0)],
                     people, [7])  # fmt: skip
    world.do(lambda conn: placing.place_many(conn, calls))
    lease = world.take_over()

    assert [one.call_id for one in world.claim(lease)] != [personal.id]
    now = world.clock()
    assert world.do(lambda conn: claims.next_due(conn, "main", now)).due_at == now + 1


def test_waiting_calls_of_removed_dialers_expire(world: World) -> None:
    campaign_id = start(world, 2, time_to_live=60)
    world.clock.advance(60)
    now = world.clock()

    assert world.do(lambda conn: recovery.expire_orphans(conn, ["another"], now)) == 2
    assert state(world, campaign_id).by_status == {CallStatus.EXPIRED: 2}
