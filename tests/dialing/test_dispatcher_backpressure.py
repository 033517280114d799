"""Under backpressure the dispatcher claims nothing, and running calls go on."""

from __future__ import annotations

import asyncio

import pytest
import structlog

from bitel.dialing.backpressure import CALM, LoadSample
from bitel.dialing.dispatcher import MESSAGES_LATE
from bitel.domain.attempts import Outcome
from bitel.domain.calls import CallStatus, Lane
from bitel.store.database import Database
from tests.dialing.scripted import Play, ScriptedDialer, at_work
from tests.support.clocks import FakeClock


@pytest.fixture
async def play(database: Database) -> Play:
    made = Play(database, FakeClock())
    await made.set_up()
    return made


async def test_under_pressure_nothing_is_claimed_and_the_queue_stays(play: Play) -> None:
    load = LoadSample(packets_late=30.0)
    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED])
    dispatcher = play.dispatcher(dialer, load=lambda: load)
    ids = await play.place(3)
    ids += await play.place(1, Lane.OTP)
    with structlog.testing.capture_logs() as logs:
        async with at_work(dispatcher):
            for _ in range(3):
                await play.looked(dispatcher)
            assert dispatcher.pressure.signs == {"late packets"}
            assert dialer.orders == []
            assert {(await play.call(each)).status for each in ids} == {CallStatus.WAITING}
            load = LoadSample()
            for _ in range(2):
                await play.looked(dispatcher)
                play.clock.now += CALM
            dispatcher.wake()
            await play.until_over(ids)
    told = [log for log in logs if log["event"].startswith("claiming_")]
    assert [(log["event"], log["log_level"], log.get("signs")) for log in told] == [
        ("claiming_paused", "warning", "late packets"),
        ("claiming_resumed", "info", None),
    ]
    assert dispatcher.figures.claimed == 4
    assert dispatcher.figures.answered == 4
    assert dispatcher.figures.ended == {Outcome.ANSWERED: 4}
    assert dispatcher.pressure.seconds(play.clock()) >= CALM


async def test_a_wall_clock_that_is_set_back_does_not_prolong_it(play: Play) -> None:
    load = LoadSample(packets_late=30.0)
    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED])
    monotonic = FakeClock()
    dispatcher = play.dispatcher(dialer, load=lambda: load, monotonic=monotonic)
    async with at_work(dispatcher):
        await play.looked(dispatcher)
        load = LoadSample()
        await play.looked(dispatcher)
        play.clock.now -= 3600.0
        monotonic.now += CALM
        await play.until_over(await play.place(3))
    assert dispatcher.held_back == CALM


async def test_calls_that_run_are_not_touched_by_pressure(play: Play) -> None:
    load = LoadSample()
    hold = asyncio.Event()
    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED], hold=hold)
    dispatcher = play.dispatcher(dialer, channels=1, load=lambda: load)
    ids = await play.place(2)
    async with at_work(dispatcher):
        await play.dialled(dialer)
        load = LoadSample(loop_late=500.0)
        hold.set()
        # Which of two equal calls is the first is not said.
        first = dialer.orders[0].call_id
        [second] = set(ids) - {first}
        await play.until_over([first])
        await play.looked(dispatcher)
        assert (await play.call(first)).status is CallStatus.NORMAL
        assert (await play.call(second)).status is CallStatus.WAITING


async def test_nothing_is_claimed_while_messages_wait_and_at_once_when_they_are_read(
    play: Play,
) -> None:
    load = LoadSample(messages_late=MESSAGES_LATE + 1)
    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED])
    dispatcher = play.dispatcher(dialer, load=lambda: load)
    ids = await play.place(2)
    async with at_work(dispatcher):
        await play.looked()
        assert dialer.orders == []
        # No sign has to calm down: this is over as soon as it is over, and nobody rings for it.
        assert not dispatcher.pressure.signs
        load = LoadSample()
        await play.until_over(ids)
    assert dispatcher.figures.claimed == 2
