"""The dispatcher and its lease: what a crash leaves behind, and how a lost lease is noticed."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from bitel.dialing import lease_keeper
from bitel.dialing.dispatcher import REDIAL_MARGIN, Dispatcher
from bitel.domain.attempts import Outcome
from bitel.domain.calls import CallStatus
from bitel.store import calls, leases
from bitel.store.database import Database
from bitel.store.leases import LostLease, Slot
from tests.dialing.scripted import RING_TIMEOUT, Play, ScriptedDialer, at_work
from tests.support.clocks import FakeClock
from tests.support.waiting import until


@pytest.fixture
async def play(database: Database) -> Play:
    made = Play(database, FakeClock())
    await made.set_up()
    return made


async def test_ringing_is_recorded_while_it_rings_and_stays_with_the_end(
    play: Play,
) -> None:
    dialer = ScriptedDialer(play.clock, [Outcome.BUSY], hold=asyncio.Event(), rings=True)
    [call_id] = await play.place(retries=0)

    async def rang_at() -> float | None:
        [row] = await play.database.read(lambda conn: calls.attempts(conn, call_id))
        return row.rang_at

    async with at_work(play.dispatcher(dialer)):
        async with asyncio.timeout(10.0):
            while not dialer.orders or await rang_at() is None:
                await asyncio.sleep(0.01)
        assert dialer.hold is not None
        dialer.hold.set()
        await play.until_over([call_id])
    assert await rang_at() == play.clock()
    quick = ScriptedDialer(play.clock, [Outcome.BUSY], rings=True)
    [call_id] = await play.place(retries=0)
    async with at_work(play.dispatcher(quick)):
        await play.until_over([call_id])
    assert await rang_at() == play.clock(), "it is written with the end where that comes first"


async def crash(task: asyncio.Task[None], dispatcher: Dispatcher) -> None:
    """Let a dispatcher vanish as in a crash: nothing more of it is written."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    for running in list(dispatcher._running.values()):
        assert running.task is not None
        running.task.cancel()
        await asyncio.gather(running.task, return_exceptions=True)


async def test_a_crash_loop_rings_a_phone_once_and_once_for_each_retry(play: Play) -> None:
    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED], hold=asyncio.Event(), rings=True)
    [call_id] = await play.place(retries=2, interval=60)

    async def rung() -> int:
        rows = await play.database.read(lambda conn: calls.attempts(conn, call_id))
        return sum(row.rang_at is not None for row in rows)

    for number in range(1, 4):
        dispatcher = play.dispatcher(dialer)
        await dispatcher.take_over()
        play.clock.now += 2 * (RING_TIMEOUT + REDIAL_MARGIN)
        task = asyncio.create_task(dispatcher.run())
        async with asyncio.timeout(10.0):
            while await rung() < number:
                await asyncio.sleep(0.01)
        await crash(task, dispatcher)
    await play.dispatcher(dialer).take_over()
    assert (await play.call(call_id)).status is CallStatus.NO_ANSWER
    assert len(dialer.orders) == 3


async def test_a_worker_whose_carrier_is_down_is_alive_and_not_up(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_keeper, "RENEW_ALONE", 0.02)
    monkeypatch.setattr(lease_keeper, "RENEW_SHARED", 0.02)

    async def state() -> tuple[float, bool]:
        def look(conn: Any) -> tuple[float, bool]:
            states = leases.dialer_states(conn, play.clock(), 15.0)
            return leases.holder(conn, "main").seen_at, states["main"].up

        return await play.database.read(look)

    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED], up=False)
    async with at_work(play.dispatcher(dialer)), asyncio.timeout(10.0):
        play.clock.now += 600.0
        while await state() != (play.clock(), False):
            await asyncio.sleep(0.01)
        dialer.up = True
        while await state() != (play.clock(), True):
            await asyncio.sleep(0.01)


async def test_a_lease_that_proves_lost_ends_the_worker_at_once(play: Play) -> None:
    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED], hold=asyncio.Event())
    dispatcher = play.dispatcher(dialer)
    await play.place()
    await dispatcher.take_over()
    task = asyncio.create_task(dispatcher.run())
    async with asyncio.timeout(2.0):
        await until(lambda: dialer.orders)
        assert await dispatcher.confirm_lease()
        now = play.clock()
        await play.database.write(lambda conn: leases.fence(conn, Slot("main"), "worker-2", now))
        assert not await dispatcher.confirm_lease()
        with pytest.raises(LostLease):
            await task
    assert dialer.called_off == {dialer.orders[0].attempt_id}
    await dispatcher.drain(5.0)


async def test_a_lease_that_the_database_does_not_confirm_in_time_is_in_doubt(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_keeper, "_CONFIRM", 0.05)
    dispatcher = play.dispatcher(ScriptedDialer(play.clock, [Outcome.ANSWERED]))
    async with at_work(dispatcher):
        frozen = threading.Event()
        renew = leases.renew

        def slow(*arguments: Any) -> Any:
            frozen.wait(10.0)
            return renew(*arguments)

        monkeypatch.setattr(leases, "renew", slow)
        assert not await dispatcher.confirm_lease()
        frozen.set()
        monkeypatch.setattr(lease_keeper, "_CONFIRM", 5.0)
        assert await dispatcher.confirm_lease(), "it was not lost, and the worker goes on"
