"""Calls whose recordings can't be had wait, and the queue is not claimed over and over for them."""

from __future__ import annotations

import asyncio

import pytest
import structlog
from sqlalchemy import select

from bitel.dialing.dialer import OnAnswered, OnRinging, ignore_ringing
from bitel.dialing.recording_faults import (
    FORGOTTEN_AFTER,
    HOLD,
    IN_A_ROW,
    PROBES,
    RecordingFaults,
)
from bitel.domain.attempts import AttemptResult, DialRequest, Outcome
from bitel.domain.calls import CallStatus
from bitel.store.database import Database
from bitel.store.schema import call
from tests.dialing.scripted import Play, ScriptedDialer, at_work
from tests.support.clocks import FakeClock


def order(recording: str | None, digits: str = "", language: str = "") -> DialRequest:
    return DialRequest("attempt", "call", "+989121234567", recording, digits, language=language)


def events(logs: list[structlog.typing.EventDict]) -> list[str]:
    return [log["event"] for log in logs if log["event"].startswith("recordings_")]


def test_one_missing_recording_among_others_holds_nothing_back() -> None:
    faults = RecordingFaults("main", FakeClock())
    with structlog.testing.capture_logs() as logs:
        for _ in range(100):
            faults.missed(order("lost"), "It is lost.")
            faults.found(order("other"))
        assert (faults.wait(), faults.limit(50), faults.count()) == (0.0, 50, 1)
        faults.found(order("lost"))
    assert events(logs) == ["recordings_unreachable", "recordings_reachable"]
    assert faults.count() == 0


def test_many_in_a_row_hold_everything_back_and_probes_end_it() -> None:
    clock = FakeClock()
    faults = RecordingFaults("main", clock)
    for number in range(IN_A_ROW - 1):
        faults.missed(order(f"{number}"), "It is away.")
    assert faults.wait() == 0.0
    faults.missed(order(None, "123", "fa"), "It is away.")
    assert (faults.wait(), faults.count()) == (HOLD, IN_A_ROW)
    clock.now += HOLD
    assert (faults.wait(), faults.limit(50), faults.limit(3)) == (0.0, PROBES, 3)
    faults.missed(order("0"), "It is away.")
    assert faults.wait() == HOLD
    faults.found(order("1"))
    assert (faults.wait(), faults.limit(50)) == (0.0, 50)


def test_recordings_that_no_call_asks_for_any_more_are_forgotten() -> None:
    clock = FakeClock()
    faults = RecordingFaults("main", clock)
    with structlog.testing.capture_logs() as logs:
        faults.missed(order("lost"), "It is lost.")
        clock.now += FORGOTTEN_AFTER + 1
        assert faults.count() == 0
        faults.missed(order("lost"), "It is lost.")
    assert events(logs) == [
        "recordings_unreachable",
        "recordings_reachable",
        "recordings_unreachable",
    ]


def test_a_dispatcher_that_only_claims_says_that_they_are_forgotten() -> None:
    clock = FakeClock()
    faults = RecordingFaults("main", clock)
    with structlog.testing.capture_logs() as logs:
        faults.missed(order("lost"), "It is lost.")
        clock.now += FORGOTTEN_AFTER + 1
        faults.wait()
    assert events(logs) == ["recordings_unreachable", "recordings_reachable"]


def test_more_recordings_than_are_named_don_t_make_those_named_forgotten() -> None:
    clock = FakeClock()
    faults = RecordingFaults("main", clock)
    for number in range(2000):
        faults.missed(order(f"{number}"), "It is away.")
    clock.now += FORGOTTEN_AFTER - 1
    faults.missed(order("0"), "It is away.")
    clock.now += 2
    assert faults.count() == 1


class CountedFaults(RecordingFaults):
    """Counts how often the dispatcher has looked whether it may claim."""

    looks = 0

    def wait(self) -> float:
        self.looks += 1
        return super().wait()


class StorageAway(ScriptedDialer):
    """Places no call while `away` is set."""

    away = True
    faults: RecordingFaults

    async def dial(
        self, order: DialRequest, heard: OnAnswered, rang: OnRinging = ignore_ringing
    ) -> AttemptResult:
        if self.away:
            self.orders.append(order)
            self.faults.missed(order, "The storage is away.")
            now = self.clock()
            return AttemptResult(Outcome.NOT_PLACED, now, now, detail="The storage is away.")
        self.faults.found(order)
        return await super().dial(order, heard, rang)


@pytest.fixture
async def play(database: Database) -> Play:
    made = Play(database, FakeClock())
    await made.set_up()
    return made


async def left(play: Play) -> set[int]:
    """The retries that calls have left."""
    found = await play.database.read(
        lambda conn: list(conn.execute(select(call.c.retries_left)).scalars())
    )
    return set(found)


async def test_calls_wait_and_are_dialled_when_the_storage_is_back(play: Play) -> None:
    dialer = StorageAway(play.clock, [Outcome.ANSWERED])
    # The pace is by a clock that stands still.
    dispatcher = play.dispatcher(dialer, channels=20, pace=10_000.0)
    faults = dispatcher.recording_faults = dialer.faults = CountedFaults("main", play.clock)
    ids = await play.place(200, retries=1)

    async def looks(count: int) -> None:
        wanted = faults.looks + count
        async with asyncio.timeout(10):
            while faults.looks < wanted:
                dispatcher.wake()
                await asyncio.sleep(0.01)

    async with at_work(dispatcher):
        await looks(5)
        first = dispatcher.figures.claimed
        assert IN_A_ROW <= first <= 20  # one claim
        for more in (1, 2):
            play.clock.now += HOLD
            await looks(5)
            assert dispatcher.figures.claimed == first + more * PROBES
        assert {(await play.call(each)).status for each in ids} == {CallStatus.WAITING}
        assert await left(play) == {1}
        dialer.away = False
        play.clock.now += 60.0
        dispatcher.wake()
        await play.until_over(ids)
    assert {(await play.call(each)).status for each in ids} == {CallStatus.NORMAL}
    assert dispatcher.figures.ended[Outcome.NOT_PLACED] == first + 2 * PROBES


async def test_call_that_could_not_be_placed_in_its_time_expires(play: Play) -> None:
    dialer = StorageAway(play.clock, [Outcome.ANSWERED])
    dispatcher = play.dispatcher(dialer)
    dialer.faults = dispatcher.recording_faults
    ids = await play.place(1, time_to_live=2)
    async with at_work(dispatcher):
        await play.until_over(ids)
    assert (await play.call(ids[0])).status is CallStatus.EXPIRED
