"""Who runs a dialer, and what a take-over does with what the last one left behind."""

from __future__ import annotations

import threading
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import insert, update

from bitel.domain.attempts import AttemptResult, Outcome
from bitel.domain.calls import CallStatus
from bitel.domain.retry import Finish, RetryAt, decide
from bitel.store import claims, leases, recovery
from bitel.store.claims import Claim
from bitel.store.database import Database
from bitel.store.leases import Holder, Lease, Slot, Worker, WorkerState
from bitel.store.recovery import Recovered
from bitel.store.schema import FINISHED, dialer, ledger_entry
from bitel.store.settling import Settlement

if TYPE_CHECKING:
    from tests.support.store_world import World

REDIAL_AFTER = 77.0
LAST_INVITE = 55.0
HERE, THERE = "a" * 32, "b" * 32


def test_each_take_over_has_a_higher_epoch(world: World) -> None:
    first, second = world.take_over("a"), world.take_over("b")

    assert (first.dialer_id, first.worker, first.epoch) == ("main", "a", 1)
    assert (second.worker, second.epoch) == ("b", 2)


def test_only_the_last_worker_can_renew(world: World) -> None:
    old, new = world.take_over("old"), world.take_over("new")

    assert world.do(lambda conn: leases.renew(conn, old, world.clock())) == [only(world)]
    assert [each.name for each in world.do(lambda conn: leases.renew(conn, new, 5.0))] == ["new"]
    assert only(world).seen_at == 5.0


in_postgresql = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)


def up(world: World) -> dict[str, bool]:
    states = world.do(lambda conn: leases.dialer_states(conn, world.clock(), within=15))
    return {dialer_id: state.up for dialer_id, state in states.items()}


def only(world: World) -> Worker:
    """The only worker of the dialer."""
    (found,) = world.do(lambda conn: leases.workers(conn, "main"))
    return found


def join(world: World, name: str, installation: str, number: int = 1) -> Lease:
    """Take a lease in a slot."""
    slot, now = Slot("main", installation, number), world.clock()
    return world.do(
        lambda conn: recovery.take_over(conn, slot, name, now, REDIAL_AFTER, LAST_INVITE)
    )[0]


@in_postgresql
def test_workers_with_slots_of_their_own_work_at_the_same_time(world: World) -> None:
    ids = {world.place() for _ in range(3)}
    workers = [join(world, "a", HERE), join(world, "b", HERE, 2), join(world, "c", THERE)]
    claimed = {}
    for lease in workers:
        (claimed[lease],) = world.claim(lease, 1)
    assert {one.call_id for one in claimed.values()} == ids
    for lease, one in claimed.items():
        assert world.heard(lease, one) == {one.attempt_id}
        others = [each for each in workers if each != lease]
        assert [world.heard(other, one) for other in others] == [set(), set()]
    again = join(world, "b again", HERE, 2)
    assert [each.epoch for each in world.do(lambda conn: leases.workers(conn, "main"))] == [1, 3, 4]
    assert not world.do(lambda conn: leases.holds(conn, workers[1]))
    assert world.do(lambda conn: leases.holds(conn, again))
    statuses = [world.call(claimed[lease].call_id).status for lease in workers]
    assert statuses == [CallStatus.WAITING, CallStatus.UNKNOWN, CallStatus.WAITING]


@in_postgresql
def test_the_row_of_the_dialer_names_a_worker_while_there_is_one(world: World) -> None:
    def holder() -> Holder:
        return world.do(lambda conn: leases.holder(conn, "main"))

    assert holder() == Holder()
    first, second = join(world, "a", HERE), join(world, "b", THERE)
    assert holder() == Holder(2, "b", THERE, world.clock())
    now = world.clock.advance(5)
    world.do(lambda conn: leases.renew(conn, second, now))
    world.do(lambda conn: leases.renew(conn, first, now))
    assert holder() == Holder(2, "a", HERE, now)
    world.do(lambda conn: leases.release(conn, first))
    assert holder()[:3] == (2, "b", THERE)
    world.do(lambda conn: leases.release(conn, second))
    assert holder()[:3] == (2, "b", None)
    assert not up(world)["main"]


@in_postgresql
def test_a_worker_is_dead_only_as_it_was_seen(world: World) -> None:
    survivor, lease = join(world, "survivor", HERE), join(world, "dead", THERE)
    _, seen = world.do(lambda conn: leases.workers(conn, "main"))
    world.do(lambda conn: leases.renew(conn, lease, world.clock.advance(1)))
    assert not world.do(lambda conn: leases.remove_dead(conn, seen))
    _, seen = world.do(lambda conn: leases.workers(conn, "main"))
    assert world.do(lambda conn: leases.remove_dead(conn, seen))
    assert not world.do(lambda conn: leases.remove_dead(conn, seen)), "another was faster"
    assert not world.do(lambda conn: leases.holds(conn, lease))
    assert world.do(lambda conn: leases.holds(conn, survivor))


@in_postgresql
def test_a_worker_of_the_version_before_holds_the_dialer_alone(world: World) -> None:
    def former() -> Holder | None:
        return world.do(lambda conn: leases.blocking_holder(conn, "main"))

    assert former() is None
    of_before = {"id": "main", "epoch": 7, "worker": "old", "seen_at": 5.0, "installation": THERE}
    world.do(lambda conn: conn.execute(insert(dialer).values(of_before)))
    assert former() == Holder(7, "old", THERE, 5.0)
    world.do(lambda conn: conn.execute(update(dialer).values(installation=None)))
    assert former() is None
    lease = join(world, "new", HERE)
    assert (lease.epoch, former()) == (8, None)
    # One that takes over by force: this worker stops.
    forced = update(dialer).values(epoch=9, worker="old", installation=THERE)
    world.do(lambda conn: conn.execute(forced))
    assert world.do(lambda conn: leases.renew(conn, lease, 6.0)) == []


@in_postgresql
def test_a_fence_stops_the_worker_and_leaves_its_attempts(world: World) -> None:
    call_id = world.place()
    lease, other = world.take_over("old"), join(world, "other", THERE)
    (claimed,) = world.claim(lease)
    now = world.clock()
    world.do(lambda conn: leases.fence(conn, Slot("main"), "new", now))
    assert not world.heard(lease, claimed)
    assert [row.outcome for row in world.attempts(call_id)] == [None]
    assert world.do(lambda conn: leases.holds(conn, other))


def test_a_dialer_without_a_carrier_is_not_up_though_its_worker_lives(world: World) -> None:
    lease = world.take_over()
    now = world.clock.advance(60)
    assert world.do(lambda conn: leases.renew(conn, lease, now, WorkerState(up=False)))
    assert not up(world)["main"]
    assert only(world).seen_at == now


def test_a_dialer_is_up_while_its_worker_renews(world: World) -> None:
    assert up(world) == {}
    lease = world.take_over()
    world.clock.advance(15)
    assert up(world) == {"main": True}
    world.clock.advance(0.5)
    assert up(world) == {"main": False}
    world.do(lambda conn: leases.renew(conn, lease, world.clock()))
    assert up(world) == {"main": True}


def test_an_attempt_nobody_had_answered_is_dialled_again_once_it_can_ring_no_more(
    world: World,
) -> None:
    call_id = world.place(retry_count=1)
    (claimed,) = world.claim(world.take_over("crashed"))
    world.clock.advance(10)

    lease, recovered = world.recover("next")

    assert recovered == Recovered(redialled=1, unknown=0)
    # Its INVITE may have left just before the crash, ten seconds after the claim.
    world.clock.advance(REDIAL_AFTER - 0.01)
    assert world.claim(lease) == []
    world.clock.advance(0.01)
    (again,) = world.claim(lease)
    assert again.call_id == call_id
    assert again.rule.retries_left == 1
    first, second = world.attempts(call_id)
    assert (first.id, first.claim, first.outcome) == (
        claimed.attempt_id,
        FINISHED,
        Outcome.INTERRUPTED,
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


@pytest.mark.parametrize(
    ("crash_after", "former_ended", "redial_after"),
    [
        (30.0, True, 30.0 + REDIAL_AFTER),
        (LAST_INVITE + 20.0, True, LAST_INVITE + REDIAL_AFTER),
        # A worker that may be alive may still send the INVITE.
        (30.0, False, LAST_INVITE + REDIAL_AFTER),
    ],
)
def test_a_redial_counts_from_when_the_invite_may_have_left(
    world: World, crash_after: float, former_ended: bool, redial_after: float
) -> None:
    world.place()
    world.claim(world.take_over("crashed"))
    world.clock.advance(crash_after)
    lease, _ = world.recover("next", has_ended=former_ended)

    world.clock.advance(redial_after - crash_after - 0.01)
    assert world.claim(lease) == []
    world.clock.advance(0.01)
    assert len(world.claim(lease)) == 1


@pytest.mark.parametrize("ahead", [3600.0, -3600.0, 30.0, -30.0])
def test_a_redial_does_not_depend_on_the_difference_between_two_machines_clocks(
    world: World, ahead: float
) -> None:
    world.place(expires_at=world.clock() + 86_400.0)
    world.claim(world.take_over("cut off"))
    world.clock.advance(30.0)
    world.clock.now -= ahead  # from here on it is the other machine's
    lease, _ = world.recover("next", has_ended=False, ahead=ahead)

    world.clock.advance(LAST_INVITE + REDIAL_AFTER - 30.0 - 0.01)
    assert world.claim(lease) == []
    world.clock.advance(0.02)
    assert len(world.claim(lease)) == 1


def test_a_claim_is_not_taken_to_be_later_than_now(world: World) -> None:
    world.place(expires_at=world.clock() + 86_400.0)
    world.claim(world.take_over("cut off"))
    world.clock.now -= 3600.0  # by how much is not known to the worker that takes over
    lease, _ = world.recover("next", has_ended=False)
    world.clock.advance(LAST_INVITE + REDIAL_AFTER)
    assert len(world.claim(lease)) == 1


def ring(world: World, lease: Lease, *claimed: Claim) -> None:
    rang_at = {one.attempt_id: world.clock() for one in claimed}
    world.do(lambda conn: claims.mark_ringing(conn, lease, rang_at))


def test_an_attempt_that_rang_spends_a_retry_in_a_crash(world: World) -> None:
    call_id = world.place(retry_count=1, retry_interval=300)
    crashed = world.take_over("crashed")
    (claimed,) = world.claim(crashed)
    rang_at = world.clock.advance(3)
    ring(world, crashed, claimed)
    world.clock.advance(2)

    lease, recovered = world.recover("next")

    assert recovered == Recovered(redialled=1, unknown=0)
    (row,) = world.attempts(call_id)
    assert (row.outcome, row.rang_at) == (Outcome.INTERRUPTED, rang_at)
    world.clock.advance(300 - 0.01)  # the retry interval, as it is longer than the redial's wait
    assert world.claim(lease) == []
    world.clock.advance(0.01)
    (again,) = world.claim(lease)
    assert again.rule.retries_left == 0
    # The second ring is the last one, however often the worker crashes.
    ring(world, lease, again)
    world.clock.advance(1)
    world.set_balance(Decimal(100))
    assert world.recover("third")[1] == Recovered(redialled=1, unknown=0)
    call = world.call(call_id)
    assert (call.status, call.price) == (CallStatus.NO_ANSWER, Decimal(0))
    assert call.executed_at == again.started_at
    assert world.balance() == 100


def test_an_attempt_that_rang_waits_no_shorter_than_any_other(world: World) -> None:
    world.place(retry_count=1, retry_interval=5)
    crashed = world.take_over("crashed")
    ring(world, crashed, *world.claim(crashed))
    lease, _ = world.recover("next")

    world.clock.advance(REDIAL_AFTER - 0.01)
    assert world.claim(lease) == []
    world.clock.advance(0.01)
    assert len(world.claim(lease)) == 1


def test_a_retry_after_a_crash_that_would_come_too_late_is_not_waited_for(world: World) -> None:
    call_id = world.place(retry_count=1, expires_at=world.clock() + REDIAL_AFTER)
    crashed = world.take_over("crashed")
    ring(world, crashed, *world.claim(crashed))

    world.recover("next")

    assert world.call(call_id).status is CallStatus.NO_ANSWER


def test_ringing_is_written_by_the_holder_and_only_of_what_still_rings(world: World) -> None:
    call_id, other_id = world.place(), world.place()
    lease = world.take_over("old")
    claimed = {one.call_id: one for one in world.claim(lease)}
    world.heard(lease, claimed[other_id])
    ring(world, lease, *claimed.values())
    (row,), (answered,) = world.attempts(call_id), world.attempts(other_id)
    assert (row.rang_at, answered.rang_at) == (world.clock(), None)

    third_id = world.place()
    (third,) = world.claim(lease)
    now = world.clock()
    world.do(lambda conn: leases.fence(conn, Slot("main"), "new", now))
    ring(world, lease, third)
    assert [each.rang_at for each in world.attempts(third_id)] == [None]


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
    assert (row.outcome, row.answered_at) == (Outcome.INTERRUPTED, answered_at)
    world.clock.advance(REDIAL_AFTER)
    assert world.claim(lease) == []
    assert world.recover("third")[1] == Recovered()


def test_other_dialers_are_left_alone(world: World) -> None:
    world.place()
    lease = world.take_over()
    (claimed,) = world.claim(lease)

    world.do(lambda conn: recovery.take_over(conn, Slot("other"), "w", world.clock(), REDIAL_AFTER))

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
                lambda conn: recovery.take_over(
                    conn, Slot("main"), "new", world.clock(), REDIAL_AFTER
                )
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


def test_a_crash_gives_no_call_another_redial_after_an_uncertain_failure(world: World) -> None:
    world.place(retry_count=1, retry_interval=60)
    lease = world.take_over()
    (first,) = world.claim(lease)
    now = world.clock()
    failed = AttemptResult(Outcome.UNCERTAIN, now, now)
    decision = decide(first.rule, failed)
    assert isinstance(decision, RetryAt)
    assert not decision.spends_retry
    world.settle(lease, Settlement(first.attempt_id, first.call_id, failed, decision))
    world.clock.advance(60)
    (second,) = world.claim(lease)
    ring(world, lease, second)
    lease = world.take_over("next")
    world.clock.advance(REDIAL_AFTER)
    (third,) = world.claim(lease)
    assert (third.rule.retries_left, third.rule.uncertain) == (0, 1)
    now = world.clock()
    assert isinstance(decide(third.rule, AttemptResult(Outcome.UNCERTAIN, now, now)), Finish)
