"""Whatever the result of an attempt, its call ends or is due again, and no other call changes."""

from __future__ import annotations

import asyncio
import itertools
from decimal import Decimal
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bitel.dialing.attempt_writer import AttemptWriter
from bitel.domain.attempts import AttemptResult, Media, Outcome
from bitel.domain.calls import Call, CallStatus
from bitel.domain.ids import new_id
from bitel.domain.pricing import NOTHING, Bill
from bitel.domain.retry import Finish, Requeue, RetryAt
from bitel.store import (
    balances,
    calls,
    claims,
    projects,
    recovery,
    settling,
)
from bitel.store.claims import Claim
from bitel.store.database import Database
from bitel.store.leases import Lease, Slot
from bitel.store.schema import webhook_event
from bitel.store.settling import Settlement, Unstorable
from tests.support import call_rows, factories

NOW = 1_700_000_000.0

times = st.one_of(
    st.floats(),
    st.sampled_from([float("nan"), float("inf"), -float("inf"), 0.0, -1e300, 1e300, NOW]),
)
codes = st.one_of(st.none(), st.integers(), st.integers(-(2**70), 2**70), st.just(486))
words = st.one_of(
    st.text(max_size=300),
    st.sampled_from(["a\0b", "\ud83d", "x" * 100_000, "شلوغ", "\x7f\x1b[0m"]),
)
amounts = st.one_of(
    st.decimals(),
    st.sampled_from([Decimal(-1), Decimal("NaN"), Decimal("Infinity"), Decimal(10) ** 30]),
)
counts = st.one_of(st.integers(), st.sampled_from([-1, 2**31, 2**63, 2**70]))
media = st.one_of(st.none(), st.builds(Media, counts, counts, words, times, times))
result = st.builds(
    AttemptResult,
    st.sampled_from(Outcome),
    times,
    times,
    st.one_of(st.none(), times),
    codes,
    codes,
    st.sampled_from(["", "far", "us"]),
    words,
    media,
)
verdicts = st.one_of(
    st.builds(Finish, st.sampled_from([each for each in CallStatus if each.final]), words),
    st.builds(RetryAt, times, st.booleans(), counts),
    st.builds(Requeue, times),
)
bills = st.one_of(st.just(NOTHING), st.builds(Bill, counts, amounts))


class World:
    """Three claimed calls at a time."""

    def __init__(self, database: Database) -> None:
        self.database = database
        # An end may put its number on the do-not-call list, so each call has one of its own.
        self.numbers = itertools.count(1_000_000)
        self.project_id, self.recording_id = database.write_now(
            lambda conn: factories.make_project(conn, NOW)
        )
        database.write_now(
            lambda conn: projects.change(
                conn,
                self.project_id,
                webhook_url="http://127.0.0.1/",
                webhook_secret="whsec_" + "A" * 32,
            )
        )
        self.lease: Lease = database.write_now(
            lambda conn: recovery.take_over(conn, Slot("main"), "w", NOW, 77.0)
        )[0]

    def claim(self, count: int = 3) -> list[Claim]:
        new = [
            factories.new_call(
                self.project_id,
                self.recording_id,
                NOW,
                phone_number=f"0912{n}",
                e164=f"+98912{n}",
            )
            for n in itertools.islice(self.numbers, count)
        ]
        self.database.write_now(lambda conn: call_rows.place(conn, new))
        ids = {one.id for one in new}
        claimed = self.database.write_now(lambda conn: claims.claim(conn, self.lease, 1000, NOW))
        return [one for one in claimed if one.call_id in ids]

    def call(self, call_id: str) -> Call:
        found = self.database.read_now(lambda conn: calls.find(conn, self.project_id, call_id))
        assert found is not None
        return found

    def spent(self, call_id: str) -> list[Decimal]:
        entries = self.database.read_now(
            lambda conn: balances.entries(conn, self.project_id, limit=100_000)
        )
        return [entry.amount for entry in entries if entry.call_id == call_id]

    def open_attempts(self) -> int:
        return self.database.read_now(lambda conn: call_rows.in_flight(conn, "main"))


@pytest.fixture
def world(database: Database) -> World:
    return World(database)


def good(claim: Claim) -> Settlement:
    done = AttemptResult(Outcome.ANSWERED, NOW, NOW + 12, NOW + 2, 200, 16, "far")
    final = Finish(CallStatus.NORMAL)
    return Settlement(claim.attempt_id, claim.call_id, done, final, Bill(10, Decimal("1.5")))


FINE = AttemptResult(Outcome.ANSWERED, NOW, NOW + 12, NOW + 2)


@settings(
    max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
@given(result, verdicts, bills)
@example(FINE._replace(ended_at=float("nan")), Finish(CallStatus.NORMAL), NOTHING)
@example(FINE, Finish(CallStatus.NORMAL), Bill(10, Decimal(10) ** 15))
@example(FINE, Finish(CallStatus.NORMAL), Bill(2**40, Decimal(1)))
@example(
    AttemptResult(Outcome.BUSY, NOW, NOW + 1),
    RetryAt(float("nan"), spends_retry=True, trouble=0),
    NOTHING,
)
@example(
    FINE._replace(media=Media(2**40, -1, "1" * 900 + "\0")), Finish(CallStatus.NORMAL), NOTHING
)
def test_every_end_leaves_its_call_final_or_due_and_its_neighbours_unharmed(
    world: World, result: AttemptResult, decision: Any, bill: Bill
) -> None:
    first, odd, last = world.claim()
    strange = Settlement(odd.attempt_id, odd.call_id, result, decision, bill)

    async def settle() -> list[bool]:
        records = AttemptWriter(world.database, world.lease, lambda: NOW + 20)
        return await asyncio.gather(*map(records.settle, (good(first), strange, good(last))))

    assert asyncio.run(settle()) == [True] * 3
    for claim in (first, last):
        call = world.call(claim.call_id)
        assert (call.status, call.price) == (CallStatus.NORMAL, Decimal("1.5"))
        assert world.spent(claim.call_id) == [Decimal("-1.5")]
    assert world.open_attempts() == 0
    call = world.call(odd.call_id)
    entries = world.spent(odd.call_id)
    assert -sum(entries, Decimal(0)) == call.price
    if not call.status.final:
        assert entries == []
        due_at = world.database.read_now(lambda conn: claims.next_due(conn, "main", NOW))
        assert due_at is not None
        # It ends as EXPIRED at the latest, so that it is due to nobody in the next example.
        world.database.write_now(lambda conn: claims.expire(conn, "main", NOW + 100_000))
        assert world.call(odd.call_id).status.final


async def test_what_is_refused_is_logged_at_once_with_its_attempt_and_call(world: World) -> None:
    _, odd, _ = world.claim()
    records = AttemptWriter(world.database, world.lease, lambda: NOW + 20)
    with structlog.testing.capture_logs() as logs:
        bill = Bill(10, Decimal(10) ** 15)
        assert await records.settle(good(odd)._replace(bill=bill))
    [line] = logs
    assert line["event"] == "settlement_refused"
    assert line["log_level"] == "error"
    assert (line["attempt"], line["call"]) == (odd.attempt_id, odd.call_id)
    call = world.call(odd.call_id)
    assert (call.status, call.price, call.bill_seconds) == (CallStatus.UNKNOWN, Decimal(0), 0)


async def test_what_nobody_answered_and_is_refused_ends_as_error(world: World) -> None:
    odd = world.claim()[0]
    done = AttemptResult(Outcome.BUSY, NOW, float("inf"), detail="secret words")
    records = AttemptWriter(world.database, world.lease, lambda: NOW + 20)
    decision = RetryAt(NOW + 60, spends_retry=True, trouble=0)
    assert await records.settle(Settlement(odd.attempt_id, odd.call_id, done, decision))
    call = world.call(odd.call_id)
    assert call.status is CallStatus.ERROR
    assert call.reason == "the end of its last attempt could not be stored"
    [attempt] = world.database.read_now(lambda conn: calls.attempts(conn, odd.call_id))
    assert (attempt.outcome, attempt.detail) == (Outcome.BUSY, "")


async def test_a_call_whose_event_is_there_already_ends_all_the_same(world: World) -> None:
    claim = world.claim()[0]
    event = {
        "id": new_id(NOW),
        "project_id": world.project_id,
        "call_id": claim.call_id,
        "created_at": NOW,
        "due_at": NOW,
        "tries": 0,
        "state": "pending",
    }
    world.database.write_now(lambda conn: conn.execute(webhook_event.insert().values(event)))
    records = AttemptWriter(world.database, world.lease, lambda: NOW + 20)
    assert await records.settle(good(claim))
    assert world.call(claim.call_id).status is CallStatus.NORMAL


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_settlement_without_a_time_is_refused_whole(world: World, bad: float) -> None:
    first, odd, _ = world.claim()
    done = AttemptResult(Outcome.BUSY, NOW, NOW + 1)
    never = Settlement(odd.attempt_id, odd.call_id, done, Requeue(bad))
    with pytest.raises(Unstorable):
        world.database.write_now(
            lambda conn: settling.settle(conn, world.lease, [good(first), never], NOW)
        )
    assert world.open_attempts() == 3
