"""The dispatcher over a real store, with a dialer that follows a script instead of SIP."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import pytest
from structlog.testing import capture_logs

from bitel.dialing.dialer import OnAnswered
from bitel.dialing.dispatcher import (
    AT_ONCE,
    REDIAL_MARGIN,
    RING_MARGIN,
    STALE_CLAIM,
    Dispatcher,
)
from bitel.dialing.limit_shares import Limits
from bitel.domain.attempts import AttemptResult, DialRequest, Outcome
from bitel.domain.calls import CallStatus, Lane
from bitel.domain.pricing import Rate, Tariff
from bitel.store import calls, claims, leases, pausing, projects, recovery
from bitel.store.claims import Claim
from bitel.store.database import Database
from bitel.store.leases import LostLease, Slot
from bitel.store.pausing import Pause
from tests.dialing.scripted import RING_TIMEOUT, TARIFF, Play, ScriptedDialer, at_work
from tests.support.clocks import FakeClock
from tests.support.waiting import until


@pytest.fixture
async def play(database: Database) -> Play:
    made = Play(database, FakeClock())
    await made.set_up()
    return made


async def test_an_answered_call_is_normal_and_billed_once(play: Play) -> None:
    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED], talk=9.5)
    [call_id] = await play.place()
    async with at_work(play.dispatcher(dialer)):
        await play.until_over([call_id])
    call = await play.call(call_id)
    assert (call.status, call.bill_seconds, call.price) == (CallStatus.NORMAL, 10, Decimal(10))
    assert call.executed_at == play.clock()
    assert [order.e164 for order in dialer.orders] == ["+989120000000"]


async def test_busy_is_tried_again_after_its_interval_and_not_before(play: Play) -> None:
    dialer = ScriptedDialer(play.clock, [Outcome.BUSY, Outcome.ANSWERED])
    dispatcher = play.dispatcher(dialer)
    [call_id] = await play.place(interval=60)
    async with at_work(dispatcher):
        await until(lambda: not dispatcher.running and dialer.orders)
        play.clock.now += 59.0
        await play.looked(dispatcher)
        assert len(dialer.orders) == 1
        play.clock.now += 1.5
        dispatcher.wake()
        await play.until_over([call_id])
    assert len(dialer.orders) == 2
    assert (await play.call(call_id)).status is CallStatus.NORMAL


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (Outcome.BUSY, CallStatus.USER_BUSY),
        (Outcome.NO_ANSWER, CallStatus.NO_ANSWER),
        (Outcome.BAD_NUMBER, CallStatus.ERROR),
        (Outcome.REFUSED, CallStatus.ERROR),
        (Outcome.MEDIA_MISMATCH, CallStatus.ERROR),
        (Outcome.INTERRUPTED, CallStatus.UNKNOWN),
    ],
)
async def test_the_end_of_a_call_without_retries(
    play: Play, outcome: Outcome, status: CallStatus
) -> None:
    [call_id] = await play.place(retries=0)
    async with at_work(play.dispatcher(ScriptedDialer(play.clock, [outcome]))):
        await play.until_over([call_id])
    call = await play.call(call_id)
    assert (call.status, call.bill_seconds, call.price) == (status, 0, Decimal(0))


async def test_never_more_channels_than_allowed(play: Play) -> None:
    hold = asyncio.Event()
    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED], hold=hold)
    dispatcher = play.dispatcher(dialer, channels=3)
    ids = await play.place(10)
    async with at_work(dispatcher):
        await play.dialled(dialer, 3)
        await play.looked(dispatcher)
        assert len(dialer.orders) == 3
        hold.set()
        await play.until_over(ids)
    assert dialer.busiest == 3
    assert len(dialer.orders) == 10


async def test_of_many_calls_a_few_are_begun_in_one_turn(play: Play) -> None:
    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED], hold=asyncio.Event())
    await play.place(4 * AT_ONCE)
    most = 0
    async with at_work(play.dispatcher(dialer)), asyncio.timeout(10.0):
        while len(dialer.orders) < 4 * AT_ONCE:
            before = len(dialer.orders)
            await asyncio.sleep(0)
            most = max(most, len(dialer.orders) - before)
        assert dialer.hold is not None
        dialer.hold.set()
    assert most == AT_ONCE


async def test_no_faster_than_allowed(play: Play) -> None:
    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED])
    dispatcher = play.dispatcher(dialer, pace=10.0)
    await play.place(5)
    async with at_work(dispatcher):
        await play.dialled(dialer)
        await play.looked(dispatcher)
        assert len(dialer.orders) == 1
        play.clock.now += 0.11
        dispatcher.wake()
        await play.dialled(dialer, 2)
        await play.looked(dispatcher)
        assert len(dialer.orders) == 2


async def test_time_to_live_ends_what_could_not_be_placed(play: Play) -> None:
    dialer = ScriptedDialer(play.clock, [Outcome.TRUNK_TROUBLE])
    dispatcher = play.dispatcher(dialer)
    [call_id] = await play.place(time_to_live=12, retries=0)
    async with at_work(dispatcher):
        for _ in range(6):
            await play.looked(dispatcher)
            play.clock.now += 3.0
            dispatcher.wake()
        await play.until_over([call_id])
    assert (await play.call(call_id)).status is CallStatus.EXPIRED
    # At once, 5 s later, and then not: 10 s more would be after the 12 s that the call may live.
    assert len(dialer.orders) == 2


async def test_a_fault_of_the_dialer_ends_no_other_call(play: Play) -> None:
    class Faulty(ScriptedDialer):
        async def _dial(self, order: DialRequest, heard: OnAnswered) -> AttemptResult:
            if order.e164.endswith("0"):
                raise RuntimeError("a fault of ours")
            return await super()._dial(order, heard)

    ids = await play.place(2, time_to_live=1)
    async with at_work(play.dispatcher(Faulty(play.clock, [Outcome.ANSWERED]))):
        await play.until_over(ids)
    ended = [(await play.call(call_id)).status for call_id in ids]
    assert ended == [CallStatus.NO_ANSWER, CallStatus.NORMAL]


async def test_a_fault_that_always_comes_back_does_not_ring_a_phone_for_ever(play: Play) -> None:
    dialled: list[str] = []

    class Faulty(ScriptedDialer):
        async def _dial(self, order: DialRequest, heard: OnAnswered) -> AttemptResult:
            dialled.append(order.call_id)
            raise RuntimeError("a fault after the INVITE has left")

    [call_id] = await play.place(retries=2, interval=60)
    dispatcher = play.dispatcher(Faulty(play.clock, [Outcome.ANSWERED]))
    async with at_work(dispatcher), asyncio.timeout(10.0):
        while (await play.call(call_id)).status is CallStatus.WAITING:
            play.clock.now += 60.0
            dispatcher.wake()
            await asyncio.sleep(0.01)
    assert (await play.call(call_id)).status is CallStatus.NO_ANSWER
    assert len(dialled) == 4, "the first, two retries and one uncertain redial"


async def test_uncertain_failures_are_redialled_as_often_as_the_dialer_says(play: Play) -> None:
    dialer = ScriptedDialer(play.clock, [Outcome.UNCERTAIN])
    dispatcher = play.dispatcher(dialer, uncertain_redials=3)
    [call_id] = await play.place(retries=0, interval=60)
    async with at_work(dispatcher), asyncio.timeout(10.0):
        while (await play.call(call_id)).status is CallStatus.WAITING:
            play.clock.now += 60.0
            dispatcher.wake()
            await asyncio.sleep(0.01)
    assert len(dialer.orders) == 4


async def test_a_trunk_that_is_tried_out_gets_one_call(play: Play) -> None:
    hold = asyncio.Event()
    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED], hold=hold, probing=True)
    ids = await play.place(5)
    async with at_work(play.dispatcher(dialer)):
        await until(lambda: dialer.orders)
        assert len(dialer.orders) == 1
        dialer.probing = False
        hold.set()
        await play.until_over(ids)


async def test_what_is_known_of_a_trunk_outlives_the_worker(play: Play) -> None:
    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED])
    dialer.paused_reason, dialer.has_worked = "the trunk refuses every call", True
    dispatcher = play.dispatcher(dialer)
    async with at_work(dispatcher):
        assert await dispatcher.confirm_lease()
        reasons = await play.database.read(leases.paused_reasons)
        assert reasons == {"main": "the trunk refuses every call"}
    restarted = ScriptedDialer(play.clock, [Outcome.ANSWERED])
    async with at_work(play.dispatcher(restarted)) as _:
        assert restarted.has_worked
        assert restarted.paused_reason


async def test_a_number_is_in_one_attempt_at_a_time(play: Play) -> None:
    hold = asyncio.Event()
    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED], hold=hold)
    dispatcher = play.dispatcher(dialer)
    same = await play.place(1, first=7) + await play.place(1, first=7)
    others = await play.place(2, first=8)
    async with at_work(dispatcher):
        await until(lambda: len(dialer.orders) >= 3)
        assert len({order.e164 for order in dialer.orders}) == 3
        hold.set()
        async with asyncio.timeout(10.0):
            while any([not (await play.call(one)).status.final for one in (*same, *others)]):
                play.clock.now += 5.0
                dispatcher.wake()
                await asyncio.sleep(0.01)
    assert len(dialer.orders) == 4


@pytest.mark.parametrize("raises", [True, False])
async def test_an_attempt_that_our_own_fault_cut_off_is_not_billed(
    play: Play, raises: bool
) -> None:
    class Faulty(ScriptedDialer):
        async def _dial(self, order: DialRequest, heard: OnAnswered) -> AttemptResult:
            answered_at = self.clock()
            assert await heard(answered_at)
            if raises:
                raise RuntimeError("a fault of ours")
            return AttemptResult(Outcome.INTERRUPTED, answered_at, answered_at + 30.0, answered_at)

    await play.database.write(
        lambda conn: projects.set_balance(conn, play.project_id, Decimal(100), play.clock())
    )
    [call_id] = await play.place(retries=3)
    async with at_work(play.dispatcher(Faulty(play.clock, [Outcome.ANSWERED]))):
        await play.until_over([call_id])
    call = await play.call(call_id)
    assert (call.status, call.bill_seconds, call.price) == (CallStatus.UNKNOWN, 0, Decimal(0))
    project = await play.database.read(lambda conn: projects.by_id(conn, play.project_id))
    assert project is not None
    assert (project.balance, project.reserved) == (Decimal(100), Decimal(0))


async def test_drain_lets_calls_finish_and_dials_no_more(play: Play) -> None:
    hold = asyncio.Event()
    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED], hold=hold)
    dispatcher = play.dispatcher(dialer, channels=1)
    ids = await play.place(2)
    await dispatcher.take_over()
    task = asyncio.create_task(dispatcher.run())
    await play.dialled(dialer)
    drain = asyncio.create_task(dispatcher.drain(30.0))
    ended, _ = await asyncio.wait({drain}, timeout=0.05)
    assert not ended
    hold.set()
    await drain
    await task
    [dialled] = [order.call_id for order in dialer.orders]
    [waiting] = set(ids) - {dialled}
    assert (await play.call(dialled)).status is CallStatus.NORMAL
    assert (await play.call(waiting)).status is CallStatus.WAITING


async def test_what_was_being_claimed_when_the_drain_began_goes_back_undialled(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED])
    dispatcher = play.dispatcher(dialer)
    claiming, go_on = threading.Event(), threading.Event()
    claim = claims.claim

    def slow_claim(*given: Any, **named: Any) -> list[Claim]:
        claiming.set()
        assert go_on.wait(10.0)
        return claim(*given, **named)

    monkeypatch.setattr(claims, "claim", slow_claim)
    [call_id] = await play.place(retries=0)
    await dispatcher.take_over()
    task = asyncio.create_task(dispatcher.run())
    await asyncio.to_thread(claiming.wait, 10.0)
    drain = asyncio.create_task(dispatcher.drain(30.0))
    ended, _ = await asyncio.wait({drain}, timeout=0.05)
    assert not ended
    go_on.set()
    await drain
    assert dispatcher.running == 0
    await task
    assert dialer.orders == []
    assert (await play.call(call_id)).status is CallStatus.WAITING
    # No phone can have rung, so the next start does not wait for the retry interval.
    async with at_work(play.dispatcher(ScriptedDialer(play.clock, [Outcome.ANSWERED]))):
        await play.until_over([call_id])


async def test_a_service_restarted_again_and_again_does_not_ring_a_phone_each_time(
    play: Play,
) -> None:
    [call_id] = await play.place(retries=1)
    rung = 0
    while (await play.call(call_id)).status is CallStatus.WAITING:
        dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED], hold=asyncio.Event(), rings=True)
        dispatcher = play.dispatcher(dialer)
        await dispatcher.take_over()
        task = asyncio.create_task(dispatcher.run())
        await play.dialled(dialer)
        rung += 1
        await dispatcher.drain(0.05)
        await task
        play.clock.now += 61.0
    assert rung == 3, "the first, a retry, and one uncertain redial"
    assert (await play.call(call_id)).status is CallStatus.NO_ANSWER


async def test_what_was_dialled_and_has_not_rung_when_the_drain_ends_goes_back_and_spends_nothing(
    play: Play,
) -> None:
    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED], hold=asyncio.Event())
    dispatcher = play.dispatcher(dialer)
    [call_id] = await play.place(retries=0)
    await dispatcher.take_over()
    task = asyncio.create_task(dispatcher.run())
    await play.dialled(dialer)
    await dispatcher.drain(0.05)
    await task
    assert (await play.call(call_id)).status is CallStatus.WAITING
    play.clock.now += 61.0
    again = ScriptedDialer(play.clock, [Outcome.ANSWERED])
    async with at_work(play.dispatcher(again)):
        await play.until_over([call_id])
    assert (await play.call(call_id)).status is CallStatus.NORMAL


async def test_a_claim_that_went_stale_is_not_dialled(play: Play) -> None:
    monotonic = FakeClock()

    class Slow(Dispatcher):
        def _start(self, claim: Claim, claimed_at: float) -> None:
            monotonic.now += STALE_CLAIM + 1
            super()._start(claim, claimed_at)

    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED])
    dispatcher = Slow(
        "main",
        "w",
        dialer,
        Limits(1, 1000.0, RING_TIMEOUT),
        play.database,
        TARIFF,
        play.clock,
        monotonic=monotonic,
    )
    [call_id] = await play.place()
    async with at_work(dispatcher):
        await until(lambda: dispatcher.figures.ended)
    assert dialer.orders == []
    assert (await play.call(call_id)).status is CallStatus.WAITING
    first, *_ = await play.database.read(lambda conn: calls.attempts(conn, call_id))
    assert (first.outcome, first.detail) == (
        Outcome.CANCELED,
        "the claim was stale before it was dialled",
    )


async def test_a_worker_that_was_taken_over_stops_and_writes_nothing(play: Play) -> None:
    hold = asyncio.Event()
    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED], hold=hold)
    dispatcher = play.dispatcher(dialer)
    [call_id] = await play.place()
    await dispatcher.take_over()
    task = asyncio.create_task(dispatcher.run())
    await play.dialled(dialer)
    redial_after = RING_TIMEOUT + REDIAL_MARGIN
    await play.database.write(
        lambda conn: recovery.take_over(conn, Slot("main"), "worker-2", play.clock(), redial_after)
    )
    await play.place()
    dispatcher.wake()
    with pytest.raises(LostLease):
        await task
    assert dialer.abandoned == {order.attempt_id for order in dialer.orders}
    await dispatcher.drain(5.0)
    call = await play.call(call_id)
    assert call.status is CallStatus.WAITING
    attempts = await play.database.read(lambda conn: calls.attempts(conn, call_id))
    assert [attempt.outcome for attempt in attempts] == [Outcome.INTERRUPTED]


async def test_a_step_of_the_wall_clock_makes_no_claim_stale(play: Play) -> None:
    class Stepped(Dispatcher):
        def _start(self, claim: Claim, claimed_at: float) -> None:
            play.clock.now += STALE_CLAIM + 1
            super()._start(claim, claimed_at)

    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED])
    dispatcher = Stepped(
        "main", "w", dialer, Limits(1, 1000.0, RING_TIMEOUT), play.database, TARIFF, play.clock
    )
    [call_id] = await play.place()
    async with at_work(dispatcher):
        await play.until_over([call_id])
    assert (await play.call(call_id)).status is CallStatus.NORMAL


async def test_a_password_goes_before_single_calls_and_those_before_batches(play: Play) -> None:
    batch = await play.place(3, Lane.BATCH)
    single = await play.place(3, Lane.SINGLE)
    passwords = await play.place(3, Lane.OTP)
    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED])
    async with at_work(play.dispatcher(dialer, channels=1)):
        await play.until_over([*batch, *single, *passwords])
    order = [order.call_id for order in dialer.orders]
    assert set(order[:3]) == set(passwords)
    assert set(order[3:6]) == set(single)
    assert [order.digits for order in dialer.orders[:4]] == ["123"] * 3 + [""]


async def test_channels_kept_for_passwords_are_used_by_nobody_else(play: Play) -> None:
    hold = asyncio.Event()
    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED], hold=hold)
    dispatcher = play.dispatcher(dialer, channels=5, otp_channels=2)
    campaign = await play.place(10, Lane.BATCH)
    async with at_work(dispatcher):
        await play.dialled(dialer, 3)
        await play.looked(dispatcher)
        assert len(dialer.orders) == 3
        passwords = await play.place(4, Lane.OTP)
        dispatcher.wake()
        await play.dialled(dialer, 5)
        await play.looked(dispatcher)
        assert len(dialer.orders) == 5
        assert {order.call_id for order in dialer.orders[3:]} < set(passwords)
        hold.set()
        await play.until_over([*campaign, *passwords])


async def test_calls_that_may_not_run_yet_cost_the_database_no_writes(play: Play) -> None:
    """Others are due, and only channels of passwords are free."""
    hold = asyncio.Event()
    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED], hold=hold)
    dispatcher = play.dispatcher(dialer, channels=5, otp_channels=2)
    campaign = await play.place(10, Lane.BATCH)
    async with at_work(dispatcher):
        await play.dialled(dialer, 3)
        await play.looked(dispatcher)
        before = play.database.stats.units
        for _ in range(5):
            await play.looked(dispatcher)
        assert play.database.stats.units == before
        hold.set()
        await play.until_over(campaign)


async def test_what_is_paused_begins_nothing_until_it_is_resumed(play: Play) -> None:
    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED])
    dispatcher = play.dispatcher(dialer)
    pause = Pause("dialer", "main", "carrier at work", play.clock())
    async with at_work(dispatcher):
        first = await play.place(1)
        await play.until_over(first)
        # From before the pause is written: the dispatcher may look at any time.
        with capture_logs() as logs:
            await play.database.write(lambda conn: pausing.add(conn, pause))
            second = await play.place(1)
            await play.looked(dispatcher)
        assert len(dialer.orders) == 1
        [said] = [each for each in logs if each["event"] == "paused"]
        assert said["reason"] == "carrier at work"
        await play.database.write(lambda conn: pausing.remove(conn, "dialer", "main"))
        dispatcher.wake()
        await play.until_over(second)


async def test_a_project_that_is_paused_holds_up_no_other_and_makes_no_load(play: Play) -> None:
    other = await play.database.write(lambda conn: projects.create(conn, "other", play.clock()))
    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED])
    dispatcher = play.dispatcher(dialer)
    pause = Pause("project", play.project_id, "unpaid", play.clock())
    await play.database.write(lambda conn: pausing.add(conn, pause))
    await play.place(5, Lane.BATCH)
    await play.place(2, Lane.BATCH, project_id=other.id)
    async with at_work(dispatcher):
        await play.dialled(dialer, 2)
        assert {order.digits for order in dialer.orders} == {"123"}, "those of the other project"


@pytest.mark.parametrize(
    ("channels", "otp_channels", "most"), [(6, 0, 3), (6, 2, 4), (1, 0, 1), (3, 2, 3)]
)
async def test_passwords_take_half_of_the_other_channels_while_calls_wait(
    play: Play, channels: int, otp_channels: int, most: int
) -> None:
    hold = asyncio.Event()
    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED], hold=hold)
    dispatcher = play.dispatcher(dialer, channels=channels, otp_channels=otp_channels)
    passwords = await play.place(20, Lane.OTP)
    campaign = await play.place(20, Lane.BATCH)
    async with at_work(dispatcher):
        await play.dialled(dialer, channels)
        await play.looked(dispatcher)
        read = [order.call_id for order in dialer.orders[:channels] if order.digits]
        assert len(read) == most
        assert set(read) < set(passwords)
        hold.set()
        await play.until_over([*campaign, *passwords])


async def test_passwords_take_every_channel_where_nothing_else_waits(play: Play) -> None:
    hold = asyncio.Event()
    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED], hold=hold)
    dispatcher = play.dispatcher(dialer, channels=6, otp_channels=2)
    passwords = await play.place(20, Lane.OTP)
    later = await play.place(1, Lane.BATCH)
    async with at_work(dispatcher):
        await play.dialled(dialer, 6)
        await play.looked(dispatcher)
        # One call is all that waits besides, so the rest is for passwords.
        assert sum(bool(order.digits) for order in dialer.orders[:6]) == 5
        hold.set()
        await play.until_over([*later, *passwords])


async def test_a_number_that_the_tariff_no_longer_prices_is_not_dialled(play: Play) -> None:
    [priced] = await play.place(1)
    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED])
    dispatcher = play.dispatcher(dialer)
    dispatcher._tariff = Tariff((Rate("+1", Decimal(1)),))
    async with at_work(dispatcher):
        await play.until_over([priced])
    call = await play.call(priced)
    assert call.status is CallStatus.ERROR
    assert call.price == 0
    assert not dialer.orders
    assert "tariff" in call.reason


async def test_projects_take_turns(play: Play) -> None:
    other = await play.database.write(lambda conn: projects.create(conn, "other", play.clock()))
    campaign = await play.place(30, Lane.BATCH)
    small = await play.place(3, Lane.BATCH, project_id=other.id)
    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED])
    async with at_work(play.dispatcher(dialer, channels=1)):
        await play.until_over(campaign)
    places = [n for n, order in enumerate(dialer.orders) if order.call_id in set(small)]
    assert len(places) == 3
    assert max(places) < 8


async def cancel(play: Play, dispatcher: Dispatcher, call_id: str) -> None:
    await play.database.write(
        lambda conn: calls.cancel(conn, play.project_id, call_id, play.clock())
    )
    dispatcher.wake()


async def test_a_call_that_rings_is_called_off(play: Play) -> None:
    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED], hold=asyncio.Event())
    dispatcher = play.dispatcher(dialer)
    [call_id] = await play.place()
    async with at_work(dispatcher):
        await play.dialled(dialer)
        await cancel(play, dispatcher, call_id)
        await play.until_over([call_id])
    call = await play.call(call_id)
    assert (call.status, call.price) == (CallStatus.CANCELED, Decimal(0))


async def test_a_call_that_plays_is_hung_up(play: Play) -> None:
    @dataclass
    class Playing(ScriptedDialer):
        playing: asyncio.Event = field(default_factory=asyncio.Event)

        async def _dial(self, order: DialRequest, heard: OnAnswered) -> AttemptResult:
            answered_at = self.clock()
            assert await heard(answered_at)
            self.playing.set()
            assert self.hold is not None
            await self.hold.wait()
            return AttemptResult(Outcome.ANSWERED, answered_at, answered_at + 3.0, answered_at)

    dialer = Playing(play.clock, [Outcome.ANSWERED], hold=asyncio.Event())
    dispatcher = play.dispatcher(dialer)
    [call_id] = await play.place()
    async with at_work(dispatcher):
        await dialer.playing.wait()
        await cancel(play, dispatcher, call_id)
        await play.until_over([call_id])
        assert dialer.called_off
    call = await play.call(call_id)
    assert (call.status, call.bill_seconds) == (CallStatus.NORMAL, 3)


async def test_a_call_between_two_attempts_is_canceled_at_once(play: Play) -> None:
    dialer = ScriptedDialer(play.clock, [Outcome.BUSY])
    dispatcher = play.dispatcher(dialer)
    [call_id] = await play.place(retries=3)
    async with at_work(dispatcher):
        await until(lambda: not dispatcher.running and dialer.orders)
        await cancel(play, dispatcher, call_id)
        assert (await play.call(call_id)).status is CallStatus.CANCELED
        play.clock.now += 100.0
        await play.looked(dispatcher)
    assert len(dialer.orders) == 1


async def test_outside_its_window_a_project_is_not_dialled_but_its_passwords_are(
    play: Play,
) -> None:
    # The clock starts on a Tuesday at 22:13:20 UTC.
    await play.database.write(
        lambda conn: projects.change(conn, play.project_id, window="mon-sun 22:20-23:59 UTC")
    )
    [later] = await play.place()
    [password] = await play.place(lane=Lane.OTP)
    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED])
    dispatcher = play.dispatcher(dialer)
    async with at_work(dispatcher):
        await play.until_over([password])
        assert (await play.call(later)).status is CallStatus.WAITING
        play.clock.now += 800.0
        dispatcher.wake()
        await play.until_over([later])
    assert [order.call_id for order in dialer.orders] == [password, later]


@pytest.mark.parametrize("broken", ["claim", "expire", "cancel_requests", "next_due"])
async def test_a_fault_outside_of_attempts_cuts_no_call_off(
    play: Play, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    hold = asyncio.Event()
    dialer = ScriptedDialer(play.clock, [Outcome.ANSWERED], hold=hold)
    [first] = await play.place()
    dispatcher = play.dispatcher(dialer)
    works, broke = getattr(claims, broken), asyncio.Event()
    loop = asyncio.get_running_loop()

    def breaks(*arguments: Any, **named: Any) -> Any:
        if not hold.is_set():
            loop.call_soon_threadsafe(broke.set)
            raise ValueError("a row that can't be read")
        return works(*arguments, **named)

    async with at_work(dispatcher), asyncio.timeout(30):
        await play.dialled(dialer)
        monkeypatch.setattr(claims, broken, breaks)
        [second] = await play.place(first=2)
        dispatcher.wake()
        await broke.wait()
        hold.set()
        await play.until_over([first, second])
    assert (await play.call(first)).status is CallStatus.NORMAL
    assert (await play.call(second)).status is CallStatus.NORMAL


async def test_an_invite_that_is_pending_rings_out_before_the_next(play: Play) -> None:
    dialer = ScriptedDialer(play.clock, [Outcome.UNCERTAIN, Outcome.ANSWERED], pending=True)
    dispatcher = play.dispatcher(dialer)
    begun = play.clock.now
    [call_id] = await play.place(interval=5)
    async with at_work(dispatcher), asyncio.timeout(30):
        await play.dialled(dialer)
        await until(lambda: not dispatcher.running)
        play.clock.now = begun + RING_TIMEOUT + RING_MARGIN - 0.1
        await play.looked(dispatcher)
        assert len(dialer.orders) == 1
        play.clock.now += 0.2
        dispatcher.wake()
        await play.until_over([call_id])
    assert len(dialer.orders) == 2
