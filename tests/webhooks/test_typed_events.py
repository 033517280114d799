"""Typed events and webhooks of requests, from the facts in the store to a real receiver."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, update

from bitel.api.responses import CallDetailsAnswer, CampaignAnswer
from bitel.api.webhook_document import CallEvent, CampaignEvent
from bitel.domain.attempts import AttemptResult, Outcome
from bitel.domain.calls import CallStatus
from bitel.domain.retry import Finish, RetryAt
from bitel.domain.webhooks import EVENT_TYPES, request_webhook
from bitel.store import claims, event_rows, webhooks
from bitel.store.schema import DELIVERED, GIVEN_UP, PENDING, project, webhook, webhook_event
from bitel.store.settling import Settlement
from bitel.webhooks.deliverer import GONE, Deliverer
from bitel.webhooks.signing import new_secret, verify
from tests.support.http_server import Received, answer, receiver
from tests.support.store_world import World
from tests.support.waiting import until

if TYPE_CHECKING:
    from bitel.store.claims import Claim
    from bitel.store.database import Database
    from bitel.store.leases import Lease
    from tests.support.clocks import FakeClock
    from tests.webhooks.post import Post

ALL = EVENT_TYPES
STATES = ["call.initiated", "call.ringing", "call.answered", "call.completed"]


@pytest.fixture
def world(database: Database, clock: FakeClock) -> World:
    return World.make(database, clock)


def named(world: World, url: str, events: tuple[str, ...] = ALL) -> str:
    """A webhook that requests name."""
    world.change(webhook_secret=new_secret())
    made = request_webhook(world.project_id, url, events)
    world.do(lambda conn: event_rows.name_webhooks(conn, [made]))
    return made.id


def ring(world: World, lease: Lease, one: Claim) -> None:
    rang = {one.attempt_id: world.clock.advance(1)}
    reported = rang.keys() if "call.ringing" in one.events else ()
    world.do(lambda conn: claims.mark_ringing(conn, lease, rang, reported))


def hear(world: World, lease: Lease, one: Claim) -> None:
    at = {one.attempt_id: world.clock.advance(1)}
    reported = at.keys() if "call.answered" in one.events else ()
    world.do(lambda conn: claims.mark_answered(conn, lease, at, reported))


def end(world: World, lease: Lease, one: Claim, *, again: bool = False) -> None:
    now = world.clock.advance(1)
    outcome = Outcome.BUSY if again else Outcome.ANSWERED
    decision = RetryAt(now, True, 0) if again else Finish(CallStatus.NORMAL)
    answered_at = None if again else now - 1
    result = AttemptResult(outcome, one.started_at, now, answered_at)
    world.settle(lease, Settlement(one.attempt_id, one.call_id, result, decision))


def two_attempts(world: World, call_id: str) -> None:
    """A busy attempt, then one that is answered."""
    lease = world.take_over()
    for again in (True, False):
        world.clock.advance(1)
        (one,) = world.claim(lease)
        assert one.call_id == call_id
        ring(world, lease, one)
        if not again:
            hear(world, lease, one)
        end(world, lease, one, again=again)


def types(received: list[Received]) -> list[str | None]:
    return [got.event.get("type") for got in received]


async def deliver(world: World, count: int, received: list[Received], **more: Any) -> None:
    """Deliver until a receiver has got so many events and their results are stored."""
    import asyncio

    def over() -> bool:
        left = select(webhook_event.c.id).where(webhook_event.c.due_at <= world.clock())
        # A post is received a moment before its result is written.
        is_done = len(received) >= count and one.running == 0
        return is_done and not world.do(lambda conn: conn.execute(left).all())

    one = Deliverer(world.database, world.clock, allow_private=True, **more)
    task = asyncio.create_task(one.run())
    try:
        await until(over)
    finally:
        await one.drain(0)
        await task


async def test_each_state_of_a_call_is_posted_once_in_order_and_signed(world: World) -> None:
    async with receiver() as one:
        webhook_id = named(world, one.url)
        call_id = world.place(webhook_id=webhook_id)
        two_attempts(world, call_id)
        await deliver(world, 8, one.received)
    assert types(one.received) == [
        "call.initiated", "call.ringing", "call.completed",
        "call.initiated", "call.ringing", "call.answered", "call.completed", None,
    ] or types(one.received) == [
        "call.initiated", "call.ringing", "call.completed",
        "call.initiated", "call.ringing", "call.answered", None, "call.completed",
    ]  # fmt: skip
    assert len({got.id for got in one.received}) == 8
    secret = world.project().webhook_secret
    assert secret is not None
    for got in one.received:
        assert verify(secret, got.headers, got.body, world.clock())
    typed = [got.event for got in one.received if "type" in got.event]
    assert all(list(event) == ["type", "date", "data"] for event in typed)
    for event in typed:
        CallEvent.model_validate(event, strict=True)
        assert list(event["data"]) == list(CallDetailsAnswer.model_fields)
    assert [event["date"] for event in typed] == sorted(event["date"] for event in typed)
    assert [len(event["data"]["attempts"]) for event in typed] == [1, 1, 1, 2, 2, 2, 2]
    assert [event["data"]["status"] for event in typed] == ["WAITING"] * 6 + ["NORMAL"]
    last = typed[-2]["data"]["attempts"][-1]
    assert (last["answerDate"], last["endDate"]) == (typed[-2]["date"], 0)
    assert typed[1]["data"]["attempts"][0]["ringDate"] == typed[1]["date"]


async def test_only_what_is_asked_for_is_posted(world: World) -> None:
    async with receiver() as one:
        world.change(
            webhook_url=one.url, webhook_secret=new_secret(), webhook_events=("call.answered",)
        )
        call_id = world.place()
        two_attempts(world, call_id)
        await deliver(world, 2, one.received)
    assert sorted(types(one.received), key=str) == [None, "call.answered"]


async def test_a_repeated_write_of_a_fact_posts_nothing_more(world: World) -> None:
    named_id = named(world, "https://hooks.example/")
    world.place(webhook_id=named_id)
    lease = world.take_over()
    (one,) = world.claim(lease)
    for _ in range(2):
        ring(world, lease, one)
    for _ in range(2):
        hear(world, lease, one)
    ring(world, lease, one)
    for _ in range(2):
        end(world, lease, one)
    found = world.do(lambda conn: webhooks.history(conn, world.project_id))
    assert sorted(each.type for each in found) == sorted([*STATES, ""])


async def test_the_body_is_the_same_at_each_try_whatever_happens_meanwhile(world: World) -> None:
    async with receiver(answer(500)) as one:
        webhook_id = named(world, one.url, ("call.initiated",))
        world.place(webhook_id=webhook_id)
        lease = world.take_over()
        (claimed,) = world.claim(lease)
        await deliver(world, 1, one.received)
        hear(world, lease, claimed)
        end(world, lease, claimed)
        one.answerer = answer(200)
        world.clock.advance(10)
        await deliver(world, 3, one.received)
    first, *_ = one.received
    again = [got for got in one.received if got.id == first.id]
    assert [got.body for got in again] == [first.body] * 2
    assert first.event["data"]["attempts"][0]["outcome"] is None


async def test_an_attempt_that_a_crash_has_cut_off_is_completed(world: World) -> None:
    async with receiver() as one:
        webhook_id = named(world, one.url)
        world.place(webhook_id=webhook_id)
        lease = world.take_over()
        (claimed,) = world.claim(lease)
        hear(world, lease, claimed)
        world.take_over()  # the process was killed before any post
        await deliver(world, 4, one.received)
    by_type = {got.event.get("type"): got.event for got in one.received}
    assert by_type.keys() == {"call.initiated", "call.answered", "call.completed", None}
    data = by_type["call.completed"]["data"]
    assert (data["status"], data["attempts"][0]["outcome"]) == ("UNKNOWN", "INTERRUPTED")


async def test_a_claim_that_was_undone_is_completed_too(world: World) -> None:
    webhook_id = named(world, "https://hooks.example/")
    world.place(webhook_id=webhook_id)
    lease = world.take_over()
    (one,) = world.claim(lease)
    assert world.do(lambda conn: claims.undo(conn, lease, {one.started_at}, ())) == 1
    found = world.do(lambda conn: webhooks.history(conn, world.project_id))
    assert sorted(each.type for each in found) == ["call.completed", "call.initiated"]


async def test_410_turns_off_the_requests_url_only(world: World) -> None:
    async with receiver() as shop, receiver(answer(410)) as gone:
        webhook_id = named(world, gone.url)
        world.change(webhook_url=shop.url)
        world.place(webhook_id=webhook_id)
        world.place()
        lease = world.take_over()
        both = world.claim(lease)
        await deliver(world, 1, gone.received)
        for each in both:
            hear(world, lease, each)
            end(world, lease, each)
        await deliver(world, 1, shop.received)
        assert len(gone.received) == 1
        assert types(shop.received) == [None]
    stored = world.do(lambda conn: conn.execute(select(webhook)).one())
    assert stored.off_reason == GONE
    assert world.project().webhook_off_reason is None
    states = {each.webhook_id: each.state for each in
              world.do(lambda conn: webhooks.history(conn, world.project_id))}  # fmt: skip
    assert states == {webhook_id: GIVEN_UP, None: DELIVERED}


async def test_events_of_a_url_that_is_off_do_not_hold_up_others(world: World) -> None:
    async with receiver() as one:
        webhook_id = named(world, one.url, ())
        world.change(webhook_url="http://127.0.0.1:1/")
        for _ in range(30):
            world.cancel(world.place())
        off = update(project).values(webhook_off_reason="gone")
        world.do(lambda conn: conn.execute(off))
        world.clock.advance(1)
        world.cancel(world.place(webhook_id=webhook_id))
        await deliver(world, 1, one.received, per_project=2)
        # The others wait until the project's URL is set again.
        await_again = world.do(lambda conn: webhooks.history(conn, world.project_id))
        assert sum(each.state == PENDING for each in await_again) == 30
        world.change(webhook_url=one.url)
        world.clock.advance(webhooks.PARKED)
        await deliver(world, 31, one.received)


async def test_a_campaigns_end_is_posted_after_its_last_call(world: World) -> None:
    from bitel.domain.ids import new_id
    from bitel.store import campaigns
    from bitel.store.campaigns import Campaign

    async with receiver() as one:
        webhook_id = named(world, one.url, ("call.completed", "campaign.finished"))
        now = world.clock()
        made = Campaign(new_id(now), world.project_id, "main", world.recording_id, now, 2,
                        webhook_id=webhook_id, name="spring")  # fmt: skip
        world.do(lambda conn: campaigns.add(conn, made))
        calls = [world.place(campaign_id=made.id, webhook_id=webhook_id) for _ in range(2)]
        lease = world.take_over()
        for each in world.claim(lease):
            hear(world, lease, each)
            end(world, lease, each)
            found = world.do(lambda conn: webhooks.history(conn, world.project_id))
            over = sum(item.type == "" for item in found)
            assert [item.type for item in found].count("campaign.finished") == over // 2
        (finished,) = [item for item in found if item.type == "campaign.finished"]
        assert (finished.call_id, finished.campaign_id) == (None, made.id)
        assert found[0].id == finished.id
        # Its body does not change when its name does.
        world.do(lambda conn: campaigns.change(conn, world.project_id, made.id, name="summer"))
        await deliver(world, 5, one.received)
    (event,) = [got.event for got in one.received if got.event.get("type") == finished.type]
    assert (event["data"]["id"], event["data"]["name"]) == (made.id, "spring")
    assert (event["data"]["byStatus"]["NORMAL"], event["data"]["answered"]) == (len(calls), 2)
    assert event["date"] == event["data"]["finishedDate"]
    CampaignEvent.model_validate(event, strict=True)
    assert list(event["data"]) == list(CampaignAnswer.model_fields)


async def test_stored_values_that_cannot_be_read_are_a_failed_try(sqlite_post: Post) -> None:
    post = sqlite_post
    async with receiver() as one:
        project_id = post.project(one.url)
        (event_id,) = post.events(project_id)
        broken = update(webhook_event).values(type="call.answered", body="{}")
        post.do(lambda conn: conn.execute(broken))
        async with post.deliverer():
            (event,) = await post.settled(project_id, 1)
    assert one.received == []
    assert (event.id, event.state) == (event_id, PENDING)
    assert event.tried[0].error == "its stored values can't be read"
