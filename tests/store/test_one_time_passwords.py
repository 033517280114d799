"""A newer one-time password for a number supersedes older ones that still wait."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from bitel.domain.attempts import AttemptResult, Outcome
from bitel.domain.calls import CallStatus, Lane
from bitel.domain.retry import Requeue, RetryAt
from bitel.store import do_not_call
from bitel.store.one_time_passwords import REASON
from bitel.store.settling import Settlement

if TYPE_CHECKING:
    from tests.support.store_world import World

NUMBER = "+989121234567"


def password(world: World, **more: object) -> str:
    world.clock.advance(0.01)  # ids are ordered by the millisecond
    return world.place(**{"lane": Lane.OTP, "e164": NUMBER, "digits": "123", **more})


def test_an_older_one_that_waits_is_canceled_at_once(world: World) -> None:
    world.set_balance(Decimal(10))
    old = password(world, reserve=Decimal(4))
    new = password(world, reserve=Decimal(4))
    call = world.call(old)
    assert (call.status, call.reason, call.price) == (CallStatus.CANCELED, REASON, Decimal(0))
    assert world.call(new).status is CallStatus.WAITING
    assert world.project().reserved == 4
    assert [one.call_id for one in world.claim(world.take_over())] == [new]


def test_others_are_left_alone(world: World) -> None:
    single = world.place(e164=NUMBER)
    another_number = password(world, e164="+989120000000")
    other = world.another("other")
    another_project = password(other)
    password(world)
    for each, owner in ((single, world), (another_number, world), (another_project, other)):
        assert owner.call(each).status is CallStatus.WAITING


@pytest.mark.parametrize("how", ["retry", "hand back"])
def test_one_that_is_being_dialled_is_not_dialled_again(world: World, how: str) -> None:
    old = password(world)
    lease = world.take_over()
    (claimed,) = world.claim(lease)
    new = password(world)
    assert world.call(old).status is CallStatus.WAITING
    due = world.clock() + 60
    busy = AttemptResult(Outcome.BUSY, claimed.started_at, world.clock())
    decision = RetryAt(due, spends_retry=True, trouble=0) if how == "retry" else Requeue(due)
    world.settle(lease, Settlement(claimed.attempt_id, old, busy, decision))
    call = world.call(old)
    assert (call.status, call.reason) == (CallStatus.CANCELED, REASON)
    world.clock.advance(1)
    assert [one.call_id for one in world.claim(lease)] == [new]


def test_one_that_a_crash_interrupted_is_not_dialled_again(world: World) -> None:
    world.change(one_call_per_number=False)
    old = password(world)
    lease = world.take_over()
    (_,) = world.claim(lease)
    new = password(world)
    lease = world.take_over()
    assert [one.call_id for one in world.claim(lease)] == [new]
    world.clock.advance(200)
    assert world.claim(lease) == []
    assert world.call(old).status is CallStatus.CANCELED


def test_one_that_is_on_the_do_not_call_list_supersedes_nothing(world: World) -> None:
    old = password(world)
    world.do(lambda conn: do_not_call.add(conn, world.project_id, NUMBER))
    refused = password(world)
    assert world.call(refused).status is CallStatus.ERROR
    assert world.call(old).status is CallStatus.WAITING
