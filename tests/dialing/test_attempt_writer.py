"""What is made durable about answers while the database is slow, or out of reach."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import pytest
import structlog

from bitel.dialing import attempt_writer
from bitel.dialing.attempt_writer import AttemptWriter
from bitel.domain.attempts import AttemptResult, Outcome
from bitel.domain.calls import CallStatus
from bitel.domain.retry import Finish
from bitel.errors import UnavailableError
from bitel.store import claims, settling
from bitel.store.database import Database
from bitel.store.leases import Lease
from bitel.store.settling import Settlement
from tests.support.waiting import until


class Store:
    """Takes every answer, once it is reached."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.faults = 0
        self.written: list[set[str]] = []

    async def write(self, work: Callable[[Any], Any]) -> tuple[set[str], set[str]]:
        if self.faults:
            self.faults -= 1
            raise UnavailableError("the database can't be reached")
        await self.reached.wait()
        taken: tuple[set[str], set[str]] = work(None)
        self.written.append(taken[0])
        return taken


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(
        claims, "mark_answered", lambda conn, lease, answered_at, reported: set(answered_at)
    )
    monkeypatch.setattr(
        settling, "settle", lambda conn, lease, ends, now: {one.attempt_id for one in ends}
    )
    return Store()


def recording(store: Store) -> AttemptWriter:
    return AttemptWriter(cast(Database, store), Lease("main", "worker", 1), lambda: 0.0)


async def test_nobody_waits_in_silence_for_longer_than_is_allowed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_writer, "ANSWER_TIMEOUT", 0.05)
    made = recording(store)
    async with asyncio.timeout(5.0):
        assert not await made.answered("one", 1.0)
        # Those who wait behind a write that hangs are no better off.
        assert not await made.answered("two", 1.0)
    assert store.written == []


async def test_an_answer_is_tried_again_until_the_database_is_there(store: Store) -> None:
    store.faults = 1
    store.reached.set()
    made = recording(store)
    assert all(await asyncio.gather(made.answered("one", 1.0), made.answered("two", 1.0)))
    assert store.written == [{"one", "two"}]


async def test_who_was_hung_up_on_is_not_written_down_as_having_heard_us(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_writer, "ANSWER_TIMEOUT", 0.02)
    store.faults = 1
    store.reached.set()
    made = recording(store)
    assert not await made.answered("one", 1.0)
    await asyncio.sleep(0.15)  # the next try would come after 0.1 s
    assert store.faults == 0
    assert store.written == []


async def test_an_answer_that_is_refused_is_not_played_and_hurts_no_other(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answered(
        conn: object, lease: object, answered_at: dict[str, float], reported: object
    ) -> set[str]:
        if "bad" in answered_at:
            raise ValueError("no time")
        return set(answered_at)

    monkeypatch.setattr(claims, "mark_answered", answered)
    store.reached.set()
    made = recording(store)
    with structlog.testing.capture_logs() as logs:
        told = await asyncio.gather(*(made.answered(one, 1.0) for one in ("one", "bad", "two")))
    assert told == [True, False, True]
    assert [(line["event"], line["attempt"]) for line in logs] == [("answer_refused", "bad")]


async def test_ringing_is_written_a_little_later_together_with_what_else_there_is(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_writer, "RINGING_DELAY", 0.02)
    ringing: list[dict[str, float]] = []
    monkeypatch.setattr(
        claims, "mark_ringing", lambda conn, lease, rang_at, reported: ringing.append(rang_at)
    )
    store.reached.set()
    made = recording(store)
    for number in range(1000):
        made.ringing(f"{number}", float(number))
    # Answered, or over, before the ringing was written: that needs no write of its own.
    result = AttemptResult(Outcome.BUSY, 0.0, 1.0)
    end = Settlement("1", "call", result, Finish(CallStatus.USER_BUSY))
    assert all(await asyncio.gather(made.answered("0", 1.0), made.settle(end)))
    await until(lambda: ringing, 5.0)
    assert ringing == [{f"{number}": float(number) for number in range(2, 1000)}]


async def test_answers_and_ends_of_one_moment_share_a_transaction(store: Store) -> None:
    made = recording(store)
    result = AttemptResult(Outcome.BUSY, 0.0, 1.0)
    end = Settlement("two", "call", result, Finish(CallStatus.USER_BUSY))
    told = asyncio.gather(made.answered("one", 1.0), made.settle(end))
    await asyncio.sleep(0)
    store.reached.set()
    assert all(await told)
    assert store.written == [{"one"}]
