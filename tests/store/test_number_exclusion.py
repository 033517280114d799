"""At most one attempt at a time for each phone number of a project."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import func, select

from bitel.domain.attempts import AttemptResult, Outcome
from bitel.domain.calls import CallStatus, Lane
from bitel.domain.retry import Finish, RetryAt
from bitel.store import claims, do_not_call, number_exclusion
from bitel.store.database import Database
from bitel.store.number_exclusion import LONGEST_PARKED, OTP_PARKED_FOR, PARKED_FOR
from bitel.store.schema import call, may_ring
from bitel.store.settling import Settlement
from tests.support import call_rows
from tests.support.store_world import REDIAL_AFTER

if TYPE_CHECKING:
    from bitel.store.claims import Claim
    from bitel.store.leases import Lease
    from tests.support.store_world import World

NUMBER = "+989121234567"


def end(world: World, lease: Lease, claimed: Claim) -> None:
    now = world.clock()
    busy = AttemptResult(Outcome.BUSY, claimed.started_at, now)
    world.settle(
        lease, Settlement(claimed.attempt_id, claimed.call_id, busy, Finish(CallStatus.USER_BUSY))
    )


def test_a_number_named_a_hundred_times_is_dialled_once_at_a_time(world: World) -> None:
    placed = [world.place(e164=NUMBER, lane=Lane.BATCH) for _ in range(100)]
    lease = world.take_over()
    dialled: list[str] = []
    while len(dialled) < len(placed):
        claimed = world.claim(lease)
        assert len(claimed) <= 1, "two attempts at once to one number"
        for one in claimed:
            assert world.claim(lease) == []
            dialled.append(one.call_id)
            world.clock.advance(1)
            end(world, lease, one)
        world.clock.advance(PARKED_FOR)
    assert sorted(dialled) == sorted(placed)


def test_a_number_is_free_again_when_its_attempt_is_over(world: World) -> None:
    world.place(e164=NUMBER)
    world.clock.advance(0.01)
    second = world.place(e164=NUMBER)
    lease = world.take_over()
    (first,) = world.claim(lease)
    end(world, lease, first)
    assert world.claim(lease) == [], "parked for a moment"
    world.clock.advance(PARKED_FOR)
    assert [one.call_id for one in world.claim(lease)] == [second]


def test_other_calls_pass_those_whose_number_is_taken(world: World) -> None:
    for _ in range(5):
        world.place(e164=NUMBER)
    other = world.place()
    lease = world.take_over()
    claimed = world.claim(lease, 3) + world.claim(lease, 3)
    assert len(claimed) == 2
    assert other in {one.call_id for one in claimed}


@pytest.mark.parametrize("lane", [Lane.SINGLE, Lane.BATCH])
@pytest.mark.parametrize("of_first", [True, False])
def test_a_number_named_often_keeps_nobody_else_waiting(
    world: World, lane: Lane, of_first: bool
) -> None:
    """Claims of one call each, as a dialer of 10 calls a second makes them."""
    first, second = sorted((world, world.another("other")), key=lambda one: one.project_id)
    same, others = (first, second) if of_first else (second, first)
    world.do(
        lambda conn: call_rows.place(
            conn, [same.new_call(e164=NUMBER, lane=lane) for _ in range(300)]
        )
    )
    world.do(
        lambda conn: call_rows.place(conn, [others.new_call(lane=Lane.BATCH) for _ in range(100)])
    )
    lease = world.take_over()
    last: dict[Lane, str] = {}
    claimed: Counter[str] = Counter()
    for _ in range(60):
        for one in world.claim(lease, 1, after_project=last):
            last[one.lane] = one.project_id
            claimed[one.project_id] += 1
        world.clock.advance(0.05)
    assert claimed == {same.project_id: 1, others.project_id: 59}


def test_a_list_of_unwanted_numbers_keeps_nobody_else_waiting(world: World) -> None:
    unwanted = [world.new_call(e164=NUMBER) for _ in range(300)]
    world.do(lambda conn: call_rows.place(conn, unwanted))
    other = world.another("other").place(lane=Lane.BATCH)
    world.do(lambda conn: do_not_call.add(conn, world.project_id, NUMBER))
    assert [one.call_id for one in world.claim(world.take_over(), 1)] == [other]
    assert {world.call(one.id).status for one in unwanted} == {CallStatus.ERROR}


def test_what_there_is_no_room_for_stays_due(world: World) -> None:
    placed = []
    for number in (NUMBER, NUMBER, NUMBER, "+989131111111", "+989132222222"):
        placed.append(world.place(e164=number))
        world.clock.advance(0.01)
    lease = world.take_over()
    dialled = [one.call_id for _ in range(3) for one in world.claim(lease, 1)]
    assert dialled == [placed[0], placed[3], placed[4]]


def test_a_retry_waits_for_another_call_to_the_number(world: World) -> None:
    world.place(e164=NUMBER, retry_interval=5)
    lease = world.take_over()
    (first,) = world.claim(lease)
    busy = AttemptResult(Outcome.BUSY, first.started_at, world.clock())
    again = RetryAt(world.clock() + 5, spends_retry=True, trouble=0)
    world.settle(lease, Settlement(first.attempt_id, first.call_id, busy, again))
    second = world.place(e164=NUMBER)
    assert [one.call_id for one in world.claim(lease)] == [second]
    world.clock.advance(6)
    assert world.claim(lease) == []


def test_other_projects_may_call_the_number_at_the_same_time(world: World) -> None:
    other = world.another("other")
    world.place(e164=NUMBER)
    other.place(e164=NUMBER)
    assert len(world.claim(world.take_over())) == 2


def test_a_project_may_lift_the_rule(world: World) -> None:
    world.change(one_call_per_number=False)
    for _ in range(3):
        world.place(e164=NUMBER)
    assert len(world.claim(world.take_over())) == 3


def test_it_holds_for_all_dialers_of_the_project(world: World) -> None:
    world.place(e164=NUMBER)
    world.place(e164=NUMBER, dialer_id="other")
    main = world.take_over()
    (_,) = world.claim(main)
    assert world.claim(world.take_over_of("other")) == []


def test_passwords_are_looked_at_again_sooner(world: World) -> None:
    world.place(e164=NUMBER)
    lease = world.take_over()
    (first,) = world.claim(lease)
    password = world.place(e164=NUMBER, lane=Lane.OTP)
    assert world.claim(lease) == []
    end(world, lease, first)
    world.clock.advance(OTP_PARKED_FOR)
    assert [one.call_id for one in world.claim(lease)] == [password]


@pytest.mark.parametrize("restarts", [1, 2])
def test_a_number_that_a_crashed_process_may_still_ring_is_taken(
    world: World, restarts: int
) -> None:
    interrupted = world.place(e164=NUMBER, expires_at=world.clock() + 10)
    world.claim(world.take_over())
    crashed_at = world.clock.advance(1)
    for _ in range(restarts):
        lease = world.take_over()
    assert world.call(interrupted).status is CallStatus.EXPIRED
    second = world.place(e164=NUMBER)
    assert world.claim(lease) == []
    world.clock.now = crashed_at + REDIAL_AFTER
    assert world.claim(lease) == [], "a moment after it"
    world.clock.advance(PARKED_FOR)
    assert [one.call_id for one in world.claim(lease)] == [second]


def test_what_may_ring_no_more_is_forgotten(world: World) -> None:
    for _ in range(3):
        world.place()
    world.claim(world.take_over())
    world.take_over()
    marked = select(func.count()).select_from(call).where(may_ring)
    assert world.do(lambda conn: conn.execute(marked).scalar_one()) == 3
    world.clock.advance(REDIAL_AFTER)
    world.do(lambda conn: number_exclusion.forget_may_ring(conn, world.clock(), 2))
    assert world.do(lambda conn: conn.execute(marked).scalar_one()) == 1


def test_a_parked_call_expires_in_time(world: World) -> None:
    world.place(e164=NUMBER)
    lease = world.take_over()
    (_,) = world.claim(lease)
    late = world.place(e164=NUMBER, expires_at=world.clock() + 3)
    assert world.claim(lease) == []
    world.clock.advance(3)
    assert world.do(lambda conn: claims.expire(conn, "main", world.clock())) == 1
    assert world.call(late).status is CallStatus.EXPIRED


def test_none_is_parked_longer_than_the_longest(world: World) -> None:
    for _ in range(90):
        world.place(e164=NUMBER, lane=Lane.BATCH)
    lease = world.take_over()
    (first,) = world.claim(lease)
    end(world, lease, first)
    world.clock.advance(LONGEST_PARKED)
    assert len(world.claim(lease)) == 1


@pytest.mark.parametrize("turn", range(5))
def test_two_dialers_that_claim_at_the_same_time(
    world: World, database_url: str, turn: int
) -> None:
    """On PostgreSQL two processes may claim at the same time, by different dialers."""
    numbers = [f"+98913{turn}{n:06}" for n in range(40)]
    for number in numbers:
        world.place(e164=number)
        world.place(e164=number, dialer_id="other")
    mine, theirs = world.take_over(), world.take_over_of("other")
    barrier = threading.Barrier(2)
    claimed: dict[str, list[Claim]] = {}

    def claim(lease: Lease) -> None:
        database = Database.open(database_url)
        try:
            barrier.wait(10)
            claimed[lease.dialer_id] = database.write_now(
                lambda conn: claims.claim(conn, lease, 100, world.clock())
            )
        finally:
            database.close()

    threads = [threading.Thread(target=claim, args=[lease]) for lease in (mine, theirs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    dialled = [one.e164 for one in claimed["main"] + claimed["other"]]
    assert sorted(dialled) == numbers


def test_somebody_whose_line_a_crash_left_open_is_left_alone(world: World) -> None:
    world.place(e164=NUMBER)
    lease = world.take_over()
    (claimed,) = world.claim(lease)
    world.do(lambda conn: claims.mark_answered(conn, lease, {claimed.attempt_id: world.clock()}))
    second = world.place(e164=NUMBER)
    lease = world.recover()[0]
    assert world.claim(lease) == []
    world.clock.advance(REDIAL_AFTER)
    assert world.claim(lease) == [], "a moment after it"
    world.clock.advance(PARKED_FOR)
    assert [one.call_id for one in world.claim(lease)] == [second]
