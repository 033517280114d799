"""Calls that a dispatcher leaves behind: after a crash, a take-over by another, a drain."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bitel.dialing.dispatcher import REDIAL_MARGIN, Dispatcher
from bitel.dialing.limit_shares import Limits
from bitel.domain.attempts import Outcome
from bitel.domain.calls import CallStatus
from bitel.store.database import Database
from bitel.store.leases import LostLease
from bitel.store.number_exclusion import PARKED_FOR
from tests.dialing.scripted import RING_TIMEOUT, TARIFF, Play, ScriptedDialer, at_work
from tests.support.carrier import answering, carrier
from tests.support.clocks import FakeClock
from tests.support.sip_dialer import dialer as sip_dialer
from tests.support.waiting import until


@pytest.fixture
async def play(database: Database) -> Play:
    made = Play(database, FakeClock())
    await made.set_up()
    return made


@contextlib.asynccontextmanager
async def ringing(play: Play, dialer: ScriptedDialer, count: int) -> AsyncIterator[Dispatcher]:
    """A dispatcher that has dialled `count` calls, which ring, and then claims no more.

    As after a crash: it neither ends them nor writes what became of them, inside the block.
    """
    dispatcher = play.dispatcher(dialer, worker="crashed")
    await dispatcher.take_over()
    task = asyncio.create_task(dispatcher.run())
    await play.dialled(dialer, count)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    try:
        yield dispatcher
    finally:
        assert dialer.hold is not None
        dialer.hold.set()
        await dispatcher.drain(5.0)


async def test_after_a_crash_a_call_rings_again_when_its_invite_can_ring_no_more(
    play: Play,
) -> None:
    assert RING_TIMEOUT == 45.0
    [call_id] = await play.place(retries=0)
    lost = ScriptedDialer(play.clock, [Outcome.ANSWERED], hold=asyncio.Event())
    async with ringing(play, lost, 1):
        dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED])
        second = play.dispatcher(dialer, worker="second")
        begun = play.clock()
        async with at_work(second):
            # 45 s of ringing, and 32 s for which an INVITE that is lost may still be repeated.
            play.clock.now = begun + 76.9
            await play.looked(second)
            assert dialer.orders == []
            play.clock.now = begun + 77.0
            second.wake()
            await play.until_over([call_id])
    assert [order.call_id for order in dialer.orders] == [call_id]
    assert (await play.call(call_id)).status is CallStatus.NORMAL


async def test_a_worker_that_was_taken_over_ends_the_calls_that_ring(play: Play) -> None:
    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED], hold=asyncio.Event())
    dispatcher = play.dispatcher(dialer)
    ids = await play.place(3)
    await dispatcher.take_over()
    task = asyncio.create_task(dispatcher.run())
    await play.dialled(dialer, 3)
    await play.dispatcher(dialer, worker="second").take_over()
    await play.place(first=3)
    dispatcher.wake()
    with pytest.raises(LostLease):
        await task
    # Nobody drains it.
    await until(lambda: not dispatcher.running)
    assert {order.call_id for order in dialer.orders} == set(ids)
    assert dialer.called_off == {order.attempt_id for order in dialer.orders}


async def test_the_far_end_of_a_worker_that_was_taken_over_gets_a_cancel(
    sqlite_database: Database, tmp_path: Path
) -> None:
    play = Play(sqlite_database, FakeClock(time.time()))
    await play.set_up()
    async with carrier() as far, sip_dialer(tmp_path, far.uri, ring_timeout=30.0) as calls:
        far.does["INVITE"] = answering(100, 180)
        limits = Limits(100, 1000.0, RING_TIMEOUT)
        dispatchers = [
            Dispatcher("main", worker, calls.dialer, limits, play.database, TARIFF, play.clock)
            for worker in ("first", "second")
        ]
        first, second = dispatchers
        await play.place()
        await first.take_over()
        task = asyncio.create_task(first.run())
        await until(lambda: len(far.of("INVITE")) == 1)
        await second.take_over()
        await play.place(first=1)
        first.wake()
        with pytest.raises(LostLease):
            await task
        await until(lambda: len(far.of("CANCEL")) == 1)
        far.say(far.of("INVITE")[0], answering(487)(far.of("INVITE")[0])[0])
        await until(lambda: first.running == 0)
        assert far.of("CANCEL")[0].call_id == far.of("INVITE")[0].call_id
        assert len(far.of("INVITE")) == 1


async def test_what_a_drain_hands_back_rings_after_its_retry_interval_and_not_before(
    play: Play,
) -> None:
    interrupted = ScriptedDialer(play.clock, [Outcome.ANSWERED], hold=asyncio.Event())
    first = play.dispatcher(interrupted)
    [call_id] = await play.place(retries=0, interval=90)
    await first.take_over()
    task = asyncio.create_task(first.run())
    await play.dialled(interrupted)
    await first.drain(0.0)
    await task
    handed_back = play.clock()
    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED])
    second = play.dispatcher(dialer)
    async with at_work(second):
        play.clock.now = handed_back + 89.9
        [other] = await play.place(first=1)
        await play.until_over([other])
        await play.looked(second)
        assert [order.call_id for order in dialer.orders] == [other]
        assert (await play.call(call_id)).status is CallStatus.WAITING
        play.clock.now = handed_back + 90.0
        second.wake()
        await play.until_over([call_id])
    assert (await play.call(call_id)).status is CallStatus.NORMAL


async def test_a_number_that_may_still_ring_is_left_alone_by_other_calls(play: Play) -> None:
    await play.place(first=7)
    lost = ScriptedDialer(play.clock, [Outcome.ANSWERED], hold=asyncio.Event())
    async with ringing(play, lost, 1):
        same, other = await play.place(2, first=7)
        dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED])
        second = play.dispatcher(dialer, worker="second")
        async with at_work(second):
            await play.until_over([other])
            play.clock.now += RING_TIMEOUT + REDIAL_MARGIN - 0.5
            await play.looked(second)
            assert [order.call_id for order in dialer.orders] == [other]
            async with asyncio.timeout(10.0):
                while not (await play.call(same)).status.final:
                    play.clock.now += PARKED_FOR
                    await play.looked(second)
            assert dialer.busiest == 1
