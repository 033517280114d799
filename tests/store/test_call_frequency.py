"""Limits on calls to one number, counted in the database."""

from __future__ import annotations

import threading
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from sqlalchemy import func, select

from bitel.domain.calls import Lane, NewCall
from bitel.errors import BitelError, TooManyRequestsError
from bitel.store import call_frequency, placing, projects
from bitel.store.call_frequency import DAY, OTP_PERIOD
from bitel.store.database import Connection, Database
from bitel.store.schema import placed_number

if TYPE_CHECKING:
    from tests.support.store_world import World

NUMBER, OTHER = "+989121234567", "+989121234568"


def otp(world: World, e164: str = NUMBER, **changes: Any) -> NewCall:
    fields: dict[str, Any] = {"lane": Lane.OTP, "digits": "1", "recording_id": None, **changes}
    return world.new_call(e164=e164, **fields)


def place(world: World, *asks: list[NewCall], otp_per_number: int | None = 5) -> list[Any]:
    return world.do(lambda conn: placing.place_each(conn, asks, otp_per_number))


def counted(world: World) -> int:
    query = select(func.count(placed_number.c.id))
    return world.do(lambda conn: conn.execute(query).scalar_one())


def test_one_time_passwords_for_a_number_are_limited(world: World) -> None:
    start = world.clock()
    for n in range(5):
        world.clock.now = start + 60 * n
        assert place(world, [otp(world)]) == [set()]
    (refused,) = place(world, [otp(world)])
    assert isinstance(refused, TooManyRequestsError)
    assert refused.retry_after == OTP_PERIOD - 240
    assert "0912" not in str(refused)
    assert NUMBER not in str(refused)
    # Another number, another project and other calls have nothing to do with it.
    assert place(world, [otp(world, OTHER)]) == [set()]
    other = world.another("other")
    assert place(other, [otp(other)]) == [set()]
    assert place(world, [world.new_call(e164=NUMBER)]) == [set()]
    world.clock.now = start + OTP_PERIOD - 0.5
    assert isinstance(place(world, [otp(world)])[0], TooManyRequestsError)
    world.clock.now = start + OTP_PERIOD
    assert place(world, [otp(world)]) == [set()]
    assert isinstance(place(world, [otp(world)])[0], TooManyRequestsError)


def test_requests_of_one_transaction_count_together(world: World) -> None:
    answers = place(world, *([otp(world)] for _ in range(7)))
    assert [isinstance(one, BitelError) for one in answers] == [False] * 5 + [True] * 2
    assert counted(world) == 5


def test_what_is_refused_for_another_reason_does_not_count(world: World) -> None:
    world.do(lambda conn: projects.set_balance(conn, world.project_id, Decimal(1), world.clock()))
    dear = [otp(world, reserve=Decimal(2)) for _ in range(9)]
    assert all(isinstance(one, BitelError) for one in place(world, *([one] for one in dear)))
    assert counted(world) == 0


def test_calls_of_a_project_to_a_number_in_a_day(world: World) -> None:
    world.change(max_calls_per_number_per_day=3)
    new = [world.new_call(e164=e164) for e164 in (NUMBER, OTHER, NUMBER)]
    assert place(world, new) == [set()]
    world.clock.advance(DAY - 1)
    assert place(world, [otp(world, OTHER), otp(world)]) == [set()]
    (refused,) = place(world, [otp(world, OTHER), otp(world)])
    assert isinstance(refused, TooManyRequestsError)
    assert refused.retry_after == 1
    assert "3 calls in 24 hours" in str(refused)
    world.clock.advance(1)
    # Two of the three to the first number are a day old by now.
    assert place(world, [world.new_call(e164=NUMBER), world.new_call(e164=NUMBER)]) == [set()]
    assert isinstance(place(world, [otp(world)])[0], TooManyRequestsError)
    world.change(max_calls_per_number_per_day=None)
    assert place(world, *([world.new_call(e164=NUMBER)] for _ in range(9))) == [set()] * 9


def test_more_at_once_than_the_limit_never_fit(world: World) -> None:
    world.change(max_calls_per_number_per_day=2)
    (refused,) = place(world, [world.new_call(e164=NUMBER) for _ in range(3)])
    assert isinstance(refused, TooManyRequestsError)
    assert refused.retry_after == DAY
    assert counted(world) == 0


def test_what_counts_no_longer_is_deleted(world: World) -> None:
    place(world, *([otp(world)] for _ in range(4)))
    world.clock.advance(DAY + 1)
    place(world, [otp(world)])
    world.do(lambda conn: call_frequency.forget_old(conn, world.clock(), 3))
    assert counted(world) == 2
    world.do(lambda conn: call_frequency.forget_old(conn, world.clock(), 3))
    assert counted(world) == 1


def test_two_processes_can_not_pass_a_limit_together(world: World, database_url: str) -> None:
    first_counted, second_is_over = threading.Event(), threading.Event()
    answers: list[Any] = []

    def place_four(conn: Connection) -> list[Any]:
        return list(placing.place_each(conn, [[otp(world)] for _ in range(4)], 5))

    def first(conn: Connection) -> None:
        answers.extend(place_four(conn))
        first_counted.set()
        # Only a second one that does not wait for this commit is over by then.
        second_is_over.wait(0.5)

    def second(other: Database) -> None:
        answers.extend(other.write_now(place_four))
        second_is_over.set()

    with Database.open(database_url) as other:
        threads = [threading.Thread(target=world.do, args=(first,))]
        threads[0].start()
        assert first_counted.wait(10)
        threads.append(threading.Thread(target=second, args=(other,)))
        threads[1].start()
        for thread in threads:
            thread.join(20)
    assert len([one for one in answers if not isinstance(one, BitelError)]) == 5
    assert counted(world) == 5
