"""The outbox of webhook events."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import insert

from bitel.domain.attempts import AttemptResult, Outcome
from bitel.domain.calls import CallStatus
from bitel.domain.ids import new_id, new_ids
from bitel.domain.pricing import Bill
from bitel.domain.retry import Finish, RetryAt
from bitel.store import campaigns, claims, endings, monitoring, webhooks
from bitel.store.campaigns import Campaign
from bitel.store.schema import webhook_event, webhook_try
from bitel.store.settling import Settlement
from bitel.store.webhooks import CallOver, Delivery, DeliveryAttempt, Event

if TYPE_CHECKING:
    from tests.support.store_world import World

URL = "https://example.net/hook"


@pytest.fixture
def told(world: World) -> World:
    """A project that has a webhook."""
    world.change(webhook_url=URL, webhook_secret="whsec_x")
    return world


def finish(world: World, count: int = 1, **more: Any) -> list[str]:
    """Calls that are over at once, and so as many events."""
    now = world.clock()
    ids = [world.place(expires_at=now, **more) for _ in range(count)]
    assert world.do(lambda conn: claims.expire(conn, "main", now)) == count
    return ids


def claim(world: World, limit_per_project: int = 9, limit: int = 99, **more: Any) -> list[Delivery]:
    now = world.clock()
    return world.do(
        lambda conn: webhooks.claim_due(conn, now, limit_per_project, limit, **more)
    )  # fmt: skip


def over(one: Delivery) -> CallOver:
    """The content of the event at the end of a call."""
    assert isinstance(one.content, CallOver)
    return one.content


def campaign_of(world: World, total: int = 1, **more: Any) -> str:
    """A campaign of so many calls, which are to be placed."""
    now = world.clock()
    new = Campaign(new_id(now), world.project_id, "main", world.recording_id, now, total, **more)
    world.do(lambda conn: campaigns.add(conn, new))
    return new.id


def record(
    world: World, one: Delivery, status: int | None = 500, next_due: float | None = None
) -> None:
    delivered = status is not None and status < 300
    error = "refused" if status is None else ""
    now = world.clock()
    tried = DeliveryAttempt(one.event_id, now, 0.5, delivered, status, error, next_due, one.tries)
    world.do(lambda conn: webhooks.record(conn, [tried]))


def backlog(world: World) -> int:
    return world.do(lambda conn: monitoring.waiting(conn, [])).webhooks


def history(world: World, **more: Any) -> list[Event]:
    return world.do(lambda conn: webhooks.history(conn, world.project_id, **more))


def test_an_event_tells_of_a_call_that_is_over(told: World) -> None:
    requested_at = told.clock()
    campaign_id = campaign_of(told)
    call_id = told.place(campaign_id=campaign_id, phone_number="0912 1")
    lease = told.take_over()
    (claimed,) = told.claim(lease)
    assert claim(told) == []
    done = AttemptResult(Outcome.ANSWERED, 1.0, 9.0, 2.0)
    bill = Bill(7, Decimal("1.5"))
    ended = Settlement(claimed.attempt_id, call_id, done, Finish(CallStatus.NORMAL), bill)
    told.settle(lease, ended)

    (delivery,) = claim(told)

    (event,) = history(told)
    assert delivery == Delivery(
        event_id=event.id,
        project_id=told.project_id,
        url=URL,
        secret="whsec_x",
        tries=1,
        created_at=event.created_at,
        call_id=call_id,
        content=CallOver(
            campaign_id=campaign_id,
            status=CallStatus.NORMAL,
            bill_seconds=7,
            phone_number="0912 1",
            requested_at=requested_at,
            price=Decimal("1.5"),
        ),
        leased_until=requested_at + webhooks.LEASE,
    )


def test_there_is_one_event_a_call_however_it_ends_and_none_before(told: World) -> None:
    finish(told)
    told.cancel(told.place())
    told.place()  # claimed below, answered, and cut off
    lease = told.take_over()
    (heard,) = told.claim(lease)
    told.heard(lease, heard)
    assert told.count(webhook_event) == 2
    lease = told.take_over()
    assert told.count(webhook_event) == 3
    told.place()
    (busy,) = told.claim(lease)
    done = AttemptResult(Outcome.BUSY, 1.0, 2.0)
    again = Settlement(busy.attempt_id, busy.call_id, done, RetryAt(told.clock(), True, 0))
    told.settle(lease, again)
    assert told.count(webhook_event) == 3
    (busy,) = told.claim(lease)
    ended = Settlement(busy.attempt_id, busy.call_id, done, Finish(CallStatus.USER_BUSY))
    told.settle(lease, ended, ended)
    told.settle(lease, ended)
    assert told.count(webhook_event) == 4
    assert Counter(over(one).status for one in claim(told)) == {
        CallStatus.EXPIRED: 1,
        CallStatus.CANCELED: 1,
        CallStatus.UNKNOWN: 1,
        CallStatus.USER_BUSY: 1,
    }


def test_a_call_ends_once_whoever_ends_it_again(told: World) -> None:
    told.set_balance(Decimal(10))
    call_id = told.place(reserve=Decimal(3))
    other = told.place(reserve=Decimal(4))
    for status in (CallStatus.CANCELED, CallStatus.ERROR):
        end = endings.CallEnd(call_id, status)
        told.do(partial(endings.end_calls, ends=[end, end], now=told.clock()))

    assert told.call(call_id).status is CallStatus.CANCELED
    assert told.call(other).status is CallStatus.WAITING
    assert told.project().reserved == 4
    assert told.count(webhook_event) == 1


def test_nobody_is_told_who_did_not_ask_for_it(world: World) -> None:
    finish(world)
    world.change(webhook_url=URL, webhook_secret="s")
    assert world.do(lambda conn: webhooks.turn_off(conn, world.project_id, URL, "gone"))
    finish(world)
    assert world.count(webhook_event) == 0
    world.change(webhook_url=URL)
    finish(world)
    assert world.count(webhook_event) == 1


def test_an_event_is_leased_and_comes_back_if_nothing_is_heard_of_it(told: World) -> None:
    finish(told)
    (first,) = claim(told, lease=60)
    told.clock.advance(59.9)
    assert claim(told) == []
    told.clock.advance(0.1)

    (second,) = claim(told)

    assert second.event_id == first.event_id
    assert (first.tries, second.tries) == (1, 2)
    assert backlog(told) == 1


def test_what_was_delivered_is_not_tried_again(told: World) -> None:
    finish(told)
    (one,) = claim(told)
    record(told, one, 204)
    told.clock.advance(1000)

    assert claim(told) == []
    assert backlog(told) == 0
    (event,) = history(told)
    assert (event.state, event.due_at, event.tries) == ("delivered", None, 1)
    (tried,) = event.tried
    assert tried.delivered
    assert (tried.status_code, tried.error, tried.seconds) == (204, "", 0.5)


def test_what_failed_is_tried_again_when_it_is_due_until_it_is_given_up(told: World) -> None:
    finish(told)
    (one,) = claim(told)
    record(told, one, 500, next_due=told.clock() + 5)
    assert claim(told) == []
    told.clock.advance(5)
    (one,) = claim(told)
    assert one.tries == 2
    record(told, one, None)

    told.clock.advance(1000)
    assert claim(told) == []
    (event,) = history(told)
    assert (event.state, event.due_at) == ("given up", None)
    assert [(tried.status_code, tried.error) for tried in event.tried] == [
        (500, ""),
        (None, "refused"),
    ]


def test_a_failure_that_comes_late_undoes_no_delivery(told: World) -> None:
    finish(told)
    (slow,) = claim(told)
    told.clock.advance(100)
    (fast,) = claim(told)
    record(told, fast, 200)
    record(told, slow, 500, next_due=told.clock() + 5)
    record(told, slow, 500)

    (event,) = history(told)
    assert event.state == "delivered"
    assert len(event.tried) == 3


def test_a_failure_that_comes_after_its_lease_leaves_the_try_that_follows_alone(
    told: World,
) -> None:
    finish(told)
    (slow,) = claim(told)
    told.clock.advance(webhooks.LEASE)
    (again,) = claim(told)
    assert again.event_id == slow.event_id
    record(told, slow, 500, next_due=told.clock())
    assert claim(told) == [], "its second try is under way"
    record(told, slow, 500)
    told.clock.advance(webhooks.LEASE)
    assert [one.tries for one in claim(told)] == [3]


def typed(world: World, call_id: str, count: int) -> list[str]:
    """Events of a call, in their order."""
    now = world.clock()
    ids = new_ids(now, count)
    rows = [
        {"id": each, "project_id": world.project_id, "call_id": call_id, "type": "call.ringing",
         "body": "{}", "created_at": now, "due_at": now, "tries": 0, "state": "pending"}
        for each in ids
    ]  # fmt: skip
    world.do(lambda conn: conn.execute(insert(webhook_event), rows))
    return ids


def test_an_event_waits_while_another_deliverer_has_an_earlier_one_of_its_call(
    told: World,
) -> None:
    calls = [told.place(), told.place()]
    first = typed(told, calls[0], 3)
    (one,) = claim(told, limit=1)
    assert one.event_id == first[0]
    other = typed(told, calls[1], 1)
    assert [each.event_id for each in claim(told)] == other
    told.clock.advance(webhooks.WAIT_FOR_EARLIER)
    late = typed(told, calls[0], 1)
    assert claim(told) == [], "nor does a later one overtake those that wait"
    record(told, one, 204)
    told.clock.advance(webhooks.WAIT_FOR_EARLIER)
    assert [each.event_id for each in claim(told)] == [*first[1:], *late]


def test_a_deliverer_has_several_events_of_a_call_and_failed_ones_hold_up_no_other(
    told: World,
) -> None:
    call_id = told.place()
    first, second, third = typed(told, call_id, 3)
    (one,) = claim(told, limit=1)
    (two,) = claim(told, limit=1, own=[one.event_id])
    assert (one.event_id, two.event_id) == (first, second)
    for each in (one, two):
        record(told, each, 500, next_due=told.clock() + 5)
    assert [each.event_id for each in claim(told)] == [third]


def test_a_delivery_that_comes_late_counts(told: World) -> None:
    finish(told)
    (one,) = claim(told)
    record(told, one, 500)
    record(told, one, 200)

    assert history(told)[0].state == "delivered"


def test_no_project_holds_up_another(told: World) -> None:
    busy = told
    finish(busy, 20)
    others = [told.another(f"p{n}") for n in range(3)]
    for other in others:
        other.change(webhook_url=URL, webhook_secret="s")
        finish(other, 2)

    first = claim(busy, limit_per_project=4, limit=99)
    counts = Counter(one.project_id for one in first)
    assert counts == {busy.project_id: 4, **{other.project_id: 2 for other in others}}
    in_flight = {busy.project_id: 4}
    assert claim(busy, limit_per_project=4, in_flight=in_flight) == []
    (one,) = claim(busy, limit_per_project=4, in_flight={busy.project_id: 3})
    assert one.project_id == busy.project_id


def test_room_that_a_project_leaves_is_for_those_that_follow(told: World) -> None:
    worlds = sorted([told, *map(told.another, "bcd")], key=lambda one: one.project_id)
    for one, events in zip(worlds, (1, 3, 1, 9), strict=True):
        one.change(webhook_url=URL, webhook_secret="s")
        finish(one, events)

    claimed = claim(told, limit_per_project=5, limit=7)

    counts = Counter(one.project_id for one in claimed)
    assert [counts[one.project_id] for one in worlds] == [1, 3, 1, 2]
    assert len({one.event_id for one in claimed}) == 7


def test_projects_take_turns_when_there_is_not_room_for_all(told: World) -> None:
    worlds = [told, told.another("b"), told.another("c")]
    for one in worlds:
        one.change(webhook_url=URL, webhook_secret="s")
        finish(one, 4)
    last, served = "", []
    for _ in range(6):
        (delivery,) = claim(told, limit_per_project=2, limit=1, after_project=last)
        last = delivery.project_id
        served.append(last)

    assert served == sorted(one.project_id for one in worlds) * 2
    full = {one.project_id: 9 for one in worlds[:2]}
    assert {one.project_id for one in claim(told, in_flight=full)} == {worlds[2].project_id}
    assert claim(told, limit=0) == []


def test_a_projects_longest_due_event_goes_first(told: World) -> None:
    calls = []
    for _ in range(3):
        calls += finish(told)
        told.clock.advance(1)

    assert [one.call_id for one in claim(told)] == calls


def test_events_wait_while_the_url_is_off(told: World) -> None:
    finish(told)
    assert told.do(lambda conn: webhooks.turn_off(conn, told.project_id, URL, "answered 410"))
    assert told.project().webhook_off_reason == "answered 410"
    assert claim(told) == []
    assert backlog(told) == 1
    told.change(webhook_url=None)
    assert claim(told) == []

    told.change(webhook_url="https://example.net/new")

    assert told.project().webhook_off_reason is None
    assert [one.url for one in claim(told)] == ["https://example.net/new"]


def test_a_url_that_was_changed_meanwhile_stays_on(told: World) -> None:
    told.change(webhook_url="https://example.net/new")
    assert not told.do(lambda conn: webhooks.turn_off(conn, told.project_id, URL, "gone"))
    assert told.project().webhook_off_reason is None


@pytest.mark.parametrize("by", ["event", "call"])
def test_an_event_can_be_sent_again(told: World, by: str) -> None:
    (call_id,) = finish(told)
    (one,) = claim(told)
    record(told, one, 200)
    which = one.event_id if by == "event" else call_id
    now = told.clock.advance(1000)

    def redeliver(project_id: str | None, what: str = which) -> bool:
        return told.do(lambda conn: webhooks.redeliver(conn, project_id, what, now))

    assert not redeliver("another")
    assert not redeliver(None, "unknown")
    assert redeliver(told.project_id)
    (again,) = claim(told)
    assert (again.event_id, again.tries) == (one.event_id, 1)
    assert redeliver(None)
    assert len(history(told)[0].tried) == 1


def test_the_history_is_a_projects_or_a_calls_or_everybodys(told: World) -> None:
    calls = []
    for _ in range(3):
        calls += finish(told)
        told.clock.advance(1)
    other = told.another("other")
    other.change(webhook_url=URL, webhook_secret="s")
    finish(other)

    assert [event.call_id for event in history(told)] == calls[::-1]
    assert [event.call_id for event in history(told, limit=1)] == calls[2:]
    assert [event.call_id for event in history(told, call_id=calls[0])] == calls[:1]
    assert history(other, call_id=calls[0]) == []
    assert len(told.do(lambda conn: webhooks.history(conn))) == 4


@pytest.mark.parametrize("error", ["no\0thing", "\ud83d", "x" * 5000])
def test_what_a_receiver_says_can_always_be_stored(told: World, error: str) -> None:
    finish(told)
    (one,) = claim(told)
    tried = DeliveryAttempt(one.event_id, 1.0, 0.1, False, None, error)

    told.do(lambda conn: webhooks.record(conn, [tried]))

    assert 0 < len(history(told)[0].tried[0].error) <= 200
    told.do(lambda conn: webhooks.record(conn, []))
    assert told.count(webhook_try) == 1


def test_an_event_names_no_other_call(told: World) -> None:
    assert history(told, call_id=new_id(1.0)) == []
