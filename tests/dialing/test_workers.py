"""Several workers of one dialer over one PostgreSQL: limits, leases, and what a dead one leaves."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from bitel.dialing import lease_keeper
from bitel.dialing.dialer import OnAnswered, OnRinging, ignore_ringing
from bitel.dialing.dispatcher import Dispatcher
from bitel.dialing.limit_shares import LimitGroup, Limits
from bitel.domain.attempts import AttemptResult, DialRequest, Outcome
from bitel.domain.calls import CallStatus
from bitel.errors import UnavailableError
from bitel.store import calls, leases
from bitel.store.database import Database
from bitel.store.leases import LostLease, Slot
from tests.dialing.scripted import RING_TIMEOUT, TARIFF, Play, ScriptedDialer, at_work
from tests.support import call_rows, factories
from tests.support.clocks import FakeClock
from tests.support.waiting import until


class RunningClock(FakeClock):
    """Runs, and can be advanced besides."""

    def __call__(self) -> float:
        return self.now + time.monotonic()


class Phones(ScriptedDialer):
    """Each call rings until the test answers it, and then plays until the test ends it."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock, [Outcome.ANSWERED])
        self.ringing: dict[str, asyncio.Future[bool]] = {}
        self.playing: dict[str, asyncio.Future[None]] = {}

    async def dial(
        self, order: DialRequest, heard: OnAnswered, rang: OnRinging = ignore_ringing
    ) -> AttemptResult:
        self.orders.append(order)
        begun, loop = self.clock(), asyncio.get_running_loop()
        self.ringing[order.attempt_id] = loop.create_future()
        is_answered = await self.ringing[order.attempt_id]
        del self.ringing[order.attempt_id]
        if not is_answered or not await heard(self.clock()):
            return AttemptResult(Outcome.CANCELED, begun, self.clock())
        self.playing[order.attempt_id] = loop.create_future()
        await self.playing[order.attempt_id]
        del self.playing[order.attempt_id]
        return AttemptResult(Outcome.ANSWERED, begun, self.clock() + 5, self.clock())

    def answer(self, attempt_id: str) -> None:
        self.ringing[attempt_id].set_result(True)

    def hang_up(self) -> None:
        """End all calls that play."""
        for future in self.playing.values():
            if not future.done():
                future.set_result(None)

    def cancel_all(self) -> None:
        """End all calls that ring, and take no more."""
        self.up = False
        for attempt_id in list(self.ringing):
            self.cancel(attempt_id)

    def cancel(self, attempt_id: str) -> None:
        self.called_off.add(attempt_id)
        for future in (self.ringing.get(attempt_id), self.playing.get(attempt_id)):
            if future is not None and not future.done():
                future.set_result(False)  # type: ignore[arg-type]


class Switched:
    """A worker's connection to the database, which can fail."""

    is_shared = True

    def __init__(self, database: Database) -> None:
        self._database = database
        self.fails = False

    async def write(self, work: Callable[[Any], Any]) -> Any:
        return await self._run(self._database.write, work)

    async def read(self, work: Callable[[Any], Any]) -> Any:
        return await self._run(self._database.read, work)

    async def _run(self, run: Callable[[Any], Any], work: Callable[[Any], Any]) -> Any:
        if self.fails:
            raise UnavailableError("the database can't be reached")
        return await run(work)


class Fleet:
    """Workers of the dialer `main`, each with a slot of its own."""

    def __init__(self, play: Play, url: str, stack: contextlib.AsyncExitStack) -> None:
        self.play = play
        self.url = url
        self.stack = stack
        self.workers: list[WorkerUnderTest] = []

    async def add(self, channels: int = 10, rate: float = 1000.0, otp: int = 0) -> WorkerUnderTest:
        made = WorkerUnderTest(
            self, len(self.workers) + 1, Limits(channels, rate, RING_TIMEOUT, otp)
        )
        self.workers.append(made)
        await self.stack.enter_async_context(made.at_work())
        return made

    @property
    def running(self) -> list[int]:
        return [each.dispatcher.running for each in self.workers]


class WorkerUnderTest:
    def __init__(self, fleet: Fleet, number: int, limits: Limits) -> None:
        self.phones = Phones(fleet.play.clock)
        self.own = fleet.stack.enter_context(Database.open(fleet.url))
        self.database = Switched(self.own)
        self.number = number
        self.dispatcher = Dispatcher(
            "main", f"worker-{number}", self.phones, limits, self.database,  # type: ignore[arg-type]
            TARIFF, fleet.play.clock, monotonic=time.monotonic,
        )  # fmt: skip
        self.task: asyncio.Task[None]

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        await self.dispatcher.take_over(Slot("main", f"{self.number:032}"))
        self.task = asyncio.create_task(self.dispatcher.run())
        try:
            yield
        finally:
            self.database.fails = False
            await self.stop()

    async def stop(self) -> None:
        """Drain and release, as at SIGTERM."""
        self.phones.cancel_all()
        self.phones.hang_up()
        await self.dispatcher.drain(1.0)
        with contextlib.suppress(asyncio.CancelledError, LostLease):
            await self.task
        await self.dispatcher.release()

    async def vanish(self) -> None:
        """End as by kill -9: nothing is written any more."""
        self.database.fails = True
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases that end sooner, in the same proportions."""
    for name in ("RENEW_SHARED", "LAPSES_AFTER", "DEAD_AFTER"):
        monkeypatch.setattr(lease_keeper, name, getattr(lease_keeper, name) / 5)
    monkeypatch.setattr(lease_keeper, "_WATCH", 0.05)


@pytest.fixture
def shared_database(postgres_url: str) -> Iterator[Database]:
    with Database.open(postgres_url) as opened:
        yield opened


@pytest.fixture
async def fleet(shared_database: Database, postgres_url: str) -> AsyncIterator[Fleet]:
    play = Play(shared_database, RunningClock())
    await play.set_up()
    async with contextlib.AsyncExitStack() as stack:
        yield Fleet(play, postgres_url, stack)


async def test_channels_are_shared_and_never_exceeded(fleet: Fleet) -> None:
    first = await fleet.add()
    await fleet.play.place(300)
    first.dispatcher.wake()
    await until(lambda: fleet.running == [10], timeout=5)
    second = await fleet.add()
    third = await fleet.add()
    # Places are handed over as calls end, and never taken twice.
    async with asyncio.timeout(20):
        while min(fleet.running) < 3:
            for attempt_id in list(first.phones.ringing)[:1]:
                first.phones.answer(attempt_id)
            first.phones.hang_up()
            await asyncio.sleep(0.05)
            assert sum(fleet.running) <= 10
    await until(lambda: sum(fleet.running) == 10, timeout=10)
    # What a worker gives up is used by the others within a second.
    await second.stop()
    await until(lambda: fleet.running[0] + fleet.running[2] == 10, timeout=5)
    assert third.phones.ringing


async def test_a_share_that_is_not_used_is_used_by_others(fleet: Fleet) -> None:
    first, second = await fleet.add(), await fleet.add()
    second.phones.up = False
    await fleet.play.place(20)
    first.dispatcher.wake()
    await until(lambda: fleet.running == [10, 0], timeout=5)


async def test_a_rate_holds_for_all_workers_together(fleet: Fleet) -> None:
    workers = [await fleet.add(channels=1000, rate=20.0) for _ in range(3)]
    begun: list[float] = []
    for each in workers:
        dial = each.phones.dial

        async def timed(*arguments: Any, dial: Any = dial) -> AttemptResult:
            begun.append(time.monotonic())
            return await dial(*arguments)  # type: ignore[no-any-return]

        each.phones.dial = timed  # type: ignore[assignment, method-assign]
    await fleet.play.place(120)
    for each in workers:
        each.dispatcher.wake()
    await until(lambda: len(begun) >= 100, timeout=20)
    busiest = max(sum(at - 1.0 < each <= at for each in begun) for at in begun)
    assert busiest <= 21
    assert len(begun) / (begun[-1] - begun[0]) >= 16
    assert all(len(each.phones.orders) >= 10 for each in workers), "none is starved"


async def test_a_dead_worker_is_noticed_and_its_attempts_are_recovered(fleet: Fleet) -> None:
    dead, survivor = await fleet.add(channels=4), await fleet.add(channels=4)
    await until(dead.dispatcher.is_first_worker)
    assert not survivor.dispatcher.is_first_worker()
    survivor.phones.up = False
    ids = await fleet.play.place(4)
    dead.dispatcher.wake()
    await until(lambda: len(dead.phones.ringing) == 4, timeout=5)
    heard = dead.phones.orders[0]
    dead.phones.answer(heard.attempt_id)
    await until(lambda: heard.attempt_id in dead.phones.playing)
    await dead.vanish()
    survivor.phones.up = True

    async def workers() -> list[str]:
        found = await survivor.own.read(lambda conn: leases.workers(conn, "main"))
        return [each.name for each in found]

    async with asyncio.timeout(10.0):
        while await workers() != ["worker-2"]:
            await asyncio.sleep(0.02)
    await until(survivor.dispatcher.is_first_worker)
    await fleet.play.until_over([heard.call_id])
    assert (await fleet.play.call(heard.call_id)).status is CallStatus.UNKNOWN
    # Its channels count until its phones can ring no more.
    await fleet.play.place(4)
    survivor.dispatcher.wake()
    await until(lambda: survivor.dispatcher._shares.occupied.channels == 4)
    assert survivor.dispatcher.running == 0
    fleet.play.clock.now += RING_TIMEOUT + 33.0
    survivor.dispatcher.wake()
    await until(lambda: survivor.dispatcher.running == 4, timeout=5)
    assert heard.call_id not in {each.call_id for each in survivor.phones.orders}
    rows = [
        await fleet.play.database.read(lambda conn, one=one: calls.attempts(conn, one))  # type: ignore[misc]
        for one in ids
    ]
    assert all(row[0].outcome is Outcome.INTERRUPTED for row in rows)


async def test_a_lapsed_lease_ends_what_rings_and_lets_answered_calls_play(fleet: Fleet) -> None:
    only = await fleet.add()
    await fleet.play.place(3)
    only.dispatcher.wake()
    await until(lambda: len(only.phones.ringing) == 3)
    heard, *ringing = only.phones.orders
    only.phones.answer(heard.attempt_id)
    await until(lambda: heard.attempt_id in only.phones.playing)
    only.database.fails = True
    await until(lambda: len(only.phones.abandoned) == 2, timeout=5)
    assert only.phones.abandoned == {each.attempt_id for each in ringing}
    assert not only.dispatcher.has_lease()
    assert only.phones.playing.keys() == {heard.attempt_id}
    only.database.fails = False
    await until(only.dispatcher.has_lease, timeout=5)
    only.phones.hang_up()
    await fleet.play.until_over([heard.call_id])
    assert (await fleet.play.call(heard.call_id)).status is CallStatus.NORMAL
    for each in ringing:
        assert (await fleet.play.call(each.call_id)).status is CallStatus.WAITING


async def test_a_worker_whose_lease_was_ended_plays_on_and_dials_no_more(fleet: Fleet) -> None:
    cut_off, survivor = await fleet.add(), await fleet.add()
    survivor.phones.up = False
    await fleet.play.place(2)
    cut_off.dispatcher.wake()
    await until(lambda: len(cut_off.phones.ringing) == 2)
    heard, ringing = cut_off.phones.orders
    cut_off.phones.answer(heard.attempt_id)
    await until(lambda: heard.attempt_id in cut_off.phones.playing)
    cut_off.database.fails = True
    await fleet.play.until_over([heard.call_id])
    cut_off.database.fails = False
    await until(lambda: not cut_off.phones.ringing)
    assert cut_off.phones.playing, "the person hears the recording to its end"
    assert not cut_off.task.done()
    cut_off.phones.hang_up()
    with pytest.raises(LostLease):
        await asyncio.wait_for(cut_off.task, 5)
    assert (await fleet.play.call(heard.call_id)).status is CallStatus.UNKNOWN
    assert (await fleet.play.call(ringing.call_id)).status is CallStatus.WAITING


async def test_a_worker_can_be_asked_to_drain(fleet: Fleet) -> None:
    asked = asyncio.Event()
    one = await fleet.add()
    one.dispatcher._lease_keeper._on_drain = asked.set
    drained = await fleet.play.database.write(lambda conn: leases.ask_to_drain(conn, "worker-1"))
    assert drained == 1
    async with asyncio.timeout(5):
        await asked.wait()


async def test_dialers_of_one_trunk_share_its_limits(database: Database) -> None:
    play = Play(database, RunningClock())
    await play.set_up()
    group = LimitGroup("=trunk", ("main", "second"))
    now = play.clock()
    new = [
        factories.new_call(play.project_id, play.recording_id, now, e164=f"+98935{n:07}",
                           dialer_id=group.dialer_ids[n % 2])
        for n in range(400)
    ]  # fmt: skip
    await database.write(lambda conn: call_rows.place(conn, new))
    async with contextlib.AsyncExitStack() as stack:
        dispatchers, phones = [], []
        for dialer_id in group.dialer_ids:
            phones.append(Phones(play.clock))
            dispatchers.append(
                Dispatcher(
                    dialer_id, "w", phones[-1], Limits(6, 1000.0, RING_TIMEOUT), database, TARIFF,
                    play.clock, monotonic=time.monotonic, limit_group=group,
                )
            )  # fmt: skip
            await stack.enter_async_context(at_work(dispatchers[-1]))
        for one in phones:
            stack.callback(one.cancel_all)
        async with asyncio.timeout(20):
            while min(each.running for each in dispatchers) < 3:
                assert sum(each.running for each in dispatchers) <= 6
                for attempt_id in list(phones[0].ringing)[:1]:
                    phones[0].answer(attempt_id)
                phones[0].hang_up()
                await asyncio.sleep(0.05)
        assert sum(each.running for each in dispatchers) == 6
