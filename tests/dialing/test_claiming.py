"""What must be so before a call is dialled: it may be called now, and its claim is durable."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
from sqlalchemy import Connection, Engine, event, func, select

from bitel.domain.attempts import Outcome
from bitel.domain.calls import CallStatus, Lane
from bitel.errors import UnavailableError
from bitel.store import calls, do_not_call
from bitel.store.database import Database
from bitel.store.schema import attempt
from tests.dialing.scripted import Play, ScriptedDialer, at_work
from tests.support.clocks import FakeClock
from tests.support.waiting import until


@pytest.fixture
async def play(database: Database) -> Play:
    made = Play(database, FakeClock())
    await made.set_up()
    return made


def _add_to_list(project_id: str, e164: str, conn: Connection) -> None:
    do_not_call.add(conn, project_id, e164)


@pytest.mark.parametrize("lane", list(Lane))
async def test_a_number_that_must_not_be_called_any_more_is_not_dialled(
    play: Play, lane: Lane
) -> None:
    dialer = ScriptedDialer(play.clock, [Outcome.BUSY, Outcome.ANSWERED])
    dispatcher = play.dispatcher(dialer, channels=1)
    [tried] = await play.place(1, lane, retries=3)
    async with at_work(dispatcher):
        await play.dialled(dialer)
        await until(lambda: not dispatcher.running)
        # Between two attempts of one call, and between the placing of another and its first.
        dialer.up = False
        await play.looked(dispatcher)
        untried, other = await play.place(2, lane, first=1)
        for number in ("+989120000000", "+989120000001"):
            await play.database.write(partial(_add_to_list, play.project_id, number))
        play.clock.now += 61.0
        assert (await play.call(untried)).status is CallStatus.WAITING
        dialer.up = True
        dispatcher.wake()
        await play.until_over([tried, untried, other])
    assert [order.call_id for order in dialer.orders] == [tried, other]
    for call_id in (tried, untried):
        call = await play.call(call_id)
        assert (call.status, call.reason) == (CallStatus.ERROR, "on the do-not-call list")


async def test_nothing_is_dialled_before_its_claim_is_committed(database_url: str) -> None:
    committing, go_on = threading.Event(), threading.Event()

    def hold(conn: Connection) -> None:
        if conn.execute(select(func.count()).select_from(attempt)).scalar_one():
            committing.set()
            assert go_on.wait(10.0)

    # Before the database is opened: connections look for listeners when they are made.
    event.listen(Engine, "commit", hold)
    try:
        with Database.open(database_url) as database:
            play = Play(database, FakeClock())
            await play.set_up()
            dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED])
            dispatcher = play.dispatcher(dialer)
            [call_id] = await play.place()
            await dispatcher.take_over()
            task = asyncio.create_task(dispatcher.run())
            assert await asyncio.to_thread(committing.wait, 10.0)
            # Whoever was told of the claim already would act on it within these round trips.
            for _ in range(10):
                assert await database.read(lambda conn: calls.attempts(conn, call_id)) == []
            assert dialer.orders == []
            go_on.set()
            await play.until_over([call_id])
            assert [order.call_id for order in dialer.orders] == [call_id]
            await dispatcher.drain(5.0)
            await task
    finally:
        event.remove(Engine, "commit", hold)


class Forgetful:
    """A database whose next write is carried out, and then not answered, as a COMMIT whose
    connection is lost."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.forgets = 0

    async def write(self, work: Callable[[Connection], Any]) -> Any:
        done = await self._database.write(work)
        if self.forgets and isinstance(done, tuple) and done[1:] and done[1]:
            self.forgets -= 1
            raise UnavailableError("the database can't do this now")
        return done

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)


async def test_a_claim_whose_commit_was_not_answered_is_made_again(play: Play) -> None:
    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED])
    dispatcher = play.dispatcher(dialer)
    forgetful = Forgetful(play.database)
    ids = await play.place(3)
    async with at_work(dispatcher):
        await play.until_over(ids)
        dispatcher._database = cast(Database, forgetful)
        forgetful.forgets = 2
        more = await play.place(3)
        dispatcher.wake()
        await play.until_over(more)
    assert forgetful.forgets == 0
    assert sorted(order.call_id for order in dialer.orders) == sorted(ids + more)
    assert [(await play.call(each)).status for each in more] == [CallStatus.NORMAL] * 3


async def test_a_call_called_off_in_such_a_claim_ends(play: Play) -> None:
    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED])
    dispatcher = play.dispatcher(dialer)
    forgetful = Forgetful(play.database)
    async with at_work(dispatcher):
        [call_id] = await play.place()

        async def cancel(work: Callable[[Connection], Any]) -> Any:
            try:
                return await Forgetful.write(forgetful, work)
            except UnavailableError:
                await play.database.write(
                    lambda conn: calls.cancel(conn, play.project_id, call_id, play.clock())
                )
                raise

        forgetful.forgets = 1
        forgetful.write = cancel  # type: ignore[method-assign]
        dispatcher._database = cast(Database, forgetful)
        dispatcher.wake()
        await play.until_over([call_id])
    assert (await play.call(call_id)).status is CallStatus.CANCELED
    assert dialer.orders == []
