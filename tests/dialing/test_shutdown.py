"""Draining without a database ends in time, and what was heard is billed after the next start."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import structlog

from bitel.dialing import attempt_writer
from bitel.dialing import dispatcher as dispatching
from bitel.dialing.dialer import OnAnswered
from bitel.dialing.dispatcher import Dispatcher
from bitel.dialing.journal import Journal
from bitel.dialing.limit_shares import Limits
from bitel.domain.attempts import AttemptResult, DialRequest, Outcome
from bitel.domain.calls import CallStatus
from bitel.domain.pricing import Bill, Tariff
from bitel.domain.retry import Finish, Requeue
from bitel.errors import UnavailableError
from bitel.store import balances, calls, claims, settling
from bitel.store.database import Database
from bitel.store.schema import ANSWERED
from tests.dialing.scripted import RING_TIMEOUT, TARIFF, Play, ScriptedDialer, at_work
from tests.support.clocks import FakeClock
from tests.support.waiting import until


class Switched:
    """A database that can be made to fail (`fails`), or to hang, as a frozen server does."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.is_shared = database.is_shared
        self.fails = False
        self.works = asyncio.Event()
        self.works.set()

    async def write(self, work: Callable[[Any], Any]) -> Any:
        await self.works.wait()
        if self.fails:
            raise UnavailableError("the database can't be reached")
        return await self._database.write(work)

    async def read(self, work: Callable[[Any], Any]) -> Any:
        await self.works.wait()
        return await self._database.read(work)


class Talking(ScriptedDialer):
    """Answers at once, and hangs up when `hold` is set."""

    async def _dial(self, order: DialRequest, heard: OnAnswered) -> AttemptResult:
        # Of the time of the dialling: a test may set another for the next call.
        answered_at, hold = self.clock(), self.hold
        assert hold is not None
        assert await heard(answered_at)
        await hold.wait()
        return AttemptResult(Outcome.ANSWERED, answered_at, answered_at + 7.0, answered_at)


class Deaf(ScriptedDialer):
    """Never ends an attempt."""

    async def _dial(self, order: DialRequest, heard: OnAnswered) -> AttemptResult:
        await asyncio.Event().wait()
        raise AssertionError

    def cancel(self, attempt_id: str) -> None: ...


@pytest.fixture
async def play(database: Database) -> Play:
    made = Play(database, FakeClock())
    await made.set_up()
    return made


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatching, "ENDING_TIMEOUT", 0.5)
    monkeypatch.setattr(dispatching, "WRITING_TIMEOUT", 0.2)


def dispatcher(
    play: Play,
    dialer: ScriptedDialer,
    database: Any,
    journal: Journal | None = None,
    tariff: Tariff = TARIFF,
    on_settled: Callable[[], None] = lambda: None,
) -> Dispatcher:
    return Dispatcher(
        "main",
        "worker",
        dialer,
        Limits(100, 1000.0, RING_TIMEOUT),
        database,
        tariff,
        play.clock,
        on_settled=on_settled,
        journal=journal,
    )


@contextlib.asynccontextmanager
async def running(made: Dispatcher) -> AsyncIterator[asyncio.Task[None]]:
    await made.take_over()
    task = asyncio.create_task(made.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until_heard(play: Play, ids: Sequence[str]) -> None:
    async with asyncio.timeout(10):
        for call_id in ids:
            while not await _is_heard(play, call_id):
                await asyncio.sleep(0.01)


async def _is_heard(play: Play, call_id: str) -> bool:
    found = await play.database.read(lambda conn: calls.attempts(conn, call_id))
    return bool(found) and found[0].claim == ANSWERED


async def entries(play: Play) -> list[Decimal]:
    found = await play.database.read(lambda conn: balances.entries(conn, play.project_id))
    return [entry.amount for entry in found]


@pytest.mark.parametrize("how", ["fails", "hangs"])
async def test_ends_that_could_not_be_written_are_billed_after_the_next_start(
    play: Play, tmp_path: Path, how: str
) -> None:
    database = Switched(play.database)
    dialer = Talking(play.clock, [Outcome.ANSWERED], hold=asyncio.Event())
    made = dispatcher(play, dialer, database, Journal(tmp_path / "journal", 100))
    ids = await play.place(5)
    async with running(made) as task:
        await until_heard(play, ids)
        assert dialer.hold is not None
        if how == "fails":
            database.fails = True
        else:
            database.works.clear()
        dialer.hold.set()
        async with asyncio.timeout(5):
            await made.drain(0.3)
            await task
        assert made.running == 0
        assert made.lost == 0
    assert [(await play.call(key)).status for key in ids] == [CallStatus.WAITING] * 5
    assert await entries(play) == []
    next_one = dispatcher(
        play,
        ScriptedDialer(play.clock, [Outcome.BUSY]),
        play.database,
        Journal(tmp_path / "journal", 100),
    )
    recovered = await next_one.take_over()
    assert (recovered.redialled, recovered.unknown) == (0, 0)
    for call_id in ids:
        call = await play.call(call_id)
        assert (call.status, call.price) == (CallStatus.NORMAL, Decimal(7))
    assert await entries(play) == [Decimal(-7)] * 5


async def test_without_a_journal_they_are_logged_and_counted(play: Play) -> None:
    database = Switched(play.database)
    dialer = Talking(play.clock, [Outcome.ANSWERED], hold=asyncio.Event())
    made = dispatcher(play, dialer, database)
    [call_id] = await play.place()
    async with running(made) as task:
        await until_heard(play, [call_id])
        database.fails = True
        assert dialer.hold is not None
        dialer.hold.set()
        with structlog.testing.capture_logs() as logs:
            await made.drain(0.1)
            await task
    assert made.lost == 1
    [line] = [line for line in logs if line["event"] == "settlement_lost"]
    assert (line["call"], line["outcome"], line["then"]) == (call_id, "answered", "NORMAL")


async def test_a_claim_that_hangs_does_not_keep_it_from_ending(play: Play) -> None:
    database = Switched(play.database)
    made = dispatcher(play, ScriptedDialer(play.clock, [Outcome.ANSWERED]), database)
    async with running(made) as task:
        database.works.clear()
        await play.place()
        made.wake()
        async with asyncio.timeout(5):
            await made.drain(0.2)
            await task


async def test_an_attempt_that_does_not_end_does_not_keep_it_from_ending(play: Play) -> None:
    dialer = Deaf(play.clock, [Outcome.ANSWERED])
    made = dispatcher(play, dialer, play.database)
    [call_id] = await play.place()
    async with running(made) as task:
        await until(lambda: bool(dialer.orders))
        with structlog.testing.capture_logs() as logs:
            async with asyncio.timeout(5):
                await made.drain(0.1)
                await task
    assert [line["call"] for line in logs if line["event"] == "attempt_not_ended"] == [call_id]


async def test_what_is_unwritten_for_long_is_in_the_journal_before_any_exit(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_writer, "JOURNAL_AFTER", 0.1)
    database = Switched(play.database)
    dialer = Talking(play.clock, [Outcome.ANSWERED], hold=asyncio.Event())
    journal = Journal(tmp_path / "journal", 100)
    made = dispatcher(play, dialer, database, journal)
    [call_id] = await play.place()
    async with running(made):
        await until_heard(play, [call_id])
        database.fails = True
        assert dialer.hold is not None
        dialer.hold.set()
        await until(lambda: not journal.is_empty)
        database.fails = False
        await play.until_over([call_id])
        await until(lambda: journal.is_empty)
        await made.drain(1.0)
    assert await entries(play) == [Decimal(-7)]


class SlowToClear(Journal):
    """Lets another thread that appends go first, if there is one, once a clearing has begun."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, 100)
        self.clearing, self.appended = threading.Event(), threading.Event()

    def clear(self) -> None:
        if not self.is_empty:
            self.appended.clear()
            self.clearing.set()
            self.appended.wait(0.8)
        super().clear()

    def append(self, settlements: Sequence[settling.Settlement]) -> list[settling.Settlement]:
        left = super().append(settlements)
        self.appended.set()
        return left


async def test_what_is_journaled_at_the_exit_survives_a_clearing_under_way(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_writer, "JOURNAL_AFTER", 0.1)
    database = Switched(play.database)
    dialer = Talking(play.clock, [Outcome.ANSWERED], hold=asyncio.Event())
    journal = SlowToClear(tmp_path / "journal")
    made = dispatcher(play, dialer, database, journal)
    [first] = await play.place()
    async with running(made) as task:
        await until_heard(play, [first])
        talks, dialer.hold = dialer.hold, asyncio.Event()
        [second] = await play.place()
        await until_heard(play, [second])
        database.fails = True
        assert talks is not None
        talks.set()
        await until(lambda: not journal.is_empty)
        database.fails = False
        await until(journal.clearing.is_set)
        database.fails = True
        dialer.hold.set()
        await made.drain(0.0)
        await task
    assert [one.call_id for one in Journal(tmp_path / "journal", 100).open()] == [second]


class Broken(Journal):
    """Fails once in a way that is not foreseen."""

    broken = True

    def append(self, settlements: Sequence[settling.Settlement]) -> list[settling.Settlement]:
        if self.broken:
            self.broken = False
            raise RuntimeError("not foreseen")
        return super().append(settlements)


async def test_a_journal_that_breaks_once_is_kept_all_the_same(
    play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_writer, "JOURNAL_AFTER", 0.1)
    database = Switched(play.database)
    dialer = Talking(play.clock, [Outcome.ANSWERED], hold=asyncio.Event())
    journal = Broken(tmp_path / "journal", 100)
    made = dispatcher(play, dialer, database, journal)
    [call_id] = await play.place()
    with structlog.testing.capture_logs() as logs:
        async with running(made):
            await until_heard(play, [call_id])
            database.fails = True
            assert dialer.hold is not None
            dialer.hold.set()
            await until(lambda: not journal.is_empty)
            database.fails = False
            await play.until_over([call_id])
            await made.drain(1.0)
    assert [line["event"] for line in logs].count("journal_not_kept") == 1


async def test_of_a_journal_only_what_is_still_open_is_applied(play: Play, tmp_path: Path) -> None:
    first = dispatcher(play, ScriptedDialer(play.clock, [Outcome.BUSY]), play.database)
    await first.take_over()
    ids = await play.place(3)
    claimed = await play.database.write(
        lambda conn: claims.claim(conn, first._lease, 10, play.clock())
    )
    ends = []
    for claim in claimed:
        result = AttemptResult(Outcome.ANSWERED, play.clock(), play.clock() + 9, play.clock())
        decision = Finish(CallStatus.NORMAL)
        bill = Bill(9, Decimal(9))
        ends.append(settling.Settlement(claim.attempt_id, claim.call_id, result, decision, bill))
    await play.database.write(
        lambda conn: settling.settle(conn, first._lease, ends[:1], play.clock())
    )
    journal = Journal(tmp_path / "journal", 100)
    journal.open()
    unknown = ends[0]._replace(attempt_id="0" * 32, call_id="1" * 32)
    swapped = ends[1]._replace(call_id=ends[2].call_id)
    odd = ends[2]._replace(bill=Bill(9, Decimal(10) ** 15))
    journal.append([ends[0], unknown, swapped, odd])
    journal.close()
    with structlog.testing.capture_logs() as logs:
        next_one = dispatcher(
            play,
            ScriptedDialer(play.clock, [Outcome.BUSY]),
            play.database,
            Journal(tmp_path / "journal", 100),
        )
        recovered = await next_one.take_over()
    not_applied = [line["attempt"] for line in logs if line["event"] == "settlement_not_applied"]
    assert not_applied == [swapped.attempt_id, unknown.attempt_id, ends[0].attempt_id]
    assert (recovered.redialled, recovered.unknown) == (1, 0)
    by_id = {claim.call_id: await play.call(claim.call_id) for claim in claimed}
    assert by_id[ends[0].call_id].status is CallStatus.NORMAL
    assert by_id[ends[1].call_id].status is CallStatus.WAITING
    assert by_id[ends[2].call_id].status is CallStatus.UNKNOWN
    assert await entries(play) == [Decimal(-9)]
    assert set(ids) == set(by_id)
    # It is empty now.
    again = Journal(tmp_path / "journal", 100)
    next_one._journal.close()  # type: ignore[union-attr]
    assert again.open() == []
    again.close()


async def test_a_database_that_is_away_at_the_start_leaves_the_journal_as_it_is(
    play: Play, tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "journal", 10)
    journal.open()
    result = AttemptResult(Outcome.BUSY, 1.0, 2.0)
    end = settling.Settlement("0" * 32, "1" * 32, result, Requeue(3.0))
    journal.append([end])
    database = Switched(play.database)
    database.fails = True
    made = dispatcher(play, ScriptedDialer(play.clock, [Outcome.BUSY]), database, journal)
    with pytest.raises(UnavailableError):
        await made.take_over()
    journal.close()
    assert Journal(tmp_path / "journal", 10).open() == [end]


async def test_a_tariff_that_fails_ends_the_call_and_says_so(play: Play) -> None:
    class Broken(Tariff):
        def bill(self, e164: str, result: AttemptResult) -> Any:
            raise ArithmeticError("no such price")

    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED])
    made = dispatcher(play, dialer, play.database, tariff=Broken())
    [call_id] = await play.place()
    with structlog.testing.capture_logs() as logs:
        async with at_work(made):
            await play.until_over([call_id])
    call = await play.call(call_id)
    assert (call.status, call.price) == (CallStatus.UNKNOWN, Decimal(0))
    [line] = [line for line in logs if line["event"] == "attempt_not_decided"]
    assert line["call"] == call_id


async def test_a_callback_that_fails_is_logged_and_the_next_call_is_made(play: Play) -> None:
    def fail() -> None:
        raise RuntimeError("no bell")

    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED])
    made = dispatcher(play, dialer, play.database, on_settled=fail)
    ids = await play.place(3)
    with structlog.testing.capture_logs() as logs:
        async with at_work(made):
            await play.until_over(ids)
    assert {line["event"] for line in logs if line["log_level"] == "error"} == {"attempt_broke"}
