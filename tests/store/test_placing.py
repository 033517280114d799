"""Placing calls: all or none, within the project's budget, and none to who must not be called."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, select, text

from bitel.domain.attempts import AttemptResult, Outcome
from bitel.domain.calls import CallStatus, Lane, NewCalls
from bitel.domain.ids import new_ids
from bitel.domain.pricing import Bill
from bitel.domain.retry import Finish, RetryAt
from bitel.errors import InsufficientBalanceError, InvalidRequestError, TooManyRequestsError
from bitel.store import claims, do_not_call, placing, recordings
from bitel.store.database import Database
from bitel.store.schema import attempt, call, webhook_event
from bitel.store.settling import Settlement
from tests.support import call_rows

if TYPE_CHECKING:
    from bitel.store.claims import Claim
    from tests.support.store_world import World

NORMAL = Finish(CallStatus.NORMAL)
BUSY = Finish(CallStatus.USER_BUSY)


def place(world: World, *reserves: str, **more: Any) -> list[str]:
    new = [world.new_call(reserve=Decimal(amount), **more) for amount in reserves]
    return [one.id for one in world.do(lambda conn: call_rows.place(conn, new))]


def over(claimed: Claim, decision: Finish | RetryAt, price: str | None = None) -> Settlement:
    answered_at = None if price is None else claimed.started_at + 1
    outcome = Outcome.BUSY if price is None else Outcome.ANSWERED
    done = AttemptResult(outcome, claimed.started_at, claimed.started_at + 9, answered_at)
    return Settlement(
        claimed.attempt_id, claimed.call_id, done, decision, Bill(8, Decimal(price or 0))
    )


def test_what_calls_may_cost_is_kept_back_until_they_are_over(world: World) -> None:
    world.set_balance(Decimal(10))
    dear, cheap = place(world, "2.5", "0.5")

    assert (world.project().balance, world.project().reserved) == (Decimal(10), Decimal(3))
    with pytest.raises(InsufficientBalanceError, match=r"7\.0000 of the balance is free"):
        place(world, "7.0001")
    (dearest,) = place(world, "7")
    lease = world.take_over()
    claimed = {one.call_id: one for one in world.claim(lease)}
    world.settle(lease, over(claimed[dear], NORMAL, "2"), over(claimed[cheap], BUSY))
    assert (world.project().balance, world.project().reserved) == (Decimal(8), Decimal(7))
    world.settle(lease, over(claimed[dearest], NORMAL, "0"))
    assert (world.project().balance, world.project().reserved) == (Decimal(8), Decimal(0))


def test_a_retry_keeps_its_reservation(world: World) -> None:
    world.set_balance(Decimal(10))
    place(world, "4")
    lease = world.take_over()
    (claimed,) = world.claim(lease)

    world.settle(lease, over(claimed, RetryAt(world.clock(), spends_retry=True, trouble=0)))

    assert world.project().reserved == 4


def test_nobody_pays_more_than_was_reserved(world: World) -> None:
    world.set_balance(Decimal(10))
    (call_id,) = place(world, "3")
    lease = world.take_over()
    (claimed,) = world.claim(lease)

    world.settle(lease, over(claimed, NORMAL, "3.5"))

    assert world.call(call_id).price == 3
    assert world.balance() == 7
    assert sum(world.ledger()) == 7


def test_a_project_without_limits_reserves_nothing_and_pays_what_it_costs(world: World) -> None:
    (call_id,) = place(world, "3")
    assert world.project().reserved == 0
    world.set_balance(Decimal(10))
    lease = world.take_over()
    (claimed,) = world.claim(lease)

    world.settle(lease, over(claimed, NORMAL, "3.5"))

    assert world.call(call_id).price == Decimal("3.5")
    assert (world.balance(), world.project().reserved) == (Decimal("6.5"), Decimal(0))


def test_what_ran_out_of_time_was_canceled_or_lost_gives_its_reservation_back(
    world: World,
) -> None:
    world.set_balance(Decimal(100))
    soon = world.clock() + 50
    (expiring,) = place(world, "1", expires_at=soon, requested_at=world.clock() + 1)
    (canceled,) = place(world, "2", requested_at=world.clock() + 1)
    heard, ringing = place(world, "4", "8", retry_count=3)
    lease = world.take_over()
    claimed = {one.call_id: one for one in world.claim(lease)}
    assert set(claimed) == {heard, ringing}
    world.heard(lease, claimed[heard])
    world.cancel(canceled)
    assert world.project().reserved == 13
    world.take_over("next")
    assert world.project().reserved == 9
    world.clock.advance(50)
    assert world.do(lambda conn: claims.expire(conn, "main", world.clock())) == 1
    assert world.project().reserved == 8
    world.cancel(ringing)
    assert world.project().reserved == 0
    for call_id in (expiring, canceled, heard, ringing):
        world.cancel(call_id)
        assert world.call(call_id).finished_at > 0
    assert world.project().reserved == 0


def test_nothing_of_a_request_that_is_too_dear_is_stored(world: World) -> None:
    world.set_balance(Decimal(10))

    with pytest.raises(InsufficientBalanceError):
        place(world, "6", "6")

    assert world.count(call) == 0
    assert world.project().reserved == 0


def test_of_many_requests_each_is_placed_or_told_why_not(world: World) -> None:
    world.set_balance(Decimal(10))
    other = world.another("other")
    asks = [
        [world.new_call(reserve=Decimal(6))],
        [world.new_call(reserve=Decimal(6))],
        [other.new_call(reserve=Decimal(6)), other.new_call(reserve=Decimal(6))],
        [world.new_call(reserve=Decimal(4))],
        [world.new_call(recording_id=other.recording_id)],
    ]

    answers = world.do(lambda conn: placing.place_each(conn, asks))

    first, too_dear, others, last, not_theirs = answers
    assert isinstance(too_dear, InsufficientBalanceError)
    assert isinstance(not_theirs, InvalidRequestError)
    assert first == others == last == set()  # none of them is final at once
    placed = set(world.do(lambda conn: conn.execute(select(call.c.id)).scalars()))
    assert placed == {new.id for ask in (asks[0], asks[2], asks[3]) for new in ask}
    assert (world.project().reserved, other.project().reserved) == (Decimal(10), Decimal(0))


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("together", [False, True], ids=["each", "together"])
@pytest.mark.parametrize("limit", ["balance", "daily_spend"])
def test_two_connections_that_place_at_once_do_not_reserve_more_than_there_is(
    world: World, database_url: str, together: bool, limit: str
) -> None:
    if limit == "balance":
        world.set_balance(Decimal(10))
    else:
        world.change(daily_spend=Decimal(10))
    begun, go_on = threading.Event(), threading.Event()

    def place_six(conn: Connection) -> None:
        if together:
            placing.place_many(conn, many(world, "0912", "0913", reserve="3"))
        else:
            call_rows.place(conn, [world.new_call(reserve=Decimal(3)) for _ in range(2)])

    def place_slowly(conn: Connection) -> None:
        place_six(conn)
        begun.set()
        assert go_on.wait(10)

    def waits(conn: Connection) -> bool:
        return bool(conn.execute(text(_WAITING_FOR_LOCKS)).scalar_one())

    with Database.open(database_url) as other, ThreadPoolExecutor(2) as pool:
        first = pool.submit(world.do, place_slowly)
        assert begun.wait(10)
        second = pool.submit(other.write_now, place_six)
        give_up = time.monotonic() + 10
        # With or without a look at the budget, the second waits for the first in the end.
        while not second.done() and not other.read_now(waits):
            assert time.monotonic() < give_up
            time.sleep(0.01)
        go_on.set()
        first.result(10)
        with pytest.raises((InsufficientBalanceError, TooManyRequestsError)):
            second.result(10)
    assert world.project().reserved == 6
    assert world.count(call) == 2


_WAITING_FOR_LOCKS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'
"""


def test_calls_of_two_projects_may_be_placed_in_one_go(world: World) -> None:
    other = world.another("other")
    mixed = [world.new_call(), other.new_call(), world.new_call()]

    placed = world.do(lambda conn: call_rows.place(conn, mixed))

    assert [one.id for one in placed] == [one.id for one in mixed]
    assert world.do(lambda conn: call_rows.place(conn, [])) == []


def test_a_days_spending_has_its_limit(world: World) -> None:
    world.change(daily_spend=Decimal(10))
    place(world, "6")
    lease = world.take_over()
    (claimed,) = world.claim(lease)
    world.settle(lease, over(claimed, NORMAL, "5"))
    place(world, "4")  # 5 spent, 4 reserved

    with pytest.raises(TooManyRequestsError, match=r"1\.0000 of the day's") as refused:
        place(world, "1.5")

    # 2023-11-14 22:13:20 UTC
    assert refused.value.retry_after == 6400
    assert world.balance() is None
    world.clock.advance(6400)
    place(world, "6")  # 0 spent on this day, 4 reserved
    with pytest.raises(TooManyRequestsError):
        place(world, "0.0001")
    world.change(daily_spend=None)
    place(world, "1000")


def test_what_calls_cost_one_after_the_other_adds_up_over_the_day(world: World) -> None:
    world.change(daily_spend=Decimal(10))
    lease = world.take_over()
    for _ in range(2):
        place(world, "4")
        (claimed,) = world.claim(lease)
        world.settle(lease, over(claimed, NORMAL, "4"))

    with pytest.raises(TooManyRequestsError):
        place(world, "2.1")
    place(world, "2")


def test_the_days_spending_is_counted_before_there_is_a_limit(world: World) -> None:
    place(world, "6")
    lease = world.take_over()
    (claimed,) = world.claim(lease)
    world.settle(lease, over(claimed, NORMAL, "5"))
    world.change(daily_spend=Decimal(10))

    with pytest.raises(TooManyRequestsError):
        place(world, "5.1")
    place(world, "5")


def test_whoever_is_not_to_be_called_is_not(world: World) -> None:
    world.set_balance(Decimal(10))
    world.change(webhook_url="https://example.net/", webhook_secret="whsec_x")
    world.do(lambda conn: do_not_call.add(conn, world.project_id, "+989120000000"))
    new = [
        world.new_call(reserve=Decimal(10)),
        world.new_call(reserve=Decimal(10), e164="+989120000000"),
    ]

    placed = world.do(lambda conn: call_rows.place(conn, new))

    waiting, refused = placed
    assert waiting.status is CallStatus.WAITING
    assert (refused.status, refused.reason) == (CallStatus.ERROR, "on the do-not-call list")
    assert refused.finished_at == world.clock()
    assert [world.call(one.id) for one in new] == placed
    assert world.project().reserved == 10
    assert world.count(webhook_event) == 1
    assert [one.call_id for one in world.claim(world.take_over())] == [waiting.id]


def test_who_came_onto_the_list_later_is_not_called_either(world: World) -> None:
    world.set_balance(Decimal(10))
    unwanted, wanted = place(world, "1", e164="+989120000000") + place(world, "2")
    other = world.another("other")
    others = other.place(e164="+989120000000")
    world.do(lambda conn: do_not_call.add(conn, world.project_id, "+989120000000"))

    claimed = world.claim(world.take_over())

    assert {one.call_id for one in claimed} == {wanted, others}
    assert world.call(unwanted).status is CallStatus.ERROR
    assert world.call(unwanted).reason == "on the do-not-call list"
    assert world.project().reserved == 2
    assert world.count(attempt) == 2


def test_a_one_time_password_needs_no_recording(world: World) -> None:
    place(world, "0", recording_id=None, digits="12345", repeat_count=2, language="fa")

    (claimed,) = world.claim(world.take_over())

    assert claimed.recording_id is None
    assert (claimed.digits, claimed.repeat_count, claimed.language) == ("12345", 2, "fa")


def test_a_deleted_recording_is_not_played(world: World) -> None:
    now = world.clock()
    world.do(lambda conn: recordings.remove(conn, world.project_id, world.recording_id, now))

    with pytest.raises(InvalidRequestError, match="voiceId"):
        place(world, "0")


def many(world: World, *numbers: str, reserve: str = "0", **more: Any) -> NewCalls:
    """Calls of one request, to these numbers as they are written."""
    like = world.new_call(lane=Lane.BATCH, **more)
    ids = new_ids(world.clock(), len(numbers))
    e164 = [f"+98{number.lstrip('0')}" if number.isdecimal() else "+98" for number in numbers]
    return NewCalls(like, ids, numbers, e164, [Decimal(reserve)] * len(numbers))


def test_many_calls_are_stored_as_each_by_itself_would_be(world: World) -> None:
    world.set_balance(Decimal(10))
    plain = ["0912", 'quoted "\\" \u06f0\u06f9', "nul \0 and \ud800 half", "9 " * 35]
    terms: dict[str, Any] = {"retry_count": 3, "campaign_id": "c" * 32, "digits": "407",
                             "repeat_count": 2, "language": "fa"}  # fmt: skip
    together = many(world, *plain, reserve="1.5", **terms)
    alone = [
        world.new_call(lane=Lane.BATCH, phone_number=number, e164=e164, reserve=Decimal("0.5"),
                       **terms)
        for number, e164 in zip(together.phone_numbers, together.e164, strict=True)
    ]  # fmt: skip

    prepared = placing.prepare(together)
    assert world.do(lambda conn: placing.place_many(conn, together, prepared)) == set()
    world.do(lambda conn: call_rows.place(conn, alone))

    rows = world.do(lambda conn: conn.execute(select(call).order_by(call.c.id)).all())
    stored = {row.id: row._asdict() for row in rows}
    first, second = ([stored[key] for key in ids] for ids in (together.ids, [a.id for a in alone]))
    for row in (*first, *second):
        del row["id"]
    assert {row.pop("reserved") for row in first} == {Decimal("1.5")}
    assert {row.pop("reserved") for row in second} == {Decimal("0.5")}
    assert first == second
    assert world.project().reserved == 8


def test_more_calls_than_one_statement_takes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placing, "CHUNK", 3)
    asked = many(world, *(f"0912{n:07}" for n in range(10)))

    world.do(lambda conn: placing.place_many(conn, asked))

    rows = world.do(lambda conn: conn.execute(select(call).order_by(call.c.id)).all())
    assert [row.phone_number for row in rows] == list(asked.phone_numbers)
    assert len(world.claim(world.take_over())) == 10


def test_what_many_calls_reserve_is_the_projects_to_say_however_they_were_prepared(
    world: World,
) -> None:
    asked = many(world, "0912", "0913", reserve="5")
    prepared = placing.prepare(asked)

    world.do(lambda conn: placing.place_many(conn, asked, prepared))

    # The project has no limit, so nothing is kept back for it.
    rows = world.do(lambda conn: conn.execute(select(call)).all())
    assert [row.reserved for row in rows] == [Decimal(0)] * 2
    assert world.project().reserved == 0


def test_of_many_calls_all_are_placed_or_none(world: World) -> None:
    world.set_balance(Decimal(10))
    for changes, fault in (
        ({"reserve": "5.0001"}, InsufficientBalanceError),
        ({"recording_id": "f" * 32}, InvalidRequestError),
    ):
        dear = many(world, "0912", "0913", **changes)
        with pytest.raises(fault):
            world.do(partial(placing.place_many, calls=dear))
    assert world.count(call) == 0
    assert world.project().reserved == 0


def test_of_many_those_who_are_not_to_be_called_are_told_apart(world: World) -> None:
    world.set_balance(Decimal(10))
    world.do(lambda conn: do_not_call.add(conn, world.project_id, "+98913"))
    asked = many(world, "0912", "0913", "0914", "0913", reserve="5")

    prepared = placing.prepare(asked)
    refused = world.do(lambda conn: placing.place_many(conn, asked, prepared))

    assert refused == {asked.ids[1], asked.ids[3]}
    assert {world.call(key).status for key in refused} == {CallStatus.ERROR}
    assert world.project().reserved == 10
    assert [one.call_id for one in world.claim(world.take_over())] == [asked.ids[0], asked.ids[2]]
