"""Dispatches the due calls of one dialer: claims them, has them dialled, and settles them.

The calls table is the queue. A dispatcher holds its dialer's lease, claims as many due calls as it
has free channels and pace for, has each dialled in a task of its own, and settles what came of it.
Everything that matters is durable before it happens: the claim before the INVITE, the answer
before the audio, so that after a crash it is known how far each attempt had got.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog
from sqlalchemy import Connection

from bitel.dialing.attempt_writer import AttemptWriter, apply_journal
from bitel.dialing.backpressure import Backpressure, LoadSample
from bitel.dialing.claim_mark import ClaimMark
from bitel.dialing.dialer import Dialer
from bitel.dialing.journal import Journal
from bitel.dialing.recording_faults import RecordingFaults
from bitel.domain.attempts import AttemptResult, Irregularity, Outcome
from bitel.domain.calls import CallStatus, Lane
from bitel.domain.phone_numbers import masked
from bitel.domain.pricing import NOTHING, Tariff
from bitel.domain.retry import Finish, Requeue, decide
from bitel.errors import UnavailableError
from bitel.store import claims, leases, pausing, recovery, settling
from bitel.store.claims import Claim, Room
from bitel.store.database import Database
from bitel.store.leases import Lease, LostLease, TakeOverTerms, TrunkHistory
from bitel.store.pausing import InForce
from bitel.store.recovery import Recovered
from bitel.store.settling import Settlement
from bitel.token_bucket import TokenBucket

log = structlog.get_logger(__name__)

STALE_CLAIM = 10.0
"""A claim older than these seconds is handed back, not dialled: this process was held up."""

REDIAL_MARGIN = 32.0
"""Seconds past the ring time-out for which a forgotten INVITE may still be alive (64 × T1)."""

RING_MARGIN = 5.0
"""Seconds past the ring time-out for which an INVITE without a final response may ring a phone: its
`Expires` ends that."""

MESSAGES_LATE = 50.0
"""Milliseconds that SIP messages may wait before no more calls are begun, until they are read.
INVITEs whose answers are read later than T1 are sent again, and the more there is to read."""

BURST_SECONDS: Final = 0.1
"""A pause earns at most this many seconds' worth of calls."""

AT_ONCE: Final = 20
"""Calls begun in one turn of the event loop, so that other work does not wait for all of them."""

_POLL = 1.0
_BEAT = 0.05
"""Seconds from one look for calls to the next: each costs the database as much as 30 calls do."""
_SPREAD = _BEAT / 2
"""Seconds over which the calls of one claim are begun, where they are many."""
# What was due a moment ago had expired, or another worker's transaction holds it.
_LOOK_AGAIN = 0.05
_RENEW = 5.0
_AFTER_FAULT = 0.25
"""Seconds until the database is tried again after it could not be used."""
_AFTER_BUG = 1.0
"""The same after a fault of our own, which each try writes to the log."""
CLAIMS_FAIL_AFTER: Final = 2.0
"""Seconds for which claims must fail before that is shown to the outside."""
_CONFIRM = 3.0
"""Seconds in which the database must confirm the lease."""
_CANCEL_PAUSE = 0.1
_RELIEF = 0.25
"""Seconds between two looks at whether there is room again."""

ENDING_TIMEOUT: Final = 32.0
"""Seconds that calls may take to end once they are hung up or cancelled (64 × T1)."""

WRITING_TIMEOUT: Final = 2.0
"""Seconds that the last ends may take to be written, before they go to the journal."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a dialer may do: channels in use at once, calls started a second, seconds of ringing.

    The last `otp_channels` of the channels are for the OTP lane alone. `uncertain_redials` is how
    often a call is redialled beyond its retries when a phone may have rung.
    """

    max_channels: int
    calls_per_second: float
    ring_timeout: float
    otp_channels: int = 0
    uncertain_redials: int = 1

    @property
    def burst(self) -> float:
        """Calls that may start at once after a pause, so that a trunk sees no bursts."""
        return max(1.0, self.calls_per_second * BURST_SECONDS)


@dataclass(slots=True)
class Figures:
    """Totals of a dispatcher since it began, for the metrics; they only grow."""

    claimed: int = 0
    """Attempts begun."""
    answered: int = 0
    """Attempts whose answer was made durable, so that their recording could start."""
    ended: Counter[Outcome] = field(default_factory=Counter)
    """Attempts that are over, by what became of them."""
    irregular: Counter[Irregularity] = field(default_factory=Counter)
    """Attempts that are over, by what was irregular about them."""


@dataclass(slots=True)
class _Running:
    claim: Claim
    claimed_at: float
    """By the monotonic clock, before the claim was written."""
    task: asyncio.Task[None] | None = None
    hand_back: bool = False
    ended: bool = False
    """The attempt is over, and waits for that to be written."""
    rang_at: float | None = None


class Dispatcher:
    """Claims, dials and settles the calls of one dialer until it is drained or fenced."""

    def __init__(
        self,
        dialer_id: str,
        worker: str,
        dialer: Dialer,
        limits: Limits,
        database: Database,
        tariff: Tariff,
        clock: Callable[[], float],
        on_settled: Callable[[], None] = lambda: None,
        load: Callable[[], LoadSample] = LoadSample,
        recording_faults: RecordingFaults | None = None,
        journal: Journal | None = None,
        mark: ClaimMark | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        ahead: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """`clock` gives the Unix seconds of all stored times, `ahead` the seconds by which the
        system clock, which calling windows follow, is ahead of it."""
        self.figures = Figures()
        self.pressure = Backpressure()
        self.recording_faults = recording_faults or RecordingFaults(dialer_id, monotonic)
        self._load = load
        self._journal = journal
        self._mark = mark or ClaimMark(Path(os.devnull))
        self._paused = pausing.NONE
        self._on_settled = on_settled
        self._dialer_id = dialer_id
        self._worker = worker
        self._dialer = dialer
        self._limits = limits
        self._database = database
        self._tariff = tariff
        self._clock = clock
        self._monotonic = monotonic
        self._ahead = ahead
        self._pace = TokenBucket(limits.calls_per_second, limits.burst, monotonic())
        self._running: dict[str, _Running] = {}
        self._last_project: dict[Lane, str] = {}
        self._wake_event = asyncio.Event()
        self._cancel_event = asyncio.Event()
        self._otp_running = 0
        self._more_due = False  # for all we know
        self._doubtful: set[float] = set()
        """When claims were made of which it is not known whether they are durable (Unix s)."""
        self._failing_since: float | None = None
        """When claims began to fail (monotonic); None: the last one did not."""
        self._draining = False
        self._claims_no_more = asyncio.Event()
        self._claims_no_more.set()
        self._drained = asyncio.Event()
        self._lease_lost = asyncio.Event()
        self._lease = Lease(dialer_id, worker, 0)  # none, until `take_over`
        self._attempts: AttemptWriter

    @property
    def dialer_id(self) -> str:
        """Whose calls these are."""
        return self._dialer_id

    @property
    def max_channels(self) -> int:
        """How many channels there are."""
        return self._limits.max_channels

    @property
    def held_back(self) -> float:
        """Seconds for which no calls were claimed for want of room on this machine, in all."""
        return self.pressure.seconds(self._monotonic())

    @property
    def claims_fail(self) -> bool:
        """Whether for `CLAIMS_FAIL_AFTER` seconds every claim has failed, or an end of an attempt
        could not be written: such ends keep their channels, until there is none for a claim."""
        since = self._failing_since
        if since is not None and self._monotonic() - since >= CLAIMS_FAIL_AFTER:
            return True
        oldest = self._attempts.oldest_unwritten if self._lease.epoch else None
        now = asyncio.get_running_loop().time()
        return oldest is not None and now - oldest >= CLAIMS_FAIL_AFTER

    @property
    def running(self) -> int:
        """Channels in use."""
        return len(self._running)

    async def change(self, limits: Limits, tariff: Tariff) -> None:
        """Use other limits and prices from now on. `ring_timeout` must stay the same.

        With fewer channels than are in use, calls that run go on, and no call is begun until
        enough of them are over.
        """
        assert limits.ring_timeout == self._limits.ring_timeout
        if self._journal is not None:
            await asyncio.to_thread(self._journal.grow, limits.max_channels)
        self._limits, self._tariff = limits, tariff
        self._pace.per_second, self._pace.burst = limits.calls_per_second, limits.burst
        self.wake()

    def wake(self) -> None:
        """Look at once for calls that are due and for attempts to cancel."""
        self._wake_event.set()
        self._cancel_event.set()

    @property
    def worker(self) -> str:
        """The name of this worker in the dialer's row."""
        return self._worker

    async def take_over(self, terms: TakeOverTerms = TakeOverTerms()) -> Recovered:  # noqa: B008 # immutable
        """Become the one worker of this dialer, and decide what earlier workers left undone.

        Raises LostLease where the dialer's row is not what `terms` expect.
        """
        ring_timeout = self._limits.ring_timeout
        # A claim is dialled within STALE_CLAIM, and no INVITE leaves once the ring time is over.
        redial_after, last_invite = ring_timeout + REDIAL_MARGIN, STALE_CLAIM + ring_timeout
        if self._journal is not None:
            await apply_journal(self._database, self._dialer_id, self._journal, self._clock)
        mark = await asyncio.to_thread(self._mark.read)

        def work(conn: Connection) -> tuple[Lease, Recovered]:
            now = self._clock()
            # Before the attempts that are open in it are dealt with.
            pausing.pause_if_older(conn, self._dialer_id, mark, now)
            return recovery.take_over(
                conn, self._dialer_id, self._worker, now, redial_after, last_invite, terms
            )

        self._lease, recovered = await self._database.write(work)
        self._attempts = AttemptWriter(self._database, self._lease, self._clock, self._journal)
        history = await self._database.read(
            lambda conn: leases.trunk_history(conn, self._dialer_id)
        )
        if history.has_worked:
            self._dialer.assume_worked()
        if history.paused_reason:
            self._dialer.assume_paused(history.paused_reason)
        return recovered

    async def release(self) -> None:
        """Give the lease back, after `run`. Raises UnavailableError."""
        await self._database.write(lambda conn: leases.release(conn, self._lease))

    async def confirm_lease(self) -> bool:
        """Whether the lease still holds; False also where the database can't say within 3 s.

        A lease that is lost makes `run` hang up every call and raise LostLease.
        """
        lease = self._lease
        try:
            async with asyncio.timeout(_CONFIRM):
                row = await self._database.read(lambda conn: leases.holder(conn, self._dialer_id))
        except (UnavailableError, TimeoutError) as fault:
            log.warning("lease_not_confirmed", dialer=self._dialer_id, fault=str(fault) or "late")
            return False
        if lease.epoch and row.epoch != lease.epoch:
            self._lease_lost.set()
        return row.epoch == lease.epoch

    async def run(self) -> None:
        """Dial what is due, until `drain` is over. Raises LostLease when another took over."""
        tasks = [
            asyncio.create_task(self._claim_until_drained()),
            asyncio.create_task(self._keep_lease()),
            asyncio.create_task(self._watch_for_cancels()),
            asyncio.create_task(self._drained.wait()),  # also while a claim hangs
        ]
        journaling = asyncio.create_task(self._attempts.keep_journal())
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except LostLease:
            self._abandon()
            raise
        finally:
            for task in [*tasks, journaling]:
                task.cancel()
            await asyncio.gather(*tasks, journaling, return_exceptions=True)
            if self._journal is not None:
                self._journal.close()
            self._mark.close()

    @property
    def lost(self) -> int:
        """Ends of attempts that `drain` could store nowhere."""
        return self._attempts.lost

    async def drain(self, timeout: float) -> None:
        """Claim no more; let calls run for `timeout` seconds, then end them; wait for the rest.

        Attempts that were not answered by then go back to be dialled later. This takes no longer
        than `timeout` + `ENDING_TIMEOUT` + `WRITING_TIMEOUT` + a second, whatever the database
        does: what it can't take goes to the journal, or is logged and left to the recovery.
        """
        loop = asyncio.get_running_loop()
        self._draining = True
        self.wake()
        end = loop.time() + timeout
        # A claim that was under way is durable by now: its calls end, or go back, like all others.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(end):
                await self._claims_no_more.wait()
        await self._finish_until(end)
        await self._attempts.finish()
        self._drained.set()

    async def _finish_until(self, end: float) -> None:
        loop = asyncio.get_running_loop()
        tasks = [running.task for running in self._running.values() if running.task]
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=max(0.0, end - loop.time()))
        if not late:
            return
        log.info("drain_ends_calls", dialer=self._dialer_id, calls=len(late))
        for attempt_id, running in list(self._running.items()):
            running.hand_back = True
            self._dialer.cancel(attempt_id)
        end = loop.time() + ENDING_TIMEOUT
        while not all(one.ended for one in self._running.values()) and loop.time() < end:
            await asyncio.wait(late, timeout=_BEAT)
        await asyncio.wait(late, timeout=WRITING_TIMEOUT)
        await self._give_up()

    async def _give_up(self) -> None:
        """Wait no longer for attempts, nor for what is unwritten of them."""
        await self._attempts.give_up()
        for running in self._running.values():
            if not running.ended:
                claim = running.claim
                log.error("attempt_not_ended", attempt=claim.attempt_id, call=claim.call_id)
                if running.task:
                    running.task.cancel()
        left = [running.task for running in self._running.values() if running.task]
        if left:
            await asyncio.wait(left, timeout=_POLL)

    async def _claim_until_drained(self) -> None:
        self._claims_no_more.clear()
        try:
            await self._claim_what_is_due()
        finally:
            self._claims_no_more.set()
        await self._drained.wait()

    async def _claim_what_is_due(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._draining:
            self._wake_event.clear()
            beat = loop.time() + _BEAT
            try:
                pause = await self._claim_due()
            except UnavailableError as fault:
                log.warning("claim_failed", dialer=self._dialer_id, fault=str(fault))
                self._failing_since = self._failing_since or self._monotonic()
                pause = _AFTER_FAULT
            except LostLease:
                raise
            except Exception:
                # A row that can't be read, say. Calls that run must not be cut off for it.
                log.exception("claim_broke", dialer=self._dialer_id)
                self._failing_since = self._failing_since or self._monotonic()
                pause = 0.0
                await asyncio.sleep(_AFTER_BUG)
            if pause > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._wake_event.wait()
            await asyncio.sleep(beat - loop.time())

    async def _claim_due(self) -> float:
        """Claim and start what may start now; the seconds until it is worth looking again."""
        if self._doubtful:
            await self._undo_doubtful()
        # Pace and pauses are by a clock that no correction of the wall clock sets back.
        now = self._monotonic()
        load = self._load()
        if self._is_held_back(load, now):
            return _RELIEF
        if load.messages_late > MESSAGES_LATE:
            return _BEAT
        wait = self.recording_faults.wait()
        if wait > 0:
            return min(wait, _POLL)
        free = self._limits.max_channels - len(self._running)
        if free <= 0 or not self._dialer.up:
            return _POLL
        if self._dialer.probing:
            free = min(free, 1)
        allowed = self.recording_faults.limit(min(free, int(self._pace.available(now))))
        if allowed <= 0:
            return self._pace.wait()
        room = self._room(allowed)
        lanes = tuple(Lane) if room.others > 0 else (Lane.OTP,)
        if not self._more_due:
            due, paused = await self._database.read(
                lambda conn: (
                    claims.next_due(conn, self._dialer_id, lanes),
                    pausing.in_force(conn, self._dialer_id),
                )
            )
            self._failing_since = None
            self._note_pause(paused)
            # What expires meanwhile is ended with the renewal of the lease.
            at = None if paused.reason else due.earliest
            wait = _POLL if at is None else at - self._clock()
            if wait > 0:
                return min(wait, _POLL)
        claimed_at = self._monotonic()
        expired, claimed = await self._database.write(
            lambda conn: self._expire_and_claim(conn, room, lanes)
        )
        self._doubtful.clear()
        self._failing_since = None
        if expired:
            self._on_settled()
        if claimed:
            self._mark.note(max(one.attempt_id for one in claimed))
        self._more_due = len(claimed) == allowed
        self._pace.take(now, len(claimed))
        self.figures.claimed += len(claimed)
        for number, claim in enumerate(claimed, 1):
            self._start(claim, claimed_at)
            self._last_project[claim.lane] = claim.project_id
            if number % AT_ONCE == 0:
                await asyncio.sleep(_SPREAD * AT_ONCE / len(claimed))
        if claimed:
            return 0.0
        # Calls of a project that is paused stay due.
        return _POLL if self._paused.projects else _LOOK_AGAIN

    def _note_pause(self, paused: InForce) -> None:
        if paused.reason != self._paused.reason:
            if paused.reason:
                log.warning("paused", dialer=self._dialer_id, reason=paused.reason)
            else:
                log.info("resumed", dialer=self._dialer_id)
        self._paused = paused

    def _room(self, allowed: int) -> Room:
        """The share of each kind of `allowed` calls.

        One-time passwords use their own channels first, and at most half of the others.
        """
        shared = self._limits.max_channels - self._limits.otp_channels
        otp = self._otp_running
        otp_in_shared = max(0, otp - self._limits.otp_channels)
        others = shared - otp_in_shared - (len(self._running) - otp)
        otp_most = self._limits.otp_channels + max(1, shared // 2) - otp
        return Room(allowed, min(allowed, max(0, others)), max(0, min(allowed, otp_most)))

    async def _undo_doubtful(self) -> None:
        """Hand back what was claimed by a COMMIT whose answer was lost, and so never dialled."""
        undone = await self._database.write(
            lambda conn: claims.undo(conn, self._lease, self._doubtful, self._running)
        )
        if undone:
            log.warning("claims_handed_back", dialer=self._dialer_id, claims=undone)
        self._doubtful.clear()

    def _is_held_back(self, load: LoadSample, now: float) -> bool:
        """Whether the machine has no room for more calls; they wait in the queue then."""
        pressure = self.pressure
        if pressure.look(load, now):
            if pressure.signs:
                signs = ", ".join(sorted(pressure.signs))
                log.warning("claiming_paused", dialer=self._dialer_id, signs=signs)
            else:
                log.info("claiming_resumed", dialer=self._dialer_id)
        return bool(pressure.signs)

    def _expire_and_claim(
        self, conn: Connection, room: Room, lanes: Sequence[Lane]
    ) -> tuple[int, list[Claim]]:
        now = self._clock()
        self._doubtful.add(now)
        expired = claims.expire(conn, self._dialer_id, now)
        claimed = claims.claim(
            conn, self._lease, room, now, lanes, self._last_project, self._ahead()
        )
        return expired, claimed

    def _start(self, claim: Claim, claimed_at: float) -> None:
        running = self._running[claim.attempt_id] = _Running(claim, claimed_at)
        self._otp_running += claim.lane is Lane.OTP
        running.task = asyncio.create_task(self._attempt(running))

    async def _attempt(self, running: _Running) -> None:
        claim = running.claim
        try:
            settlement = await self._dial(running)
            running.ended = True
            if running.rang_at is not None:
                result = settlement.result._replace(rang_at=running.rang_at)
                settlement = settlement._replace(result=result)
            self.figures.ended[settlement.result.outcome] += 1
            self.figures.irregular.update(settlement.result.irregularities)
            self._log_end(claim, settlement.result)
            await self._attempts.settle(settlement)
            self._on_settled()
        except Exception:
            log.exception("attempt_broke", attempt=claim.attempt_id, call=claim.call_id)
        finally:
            del self._running[claim.attempt_id]
            self._otp_running -= claim.lane is Lane.OTP
            self._wake_event.set()

    def _log_end(self, claim: Claim, result: AttemptResult) -> None:
        answered_at = result.answered_at
        log.info(
            "attempt_ended",
            call=claim.call_id,
            attempt=claim.attempt_id,
            project=claim.project_id,
            dialer=self._dialer_id,
            outcome=result.outcome.value,
            sip_code=result.sip_code,
            seconds=0.0 if answered_at is None else round(result.ended_at - answered_at, 1),
            number=masked(claim.e164),
        )

    async def _dial(self, running: _Running) -> Settlement:
        claim = running.claim
        if self._draining:
            return self._hand_back(claim, "the service was stopped")
        if self._monotonic() - running.claimed_at > STALE_CLAIM:
            return self._hand_back(claim, "the claim was stale before it was dialled")
        if not self._tariff.prices(claim.e164):
            # The tariff has changed since it was placed; the call would cost us and nobody else.
            return self._unpriced(claim)
        reached = False

        async def answered(answered_at: float) -> bool:
            nonlocal reached
            reached = await self._attempts.answered(claim.attempt_id, answered_at)
            self.figures.answered += reached
            return reached

        def ringing(rang_at: float) -> None:
            running.rang_at = rang_at
            self._attempts.ringing(claim.attempt_id, rang_at)

        try:
            result = await self._dialer.dial(claim, answered, ringing)
        except Exception:
            # A fault of our own. A call that was answered is not made again; any other may have
            # rung, so that a fault which always comes back must not ring it again and again.
            log.exception("attempt_failed", attempt=claim.attempt_id, number=masked(claim.e164))
            result = AttemptResult(
                Outcome.INTERRUPTED if reached else Outcome.UNCERTAIN,
                started_at=claim.started_at,
                ended_at=self._clock(),
                detail="a fault inside the dialer",
            )
        is_ours = running.hand_back and result.outcome is Outcome.CANCELED
        if is_ours and (running.rang_at is None or result.answered_at is not None):
            # Its INVITE may have been sent, so it is not repeated the moment the service is back.
            return self._hand_back(claim, "the service was stopped", claim.rule.retry_interval)
        try:
            rule = claim.rule._replace(
                uncertain_redials=self._limits.uncertain_redials,
                longest_ring=self._limits.ring_timeout + RING_MARGIN,
            )
            # A service that is restarted again and again must not ring a phone each time.
            judged = result._replace(outcome=Outcome.UNCERTAIN) if is_ours else result
            decision = decide(rule, judged)
            bill = self._tariff.bill(claim.e164, result)
        except Exception:
            log.exception("attempt_not_decided", attempt=claim.attempt_id, call=claim.call_id)
            return settling.minimal(claim.attempt_id, claim.call_id, result, self._clock())
        return Settlement(claim.attempt_id, claim.call_id, result, decision, bill)

    def _unpriced(self, claim: Claim) -> Settlement:
        now = self._clock()
        why = "no line of the tariff prices the number"
        result = AttemptResult(Outcome.REFUSED, now, now, detail=why)
        decision = Finish(CallStatus.ERROR, why)
        return Settlement(claim.attempt_id, claim.call_id, result, decision)

    def _hand_back(self, claim: Claim, why: str, wait: float = 0.0) -> Settlement:
        """The end of an attempt given up for our own reasons: its call is due in `wait` seconds."""
        now = self._clock()
        result = AttemptResult(Outcome.CANCELED, claim.started_at, now, detail=why)
        decision = Requeue(now + wait)
        return Settlement(claim.attempt_id, claim.call_id, result, decision, NOTHING)

    async def _watch_for_cancels(self) -> None:
        """End what its client has called off, while it rings or plays."""
        while True:
            self._cancel_event.clear()
            if self._running:
                try:
                    wanted = await self._database.read(
                        lambda conn: claims.cancel_requests(conn, self._dialer_id)
                    )
                except UnavailableError as fault:
                    log.warning("cancels_not_read", dialer=self._dialer_id, fault=str(fault))
                    wanted = []
                except Exception:
                    log.exception("cancels_broke", dialer=self._dialer_id)
                    wanted = []
                    await asyncio.sleep(_AFTER_BUG)
                for attempt_id in wanted:
                    if attempt_id in self._running:
                        self._dialer.cancel(attempt_id)
                # However often the bell rings, one look covers all that came before it.
                await asyncio.sleep(_CANCEL_PAUSE)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL):
                    await self._cancel_event.wait()

    async def _keep_lease(self) -> None:
        pause = _RENEW
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._lease_lost.wait()
                    raise self._lost()
            try:
                expired, mine = await self._database.write(self._expire_and_renew)
            except UnavailableError as fault:
                if pause == _RENEW:
                    log.warning("lease_not_renewed", dialer=self._dialer_id, fault=str(fault))
                pause = _AFTER_FAULT
                continue
            except Exception:
                log.exception("lease_renewal_broke", dialer=self._dialer_id)
                pause = _AFTER_BUG
                continue
            pause = _RENEW
            await asyncio.to_thread(self._mark.sync)
            if expired:
                self._on_settled()
            if not mine:
                raise self._lost()

    def _lost(self) -> LostLease:
        return LostLease(f"another worker took over the dialer {self._dialer_id!r}")

    def _expire_and_renew(self, conn: Connection) -> tuple[int, bool]:
        # Here too, so that calls expire while every channel is taken.
        now = self._clock()
        expired = claims.expire(conn, self._dialer_id, now)
        history = TrunkHistory(self._dialer.paused_reason, self._dialer.has_worked)
        leases.record_trunks(conn, self._lease, history, now)
        return expired, leases.renew(conn, self._lease, now, up=self._dialer.up)

    def _abandon(self) -> None:
        self._draining = True
        for attempt_id in list(self._running):
            self._dialer.abandon(attempt_id)
