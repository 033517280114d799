"""Events from the outbox to receivers: taken once, tried again, given up, held up by nobody."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from structlog.testing import capture_logs

from bitel.errors import UnavailableError
from bitel.store import webhooks as outbox
from bitel.store.database import Database
from bitel.store.schema import DELIVERED, GIVEN_UP, PENDING
from bitel.store.webhooks import LEASE
from bitel.webhooks import deliverer as deliverer_module
from bitel.webhooks.deliverer import GONE, Deliverer
from bitel.webhooks.http_client import HttpClient, TimeLimits
from bitel.webhooks.retry_policy import PAUSES
from bitel.webhooks.signing import verify
from tests.support.http_server import Received, answer, hang, raw, receiver
from tests.support.waiting import until

if TYPE_CHECKING:
    from tests.webhooks.post import Post

SHORT = TimeLimits(connect=0.2, answer=0.2, body=0.2)


async def test_an_event_is_told_once_signed_and_with_its_id(post: Post) -> None:
    async with receiver() as one:
        project_id = post.project(one.url)
        (event_id,) = post.events(project_id)
        async with post.deliverer():
            (event,) = await post.settled(project_id, 1)
    (got,) = one.received
    assert got.id == event_id
    assert got.headers["content-type"] == "application/json"
    assert verify(post.column(project_id, "webhook_secret"), got.headers, got.body, post.clock())
    assert got.event == {
        "requestId": event.call_id,
        "campaignId": None,
        "cause": "NORMAL",
        "billSec": 12,
        "number": "0912 123 4567",
        "requestDate": int(post.clock() - 60.5),
        "balanceSubtracted": 34.2,
    }
    assert (event.state, event.due_at, event.tries) == (DELIVERED, None, 1)
    assert (event.tried[0].status_code, event.tried[0].at) == (200, post.clock())


async def test_a_ring_is_heard_at_once(sqlite_post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deliverer_module, "_POLL", 1e6)
    async with receiver() as one:
        project_id = sqlite_post.project(one.url)
        async with sqlite_post.deliverer() as deliverer:
            await sqlite_post.looked(deliverer, wake=False)
            sqlite_post.events(project_id)
            deliverer.wake()
            await one.until(1)


async def test_many_events_go_out_and_each_is_told_once(post: Post) -> None:
    async with receiver() as one:
        project_id = post.project(one.url)
        ids = post.events(project_id, 100)
        async with post.deliverer(per_project=4):
            await post.settled(project_id, 100)
    assert Counter(got.id for got in one.received) == Counter(ids)
    assert one.connections <= 4


async def test_one_that_fails_is_tried_on_schedule_with_one_id_and_given_up(
    sqlite_post: Post,
) -> None:
    post = sqlite_post
    async with receiver(answer(500)) as one:
        project_id = post.project(one.url)
        (event_id,) = post.events(project_id)
        async with post.deliverer() as deliverer:
            for tries in range(1, len(PAUSES) + 1):
                (event,) = await post.settled(project_id, tries)
                assert event.state == PENDING
                assert event.due_at is not None
                pause = event.due_at - post.clock()
                assert pause == pytest.approx(PAUSES[tries - 1], rel=0.11, abs=2)
                # Not a moment before it is due.
                post.clock.now = event.due_at - 0.01
                await post.looked(deliverer)
                assert (len(one.received), deliverer.running) == (tries, 0)
                post.clock.now = event.due_at
                deliverer.wake()
            (event,) = await post.settled(project_id, len(PAUSES) + 1)
            post.clock.advance(1e6)
            await post.looked(deliverer)
            assert deliverer.running == 0
    assert (event.state, event.due_at) == (GIVEN_UP, None)
    assert [one_try.status_code for one_try in event.tried] == [500] * 10
    assert {got.id for got in one.received} == {event_id}
    assert len(one.received) == 10
    assert len({got.headers["webhook-timestamp"] for got in one.received}) == 10
    assert len({got.headers["webhook-signature"] for got in one.received}) == 10
    assert len({got.body for got in one.received}) == 1


async def test_one_that_fails_and_is_taken_then_is_done(post: Post) -> None:
    async with receiver(answer(503, Retry_After="90")) as one:
        project_id = post.project(one.url)
        post.events(project_id)
        async with post.deliverer() as deliverer:
            (event,) = await post.settled(project_id, 1)
            assert event.due_at == pytest.approx(post.clock() + 90, abs=2)
            one.answerer = answer(202)
            post.clock.advance(95)
            deliverer.wake()
            (event,) = await post.settled(project_id, 2)
    assert (event.state, event.due_at) == (DELIVERED, None)
    assert [tried.status_code for tried in event.tried] == [503, 202]
    assert [tried.delivered for tried in event.tried] == [False, True]


@pytest.mark.parametrize(
    ("answerer", "error"),
    [(hang, "no answer within 0.2 s"), (raw(b"", close=True), "closed the connection")],
)
async def test_no_answer_is_a_failure_that_is_told(
    sqlite_post: Post, answerer: object, error: str
) -> None:
    post = sqlite_post
    async with receiver(answerer) as one:  # type: ignore[arg-type]
        project_id = post.project(one.url)
        post.events(project_id)
        async with post.deliverer(limits=SHORT):
            (event,) = await post.settled(project_id, 1)
    (tried,) = event.tried
    assert (event.state, tried.status_code) == (PENDING, None)
    assert error in tried.error


async def test_gone_turns_the_url_off_until_it_is_set_anew(post: Post) -> None:
    async with receiver(answer(410)) as one:
        project_id = post.project(one.url)
        post.events(project_id, 5)
        async with post.deliverer(per_project=1) as deliverer:
            events = await post.settled(project_id, 1)
            assert post.column(project_id, "webhook_off_reason") == GONE
            post.clock.advance(1e6)
            await post.looked(deliverer)
            assert (len(one.received), deliverer.running) == (1, 0)
            assert Counter(event.state for event in events) == {GIVEN_UP: 1, PENDING: 4}
            one.answerer = answer()
            post.set(project_id, webhook_off_reason=None)
            deliverer.wake()
            await post.settled(project_id, 5)
    assert len(one.received) == 5


async def test_gone_of_an_url_that_was_changed_meanwhile_is_no_word_of_the_new_one(
    sqlite_post: Post,
) -> None:
    post = sqlite_post
    release = asyncio.Event()

    async def gone_at_last(got: Received, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        await answer(410)(got, writer)

    async with receiver() as new, receiver(gone_at_last) as old:
        project_id = post.project(old.url)
        post.events(project_id)
        async with post.deliverer() as deliverer:
            await old.until(1)
            post.set(project_id, webhook_url=new.url)
            release.set()
            (event,) = await post.settled(project_id, 1)
            assert (event.state, len(new.received)) == (PENDING, 0)
            assert post.column(project_id, "webhook_off_reason") is None
            post.clock.advance(10)
            deliverer.wake()
            (event,) = await post.settled(project_id, 2)
    assert (event.state, len(old.received), len(new.received)) == (DELIVERED, 1, 1)


async def test_receivers_that_hang_hold_up_no_other(sqlite_post: Post) -> None:
    post = sqlite_post
    async with receiver(hang) as slow, receiver() as fast:
        slow_ids = [post.project(slow.url, f"slow-{n}") for n in range(3)]
        for project_id in slow_ids:
            post.events(project_id, 200)
        fast_id = post.project(fast.url, "fast")
        post.events(fast_id, 50)
        async with post.deliverer(concurrency=10, per_project=3):
            await post.settled(fast_id, 50)
            # All this while nobody who hangs was given up, nor had more than its share.
            per_project = Counter(got.event["requestId"] for got in slow.received)
            assert 3 <= len(per_project) <= 9
    assert len(fast.received) == 50


async def test_a_receiver_in_trouble_has_one_try_at_a_time(sqlite_post: Post) -> None:
    post = sqlite_post
    async with receiver(hang) as one:
        project_id = post.project(one.url)
        post.events(project_id, 12)

        def under_way() -> int:
            return len(one.received) - sum(len(each.tried) for each in post.history(project_id))

        async with post.deliverer(per_project=4, limits=SHORT):
            await one.until(4)
            assert under_way() == 4
            await post.settled(project_id, 4)
            while len(one.received) < 8:
                assert under_way() <= 1
                await asyncio.sleep(0.01)
            one.answerer = answer()
            events = await post.settled(project_id, 12)
    assert Counter(event.state for event in events)[DELIVERED] >= 4


async def test_a_fault_of_our_own_is_logged_and_comes_back_no_sooner_than_any_other(
    sqlite_post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    post = sqlite_post

    async def broken(*_: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(HttpClient, "post", broken)
    monkeypatch.setattr(deliverer_module, "log", structlog.get_logger())
    with capture_logs() as lines:
        async with receiver() as one:
            project_id = post.project(one.url)
            (event_id,) = post.events(project_id)
            async with post.deliverer():
                (event,) = await post.settled(project_id, 1)
    assert event.state == PENDING
    assert event.tried[0].error == "a fault inside the deliverer"
    assert (lines[0]["event"], lines[0]["event_id"]) == ("webhook_try_broke", event_id)


VICTIM = """
import asyncio, sys, time
from bitel.store.database import Database
from bitel.webhooks.deliverer import Deliverer

async def main():
    with Database.open(sys.argv[1]) as database:
        await Deliverer(database, time.time, allow_private=True).run()

asyncio.run(main())
"""


async def test_a_kill_between_post_and_record_tells_it_again_with_the_same_id(
    sqlite_post: Post, sqlite_url: str
) -> None:
    post = sqlite_post
    async with receiver(hang) as one:
        post.clock.now = time.time()
        project_id = post.project(one.url)
        (event_id,) = post.events(project_id)
        victim = await asyncio.create_subprocess_exec(sys.executable, "-c", VICTIM, sqlite_url)
        await one.until(1, timeout=30)
        victim.kill()
        await victim.wait()
        one.answerer = answer()
        (event,) = post.history(project_id)
        assert (event.state, event.tried, event.tries) == (PENDING, (), 1)

        async with post.deliverer() as deliverer:
            await post.looked(deliverer)
            # The dead one's lease still holds.
            assert (len(one.received), deliverer.running) == (1, 0)
            post.clock.now = time.time() + LEASE
            deliverer.wake()
            (event,) = await post.settled(project_id, 1)
    assert [got.id for got in one.received] == [event_id, event_id]
    assert (event.state, event.tries) == (DELIVERED, 2)


async def test_a_try_does_not_begin_when_its_lease_is_nearly_over(
    sqlite_post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    post = sqlite_post
    claimed_at = post.clock()
    times = iter([claimed_at])  # the claim; then the process is stopped for a while

    def clock() -> float:
        return next(times, claimed_at + LEASE - 10.0)

    monkeypatch.setattr(deliverer_module, "log", structlog.get_logger())
    with capture_logs() as lines:
        async with receiver() as one:
            project_id = post.project(one.url)
            post.events(project_id)
            deliverer = Deliverer(post.database, clock, allow_private=True)
            task = asyncio.create_task(deliverer.run())
            await until(lambda: lines)
            assert not one.received
            (event,) = post.history(project_id)
            assert (event.state, event.due_at) == (PENDING, claimed_at + LEASE)
            await deliverer.drain(5)
            await task
            post.clock.advance(LEASE)
            async with post.deliverer():
                await post.settled(project_id, 1)
    lines = [line for line in lines if line["log_level"] != "debug"]
    assert [line["event"] for line in lines] == ["webhook_lease_over"]


async def test_two_deliverers_post_each_event_once_and_those_of_a_call_in_order(
    post: Post, database_url: str
) -> None:
    under_way: Counter[str] = Counter()
    seen: dict[str, list[str]] = {}

    async def slow(got: Received, writer: asyncio.StreamWriter) -> None:
        call_id = got.event["data"]["id"] if "data" in got.event else got.event["requestId"]
        seen.setdefault(call_id, []).append(got.id)
        under_way[call_id] += 1
        assert under_way[call_id] == 1
        await asyncio.sleep(random.random() * 0.01)
        under_way[call_id] -= 1
        await answer()(got, writer)

    with Database.open(database_url) as second:
        async with receiver(slow) as one:
            project_id = post.project(one.url)
            wanted = {}
            for event_id in post.events(project_id, 40):
                (event,) = (each for each in post.history(project_id) if each.id == event_id)
                assert event.call_id is not None
                wanted[event.call_id] = [event_id, *post.more_events(event, 2)]
            async with (
                post.deliverer(per_project=5),
                replace(post, database=second).deliverer(per_project=5),
            ):
                passing = asyncio.create_task(post.passing())
                await until(lambda: len(one.received) >= 120, 30)
                passing.cancel()
                await post.settled(project_id, 120)
    assert seen == wanted


async def test_a_database_that_is_away_for_a_while_loses_nothing(
    sqlite_post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    post = sqlite_post
    written = post.database.write
    monkeypatch.setattr(deliverer_module, "_AFTER_FAULT", 0.01)
    fail = random.Random(3)
    failures = 0

    async def write(work: object) -> object:
        nonlocal failures
        if fail.random() < 0.4:
            failures += 1
            raise UnavailableError("the database can't do this now")
        return await written(work)  # type: ignore[arg-type]

    async with receiver() as one:
        project_id = post.project(one.url)
        ids = post.events(project_id, 20)
        deliverer = Deliverer(post.database, post.clock, allow_private=True)
        deliverer._database = _Writes(write)  # type: ignore[assignment]
        task = asyncio.create_task(deliverer.run())
        await post.settled(project_id, 20)
        await deliverer.drain(0)
        await task
    assert failures > 3
    assert Counter(got.id for got in one.received) == Counter(ids)


async def test_a_round_that_breaks_does_not_end_delivery(
    sqlite_post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    post = sqlite_post
    monkeypatch.setattr(deliverer_module, "_AFTER_FAULT", 0.01)
    record = outbox.record
    broken = 2

    def record_at_last(*arguments: Any) -> None:
        nonlocal broken
        if arguments[1] and broken:
            broken -= 1
            raise ZeroDivisionError("ours")
        record(*arguments)

    monkeypatch.setattr(outbox, "record", record_at_last)
    async with receiver() as one:
        project_id = post.project(one.url)
        (event_id,) = post.events(project_id)
        async with post.deliverer() as deliverer:
            for count in (1, 2, 3):
                await one.until(count)
                await post.until(lambda: not deliverer.running)
                post.clock.advance(LEASE + 1)
                deliverer.wake()
            (event,) = await post.settled(project_id, 1)
    assert event.state == DELIVERED
    assert [got.id for got in one.received] == [event_id] * 3


async def test_draining_lets_tries_end_and_begins_no_more(sqlite_post: Post) -> None:
    post = sqlite_post
    release = asyncio.Event()

    async def later(got: Received, writer: asyncio.StreamWriter) -> None:
        await release.wait()
        await answer()(got, writer)

    async with receiver(later) as one:
        project_id = post.project(one.url)
        post.events(project_id, 10)
        deliverer = Deliverer(post.database, post.clock, allow_private=True, per_project=2)
        task = asyncio.create_task(deliverer.run())
        await one.until(2)
        drain = asyncio.create_task(deliverer.drain(10))
        ended, _ = await asyncio.wait({drain}, timeout=0.02)
        assert not ended
        release.set()
        await drain
        await task
    events = post.history(project_id)
    assert Counter(event.state for event in events) == {DELIVERED: 2, PENDING: 8}
    assert deliverer.running == 0


async def test_draining_cuts_off_what_takes_too_long(sqlite_post: Post) -> None:
    post = sqlite_post
    async with receiver(hang) as one:
        project_id = post.project(one.url)
        post.events(project_id)
        async with post.deliverer() as deliverer:
            await one.until(1)
        assert deliverer.running == 0
    (event,) = post.history(project_id)
    assert (event.state, event.due_at) == (PENDING, post.clock() + LEASE)


async def test_a_private_receiver_is_refused_unless_allowed(sqlite_post: Post) -> None:
    post = sqlite_post
    async with receiver() as one:
        project_id = post.project(one.url)
        post.events(project_id)
        async with post.deliverer(allow_private=False):
            (event,) = await post.settled(project_id, 1)
    assert (event.state, one.connections) == (PENDING, 0)
    assert event.tried[0].error == "refused: 127.0.0.1 is a loopback address"


async def test_a_secret_that_is_none_is_a_failure_that_says_so_and_not_what(
    sqlite_post: Post,
) -> None:
    post = sqlite_post
    async with receiver() as one:
        project_id = post.project(one.url)
        post.set(project_id, webhook_secret="whsec_c2hvcnQ=")
        post.events(project_id)
        async with post.deliverer():
            (event,) = await post.settled(project_id, 1)
    assert one.received == []
    assert "24 to 64 bytes" in event.tried[0].error
    assert "c2hvcnQ" not in event.tried[0].error


async def test_logs_hold_neither_secret_nor_number_nor_url(
    sqlite_post: Post, monkeypatch: pytest.MonkeyPatch
) -> None:
    post = sqlite_post
    monkeypatch.setattr(deliverer_module, "log", structlog.get_logger())
    with capture_logs() as lines:
        for number, status in enumerate((200, 500, 410), 1):
            async with receiver(answer(status)) as one:
                project_id = post.project(one.url + "/secret-path?token=t0ken", f"p{status}")
                post.events(project_id)
                async with post.deliverer():
                    await post.settled(project_id, 1)
                    await until(partial(lambda number: len(lines) >= number, number))
    told = [line["event"] for line in lines]
    assert told == ["webhook_delivered", "webhook_failed", "webhook_turned_off"]
    text = repr(lines)
    for hidden in ("whsec_", "0912", "98912", "4567", "secret-path", "t0ken"):
        assert hidden not in text
    assert all(line["event_id"] for line in lines)
    for project_id in (line["project"] for line in lines):
        assert post.column(project_id, "webhook_secret") not in text


class _Writes:
    """A database whose writes go through another function."""

    def __init__(self, write: object) -> None:
        self.write = write


async def test_dates_and_timestamps_follow_the_system_clock(post: Post) -> None:
    async with receiver() as one:
        project_id = post.project(one.url)
        post.events(project_id)
        placed_at = int(post.clock() - 60.5 + 3600)
        deliverer = Deliverer(post.database, post.clock, lambda at: at + 3600, allow_private=True)
        task = asyncio.create_task(deliverer.run())
        (event,) = await post.settled(project_id, 1)
        await deliverer.drain(0)
        await task
    (got,) = one.received
    assert event.tried[0].at == post.clock()
    assert int(got.headers["webhook-timestamp"]) == int(post.clock() + 3600)
    assert json.loads(got.body)["requestDate"] == placed_at
