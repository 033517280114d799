"""Calling off calls and campaigns."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Connection, text

from bitel.domain.attempts import AttemptResult, Outcome
from bitel.domain.calls import CallStatus
from bitel.domain.ids import new_id, new_ids
from bitel.domain.retry import Finish, Requeue, RetryAt, RetryDecision
from bitel.errors import NotFoundError
from bitel.store import calls, campaigns, claims, settling
from bitel.store.campaigns import Campaign
from bitel.store.database import Database
from bitel.store.schema import cancel_request
from bitel.store.settling import Settlement
from tests.support import call_rows
from tests.support.waiting import wait_until

if TYPE_CHECKING:
    from bitel.store.claims import Claim
    from tests.support.store_world import World

CANCELED, WAITING = CallStatus.CANCELED, CallStatus.WAITING


def over(claimed: Claim, decision: RetryDecision, answered: bool = False) -> Settlement:
    at = claimed.started_at
    outcome = Outcome.ANSWERED if answered else Outcome.BUSY
    done = AttemptResult(outcome, at, at + 5, at + 1 if answered else None)
    return Settlement(claimed.attempt_id, claimed.call_id, done, decision)


def requests(world: World, dialer_id: str = "main") -> list[str]:
    return world.do(lambda conn: claims.cancel_requests(conn, dialer_id))


def test_a_waiting_call_is_canceled_at_once(world: World) -> None:
    call_id = world.place()
    world.clock.advance(3)

    call = world.cancel(call_id)

    assert (call.status, call.finished_at, call.executed_at) == (CANCELED, world.clock(), 0)
    assert world.claim(world.take_over()) == []
    world.clock.advance(3)
    assert world.cancel(call_id) == call


def test_a_call_between_two_attempts_is_canceled_at_once(world: World) -> None:
    call_id = world.place()
    lease = world.take_over()
    (claimed,) = world.claim(lease)
    world.settle(lease, over(claimed, RetryAt(world.clock() + 60, spends_retry=True, trouble=0)))

    assert world.cancel(call_id).status is CANCELED
    world.clock.advance(60)
    assert world.claim(lease) == []


def test_the_dialer_is_asked_to_end_an_attempt(world: World) -> None:
    call_id = world.place()
    lease = world.take_over()
    (claimed,) = world.claim(lease)

    assert world.cancel(call_id).status is WAITING
    assert world.cancel(call_id).status is WAITING

    assert requests(world) == [claimed.attempt_id]
    assert requests(world, "other") == []
    world.settle(lease, over(claimed, Finish(CANCELED)))
    assert world.call(call_id).status is CANCELED
    assert requests(world) == []
    assert world.count(cancel_request) == 0


@pytest.mark.parametrize("decision", [RetryAt(1.0, spends_retry=True, trouble=0), Requeue(1.0)])
def test_what_was_called_off_meanwhile_is_never_due_again(
    world: World, decision: RetryAt | Requeue
) -> None:
    call_id = world.place(retry_count=5)
    lease = world.take_over()
    (claimed,) = world.claim(lease)
    world.cancel(call_id)

    world.settle(lease, over(claimed, decision))

    call = world.call(call_id)
    assert (call.status, call.executed_at) == (CANCELED, claimed.started_at)
    world.clock.advance(1000)
    assert world.claim(lease) == []


def test_what_was_answered_in_spite_of_it_counts(world: World) -> None:
    call_id = world.place()
    lease = world.take_over()
    (claimed,) = world.claim(lease)
    world.cancel(call_id)
    world.heard(lease, claimed)

    assert requests(world) == [claimed.attempt_id]
    world.settle(lease, over(claimed, Finish(CallStatus.NORMAL), answered=True))
    assert world.call(call_id).status is CallStatus.NORMAL


def test_the_dialer_is_asked_to_end_a_call_that_plays_too(world: World) -> None:
    call_id = world.place()
    lease = world.take_over()
    (claimed,) = world.claim(lease)
    world.heard(lease, claimed)

    assert world.cancel(call_id).status is WAITING

    assert requests(world) == [claimed.attempt_id]
    world.settle(lease, over(claimed, RetryAt(1.0, spends_retry=True, trouble=0)))
    assert world.call(call_id).status is CallStatus.UNKNOWN
    assert world.count(cancel_request) == 0


def test_a_crash_does_not_bring_a_canceled_call_back(world: World) -> None:
    ringing, heard = world.place(), world.place()
    crashed = world.take_over("crashed")
    claimed = {one.call_id: one for one in world.claim(crashed)}
    for call_id in (ringing, heard):
        world.cancel(call_id)
    world.heard(crashed, claimed[heard])

    lease = world.take_over("next")

    assert world.call(ringing).status is CANCELED
    assert world.call(heard).status is CallStatus.UNKNOWN
    assert world.count(cancel_request) == 0
    world.clock.advance(1000)
    assert world.claim(lease) == []


def test_nobody_cancels_what_is_not_theirs(world: World) -> None:
    other = world.another("other")
    call_id = world.place()

    for theirs in (call_id, "unknown"):
        with pytest.raises(NotFoundError, match="no call"):
            other.cancel(theirs)
    with pytest.raises(NotFoundError, match="no campaign"):
        world.do(lambda conn: campaigns.mark_canceled(conn, world.project_id, "unknown", 1.0))
    assert world.call(call_id).status is WAITING


def a_campaign(world: World, count: int) -> tuple[str, list[str]]:
    now = world.clock()
    new = Campaign(new_id(now), world.project_id, "main", world.recording_id, now, count)
    ids = new_ids(now, count)
    of_it = [world.new_call(id=one, campaign_id=new.id) for one in ids]
    world.do(lambda conn: campaigns.add(conn, new))
    world.do(lambda conn: call_rows.place(conn, of_it))
    return new.id, ids


def test_a_campaign_is_canceled_in_pieces(world: World) -> None:
    campaign_id, ids = a_campaign(world, 7)
    others = world.place(requested_at=world.clock() + 1)
    lease = world.take_over()
    claimed = world.claim(lease, 4)
    assert [one.call_id for one in claimed] == ids[:4]
    ended, ringing, heard, again = claimed
    world.settle(lease, over(ended, Finish(CallStatus.USER_BUSY)))
    world.heard(lease, heard)
    world.settle(lease, over(again, RetryAt(world.clock() + 60, spends_retry=True, trouble=0)))
    now = world.clock.advance(5)

    world.do(lambda conn: campaigns.mark_canceled(conn, world.project_id, campaign_id, now + 1))

    def cancel() -> bool:
        later = world.clock.advance(1)
        return world.do(lambda conn: campaigns.cancel_calls(conn, campaign_id, later, most=3))

    assert [cancel(), cancel(), cancel()] == [False, True, True]

    state = world.do(lambda conn: campaigns.find(conn, world.project_id, campaign_id))
    assert state is not None
    assert state.canceled_at == now + 1
    assert state.by_status == {CANCELED: 4, CallStatus.USER_BUSY: 1, WAITING: 2}
    assert set(requests(world)) == {ringing.attempt_id, heard.attempt_id}
    assert world.call(others).status is WAITING


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("whole", [True, False])
def test_a_cancel_that_meets_a_settlement_is_not_lost(
    world: World, database_url: str, whole: bool
) -> None:
    # The settlement has looked for requests, and found none, when the cancel comes.
    campaign_id, (call_id,) = a_campaign(world, 1)
    lease = world.take_over()
    (claimed,) = world.claim(lease)
    looked, canceled = threading.Event(), threading.Event()

    def cancel() -> None:
        with Database.open(database_url) as other:
            looked.wait(5)
            now = world.clock()
            if whole:
                other.write_now(lambda conn: campaigns.cancel_calls(conn, campaign_id, now))
            else:
                other.write_now(lambda conn: calls.cancel(conn, world.project_id, call_id, now))
            canceled.set()

    def settle(conn: object) -> None:
        again = over(claimed, RetryAt(world.clock() + 60, spends_retry=True, trouble=0))
        settling.settle(conn, lease, [again], world.clock())  # type: ignore[arg-type]
        looked.set()
        assert not canceled.wait(0.2)

    thread = threading.Thread(target=cancel)
    thread.start()
    world.do(settle)
    thread.join(5)

    assert world.call(call_id).status is CANCELED


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("way", ["settle", "undo"])
def test_a_call_is_not_dialled_again_after_a_cancel_that_its_end_waited_for(
    world: World, database_url: str, way: str
) -> None:
    call_id = world.place()
    lease = world.take_over()
    (claimed,) = world.claim(lease)
    locked, commit = threading.Event(), threading.Event()

    def cancel(conn: Connection) -> None:
        calls.cancel(conn, world.project_id, call_id, world.clock())
        locked.set()
        commit.wait(20)

    def end() -> None:
        if way == "undo":
            world.do(lambda conn: claims.undo(conn, lease, [claimed.started_at], []))
        else:
            world.settle(lease, over(claimed, RetryAt(world.clock() + 60, True, 0)))

    waits = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    with Database.open(database_url) as other, Database.open(database_url) as third:
        canceling = threading.Thread(target=lambda: other.write_now(cancel))
        canceling.start()
        assert locked.wait(20)
        ending = threading.Thread(target=end)
        ending.start()
        wait_until(lambda: third.read_now(lambda conn: conn.execute(waits).scalar_one()))
        commit.set()
        canceling.join()
        ending.join()

    world.clock.advance(61)
    assert world.claim(lease) == []
    assert world.call(call_id).status is CANCELED
