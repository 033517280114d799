"""Who runs a dialer, and what a take-over does with what the last one left behind."""

from __future__ import annotations

import threading
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from bitel.calls.call import CallStatus
from bitel.calls.outcome import Outcome
from bitel.store import leases
from bitel.store.database import Database
from bitel.store.leases import Recovered
from bitel.store.schema import SETTLED, ledger_entry

if TYPE_CHECKING:
    from tests.store.conftest import World

REDIAL_AFTER = 77.0


def test_each_take_over_has_a_higher_epoch(world: World) -> None:
    first, second = world.take_over("a"), world.take_over("b")

    assert (first.dialer_id, first.worker, first.epoch) == ("main", "a", 1)
    assert (second.worker, second.epoch) == ("b", 2)


def test_only_the_last_worker_can_renew(world: World) -> None:
    old, new = world.take_over("old"), world.take_over("new")

    assert not world.do(lambda conn: leases.renew(conn, old, world.clock()))
    assert world.do(lambda conn: leases.renew(conn, new, world.clock()))


def test_a_dialer_is_up_while_its_worker_renews(world: World) -> None:
    def up() -> dict[str, bool]:
        return world.do(lambda conn: leases.dialers_up(conn, world.clock(), within=15))

    assert up() == {}
    lease = world.take_over()
    world.clock.advance(15)
    assert up() == {"main": True}
    world.clock.advance(0.5)
    assert up() == {"main": False}
    world.do(lambda conn: leases.renew(conn, lease, world.clock()))
    assert up() == {"main": True}


def test_an_attempt_nobody_had_answered_is_dialled_again_once_it_can_ring_no_more(
    world: World,
) -> None:
    call_id = world.place(retry_count=1)
    (claimed,) = world.claim(world.take_over("crashed"))
    world.clock.advance(10)

    lease, recovered = world.recover("next")

    assert recovered == Recovered(redialled=1, unknown=0)
    world.clock.advance(REDIAL_AFTER - 10 - 0.01)
    assert world.claim(lease) == []
    world.clock.advance(0.01)
    (again,) = world.claim(lease)
    assert again.call_id == call_id
    assert again.rule.retries_left == 1
    first, second = world.attempts(call_id)
    assert (first.id, first.claim, first.outcome) == (
        claimed.attempt_id,
        SETTLED,
        Outcome.CUT_OFF,
    )
    assert second.number == 2


def test_a_redial_is_due_at_once_when_the_crash_was_long_ago(world: World) -> None:
    world.place()
    world.claim(world.take_over("crashed"))
    world.clock.advance(1000)

    assert len(world.claim(world.take_over("next"))) == 1


def test_a_redial_that_would_come_too_late_expires_the_call(world: World) -> None:
    call_id = world.place(expires_at=world.clock() + REDIAL_AFTER)
    world.claim(world.take_over("crashed"))

    lease, recovered = world.recover("next")

    assert recovered == Recovered(redialled=1, unknown=0)
    assert world.call(call_id).status is CallStatus.EXPIRED
    world.clock.advance(1000)
    assert world.claim(lease) == []


def test_whoever_may_have_heard_us_is_never_called_again(world: World) -> None:
    world.set_balance(Decimal(100))
    call_id = world.place(retry_count=10)
    crashed = world.take_over("crashed")
    (claimed,) = world.claim(crashed)
    answered_at = world.clock.advance(5)
    world.heard(crashed, claimed)
    world.clock.advance(5)

    lease, recovered = world.recover("next")

    assert recovered == Recovered(redialled=0, unknown=1)
    call = world.call(call_id)
    assert call.status is CallStatus.UNKNOWN
    assert (call.executed_at, call.bill_seconds) == (claimed.started_at, 0)
    assert call.price == 0
    assert world.balance() == 100
    assert world.count(ledger_entry) == 1  # the top-up
    (row,) = world.attempts(call_id)
    assert (row.outcome, row.answered_at) == (Outcome.CUT_OFF, answered_at)
    world.clock.advance(REDIAL_AFTER)
    assert world.claim(lease) == []
    assert world.recover("third")[1] == Recovered()


def test_other_dialers_are_left_alone(world: World) -> None:
    world.place()
    lease = world.take_over()
    (claimed,) = world.claim(lease)

    world.do(lambda conn: leases.take_over(conn, "other", "w", world.clock(), REDIAL_AFTER))

    assert world.heard(lease, claimed) == {claimed.attempt_id}


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_take_over_waits_for_the_commit_of_a_claim_that_is_under_way(
    world: World, database_url: str
) -> None:
    # Otherwise the claim would appear after the take-over had looked for what to recover.
    world.place()
    old = world.take_over("old")
    checked, taken = threading.Event(), threading.Event()

    def take_over() -> None:
        with Database.open(database_url) as other:
            checked.wait(5)
            other.write_now(
                lambda conn: leases.take_over(conn, "main", "new", world.clock(), REDIAL_AFTER)
            )
            taken.set()

    def slow(conn: object) -> bool:
        assert leases.holds(conn, old)  # type: ignore[arg-type]
        checked.set()
        return taken.wait(0.2)

    thread = threading.Thread(target=take_over)
    thread.start()
    assert world.do(slow) is False
    thread.join(5)
    assert taken.is_set()
