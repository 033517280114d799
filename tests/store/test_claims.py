"""Claiming what is due, the moment of the answer, expiry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError

from bitel.domain.calls import CallStatus, Lane
from bitel.domain.ids import new_id
from bitel.store import claims
from bitel.store.leases import LostLease
from bitel.store.schema import CLAIMED, FINISHED, attempt
from tests.support import call_rows

if TYPE_CHECKING:
    from tests.support.store_world import World


def test_a_due_call_is_claimed_once(world: World) -> None:
    call_id = world.place(retry_count=3, retry_interval=90)
    lease = world.take_over()

    (claimed,) = world.claim(lease)

    assert claimed.call_id == call_id
    assert claimed.project_id == world.project_id
    assert claimed.e164 == "+989121234567"
    assert claimed.recording_id == world.recording_id
    assert claimed.started_at == world.clock()
    assert claimed.rule.retries_left == 3
    assert claimed.rule.retry_interval == 90
    assert claimed.rule.trouble == 0
    assert world.claim(lease) == []
    (row,) = world.attempts(call_id)
    assert (row.id, row.number, row.claim) == (claimed.attempt_id, 1, CLAIMED)
    assert world.do(lambda conn: call_rows.in_flight(conn, "main")) == 1


def test_claims_go_by_lane_then_by_the_time_they_are_due(world: World) -> None:
    batch = world.place(lane=Lane.BATCH)
    world.clock.advance(1)
    late_single = world.place(lane=Lane.SINGLE, requested_at=world.clock() + 1)
    single = world.place(lane=Lane.SINGLE)
    world.clock.advance(2)
    otp = world.place(lane=Lane.OTP)

    lease = world.take_over()

    assert [one.call_id for one in world.claim(lease, 3)] == [otp, single, late_single]
    assert [one.call_id for one in world.claim(lease, 3)] == [batch]


def test_only_the_lanes_asked_for_are_claimed(world: World) -> None:
    world.place(lane=Lane.BATCH)
    otp = world.place(lane=Lane.OTP)
    lease = world.take_over()

    claimed = world.do(
        lambda conn: claims.claim(conn, lease, 10, world.clock(), lanes=[Lane.OTP, Lane.SINGLE])
    )

    assert [one.call_id for one in claimed] == [otp]


def test_a_limit_of_nothing_claims_nothing(world: World) -> None:
    world.place()
    assert world.claim(world.take_over(), 0) == []


def test_what_is_not_yet_due_expired_or_anothers_is_not_claimed(world: World) -> None:
    now = world.clock()
    world.place(requested_at=now + 0.001)
    world.place(expires_at=now)
    world.place(dialer_id="other")

    assert world.claim(world.take_over()) == []


def test_a_worker_that_was_taken_over_claims_nothing(world: World) -> None:
    world.place()
    old = world.take_over("old")
    world.take_over("new")

    with pytest.raises(LostLease, match="main"):
        world.claim(old)

    assert world.count(attempt) == 0


def test_heard_is_written_once_and_says_so_again(world: World) -> None:
    call_id = world.place()
    lease = world.take_over()
    (claimed,) = world.claim(lease)
    answered_at = world.clock.advance(5)

    assert world.heard(lease, claimed) == {claimed.attempt_id}
    world.clock.advance(5)
    assert world.heard(lease, claimed) == {claimed.attempt_id}

    (row,) = world.attempts(call_id)
    assert row.claim == "heard"
    assert row.answered_at == answered_at


def test_heard_refuses_what_is_unknown_or_lost(world: World) -> None:
    world.place()
    old = world.take_over("old")
    (claimed,) = world.claim(old)
    new = world.take_over("new")

    assert world.heard(old, claimed) == set()
    assert world.heard(new, claimed) == set()
    assert world.do(lambda conn: claims.mark_answered(conn, new, {new_id(1.0): 1.0})) == set()
    assert world.do(lambda conn: claims.mark_answered(conn, new, {})) == set()


def test_waiting_calls_expire_and_claimed_ones_do_not(world: World) -> None:
    now = world.clock()
    claimed_id = world.place(expires_at=now + 10)
    lease = world.take_over()
    world.claim(lease)
    expiring = [world.place(expires_at=now + 10) for _ in range(3)]
    staying = world.place(expires_at=now + 11)
    world.clock.advance(10)

    def expire(limit: int) -> int:
        return world.do(lambda conn: claims.expire(conn, "main", world.clock(), limit))

    assert [expire(2), expire(2), expire(2)] == [2, 1, 0]
    for call_id in expiring:
        assert world.call(call_id).status is CallStatus.EXPIRED
        assert world.call(call_id).executed_at == 0
    assert world.call(staying).status is CallStatus.WAITING
    assert world.call(claimed_id).status is CallStatus.WAITING


def test_next_due_is_the_first_time_something_is_to_be_done(world: World) -> None:
    def next_due() -> float | None:
        return world.do(lambda conn: claims.next_due(conn, "main", world.clock()).earliest)

    now = world.clock()
    assert next_due() is None
    world.place(dialer_id="other")
    assert next_due() is None
    world.place(lane=Lane.BATCH, requested_at=now + 50, expires_at=now + 500)
    assert next_due() == now + 50
    world.place(lane=Lane.OTP, requested_at=now + 60, expires_at=now + 500)
    assert next_due() == now + 50
    world.place(lane=Lane.SINGLE, requested_at=now + 40, expires_at=now + 20)
    assert next_due() == now + 20
    world.clock.advance(100)
    world.do(lambda conn: claims.expire(conn, "main", world.clock()))
    world.claim(world.take_over())
    assert next_due() is None


def test_the_database_itself_refuses_two_open_attempts_of_one_call(world: World) -> None:
    call_id = world.place()
    (claimed,) = world.claim(world.take_over())
    second = {"id": new_id(1.0), "call_id": call_id, "number": 2, "dialer_id": "main", "epoch": 1,
              "claim": CLAIMED, "started_at": 1.0, "ended_by": "", "detail": ""}  # fmt: skip

    with pytest.raises(IntegrityError):
        world.do(lambda conn: conn.execute(insert(attempt).values(second)))
    with pytest.raises(IntegrityError):
        world.do(lambda conn: conn.execute(insert(attempt).values({**second, "claim": "perhaps"})))
    over = {**second, "claim": FINISHED, "ended_at": 2.0}
    world.do(lambda conn: conn.execute(insert(attempt).values(over)))
    assert [row.id for row in world.attempts(call_id)] == [claimed.attempt_id, second["id"]]
