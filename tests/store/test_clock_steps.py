"""What is due, leased, limited or kept for a time, where the system clock is set meanwhile."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bitel.domain.attempts import AttemptResult, Outcome
from bitel.domain.calls import CallStatus
from bitel.domain.retry import RetryAt, decide
from bitel.steady_clock import SLEW
from bitel.store import claims, idempotency, leases, number_exclusion, webhooks
from bitel.store.database import Database
from bitel.store.idempotency import LIFETIME
from bitel.store.settling import Settlement
from bitel.store.webhooks import DeliveryAttempt
from tests.support.clocks import STEPS, Machine

if TYPE_CHECKING:
    from tests.support.store_world import World

EARLY, LATE = 1 - 2 * SLEW, 1 + 2 * SLEW
"""Shares of an interval at which it can't be over, and must be."""


@dataclass
class Stepped:
    """A machine whose system clock is set once, and a store that its service uses."""

    machine: Machine
    world: World
    step: float

    def waits(self, seconds: float) -> None:
        """Let that time pass, and set the system clock in the middle of it."""
        self.machine.passes(seconds / 2)
        self.machine.system_time += self.step
        self.step = 0.0
        self.machine.passes(seconds / 2)


@pytest.fixture(params=STEPS, ids=lambda step: f"{step:+g}")
def stepped(
    request: pytest.FixtureRequest,
    database: Database,
    make_world: Callable[..., World],
    tmp_path: Path,
) -> Stepped:
    (tmp_path / "data").mkdir()
    machine = Machine(tmp_path / "data")
    return Stepped(machine, make_world(database, machine.open()), request.param)


def test_a_time_to_live(stepped: Stepped) -> None:
    world = stepped.world
    call_id = world.place(expires_at=world.clock() + 300.0)
    stepped.waits(300.0 * EARLY)
    assert world.do(lambda conn: claims.expire(conn, "main", world.clock())) == 0
    stepped.machine.passes(300.0 * (LATE - EARLY))
    assert world.do(lambda conn: claims.expire(conn, "main", world.clock())) == 1
    assert world.call(call_id).status is CallStatus.EXPIRED


def test_a_retry_interval(stepped: Stepped) -> None:
    world = stepped.world
    world.place(retry_interval=20)
    lease = world.take_over()
    (claimed,) = world.claim(lease)
    busy = AttemptResult(Outcome.BUSY, world.clock(), world.clock())
    decision = decide(claimed.rule, busy)
    assert isinstance(decision, RetryAt)
    world.settle(lease, Settlement(claimed.attempt_id, claimed.call_id, busy, decision))
    stepped.waits(20.0 * EARLY)
    assert world.claim(lease) == []
    stepped.machine.passes(20.0 * (LATE - EARLY))
    assert len(world.claim(lease)) == 1


def test_a_heartbeat(stepped: Stepped) -> None:
    world = stepped.world
    lease = world.take_over()
    world.do(lambda conn: leases.renew(conn, lease, world.clock()))

    def up() -> bool:
        states = world.do(lambda conn: leases.dialer_states(conn, world.clock(), 15.0))
        return states["main"].up

    stepped.waits(15.0 * EARLY)
    assert up()
    stepped.machine.passes(15.0 * (LATE - EARLY))
    assert not up()


def test_what_a_crash_left_ringing(stepped: Stepped) -> None:
    world = stepped.world
    number = {"e164": "+989121234567"}
    world.place(**number)
    world.claim(world.take_over("crashed"))
    lease, _ = world.recover("next")
    second = world.place(**number)
    stepped.waits(77.0 * EARLY)
    assert world.claim(lease) == []
    stepped.machine.passes(77.0 * (LATE - EARLY))
    assert len(world.claim(lease)) == 1
    assert world.call(second).status is CallStatus.WAITING
    world.do(lambda conn: number_exclusion.forget_may_ring(conn, world.clock(), 10))


def test_an_idempotency_key(stepped: Stepped) -> None:
    world = stepped.world

    def ask() -> bytes | None:
        now = world.clock()

        def work(conn: Any) -> bytes | None:
            idempotency.forget_old(conn, now)
            first = idempotency.first_answer(conn, world.project_id, "k", "f" * 64, now)
            if first is None:
                idempotency.keep(conn, world.project_id, "k", b"first")
            return first

        return world.do(work)

    assert ask() is None
    stepped.waits(LIFETIME * EARLY)
    assert ask() == b"first"
    stepped.machine.passes(LIFETIME * (LATE - EARLY))
    assert ask() is None


def test_an_event_on_lease_and_its_next_try(stepped: Stepped) -> None:
    world = stepped.world
    world.change(webhook_url="https://example.net/hook", webhook_secret="whsec_x")
    world.place(expires_at=world.clock())
    assert world.do(lambda conn: claims.expire(conn, "main", world.clock())) == 1

    def claim() -> list[webhooks.Delivery]:
        return world.do(lambda conn: webhooks.claim_due(conn, world.clock(), 9, 9, lease=60.0))

    (event,) = claim()
    stepped.waits(60.0 * EARLY)
    assert claim() == []
    stepped.machine.passes(60.0 * (LATE - EARLY))
    (event,) = claim()
    now = world.clock()
    tried = DeliveryAttempt(event.event_id, now, 0.5, False, 500, "", now + 300.0, event.tries)
    world.do(lambda conn: webhooks.record(conn, [tried]))
    stepped.waits(300.0 * EARLY)
    assert claim() == []
    stepped.machine.passes(300.0 * (LATE - EARLY))
    assert len(claim()) == 1


def test_a_calling_window_follows_the_system_clock(stepped: Stepped) -> None:
    world, machine = stepped.world, stepped.machine
    clock = machine.open()
    shown = datetime.datetime.fromtimestamp(machine.system_time + stepped.step, datetime.UTC)
    opens = shown - datetime.timedelta(seconds=15)
    closes = shown + datetime.timedelta(minutes=2)
    world.change(window=f"{opens:%H:%M}-{closes:%H:%M} UTC")
    world.place()
    lease = world.take_over()
    is_open = abs(stepped.step) < 60.0
    assert bool(world.claim(lease, ahead=clock.gap)) is is_open
    if is_open:
        return
    world.place()
    machine.system_time += stepped.step
    world.clock()
    assert world.claim(lease, ahead=clock.gap)
