"""Dispatches the due calls of one dialer: claims them, has them dialled, and settles the results.

The calls table is the queue. A dispatcher holds a lease of its dialer, as other workers of the
dialer may. It claims as many due calls as its shares of the channels and of the rate limit allow,
has each dialled in a task of its own, and settles the result. The claim is durable before the
INVITE, and the answer before the audio, so that the recovery after a crash knows how far each
attempt had got.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog
from sqlalchemy import Connection

from bitel.dialing.attempt_writer import AttemptWriter, apply_journal
from bitel.dialing.backpressure import Backpressure, LoadSample
from bitel.dialing.campaign_pace import CampaignPace
from bitel.dialing.dialer import Dialer
from bitel.dialing.journal import Journal
from bitel.dialing.lease_keeper import ClaimMark, LeaseKeeper
from bitel.dialing.limit_shares import LimitGroup, Limits, LimitShares, Usage
from bitel.dialing.recording_faults import RecordingFaults
from bitel.domain.attempts import AttemptResult, Irregularity, Outcome
from bitel.domain.calls import CallStatus, Lane
from bitel.domain.dialer_groups import Membership
from bitel.domain.phone_numbers import masked
from bitel.domain.pricing import NOTHING, Tariff
from bitel.domain.retry import Finish, Requeue, decide
from bitel.domain.webhooks import CALL_ANSWERED, CALL_RINGING
from bitel.errors import UnavailableError
from bitel.steady_clock import boot_clock
from bitel.store import (
    claims,
    do_not_call,
    leases,
    number_exclusion,
    pausing,
    recovery,
    settling,
    worker_shares,
)
from bitel.store.campaign_schedules import Page
from bitel.store.claims import Claim, NextDue, Room
from bitel.store.database import Database
from bitel.store.leases import Lease, LostLease, Slot, WorkerState
from bitel.store.pausing import InForce
from bitel.store.recovery import FormerWorker, Recovered
from bitel.store.settling import Settlement

log = structlog.get_logger(__name__)

STALE_CLAIM = 10.0
"""Age in seconds from which a claim is requeued instead of dialled: this process was suspended."""

REDIAL_MARGIN = 32.0
"""Seconds past the ring time-out for which the INVITE of a dead process may live (64 × T1)."""

RING_MARGIN = 5.0
"""Seconds past the ring time-out after which the `Expires` of an INVITE has ended its ringing."""

MESSAGES_LATE = 50.0
"""Milliseconds for which SIP messages may have waited; beyond, no call is begun until they are
read. INVITEs whose responses are read later than T1 are retransmitted, which adds to the load."""

AT_ONCE: Final = 20
"""Calls begun in one turn of the event loop, so that other tasks run in between."""

MOST_PROJECTS: Final = 1000
"""Projects for which the campaign of the last claim is known."""

_POLL = 1.0
_CLAIM_INTERVAL = 0.05
"""Seconds between two claims: each costs the database as much as 30 calls do."""
_SPREAD = _CLAIM_INTERVAL / 2
"""Seconds over which the calls of a large claim are begun."""
_NOTHING_CLAIMED = 0.05
"""Seconds until the next claim after due calls had expired, or were locked by another worker."""
_EXPIRE = 5.0
"""Seconds between two looks for expired calls, while every channel is taken."""
_SHARE = 0.4
"""Seconds between two updates of this worker's shares in limits."""
_AFTER_FAULT = 0.25
"""Seconds until the next try after the database could not be used."""
_AFTER_BUG = 1.0
"""The same after an unexpected error, which each try writes to the log."""
CLAIMS_FAIL_AFTER: Final = 2.0
"""Seconds for which claims must fail before `claims_fail` says so."""
_CANCEL_PAUSE = 0.1
_OVERLOAD_POLL = 0.25
"""Seconds between two checks whether an overload is over."""

ENDING_TIMEOUT: Final = 32.0
"""Seconds that calls may take to end after BYE or CANCEL (64 × T1)."""

WRITING_TIMEOUT: Final = 2.0
"""Seconds that the last results may take to be written, before they go to the journal."""


@dataclass(slots=True)
class Figures:
    """Totals of a dispatcher since it began, for the metrics; they only grow."""

    claimed: int = 0
    """Attempts begun."""
    answered: int = 0
    """Attempts whose answer was stored, so that their audio could start."""
    ended: Counter[Outcome] = field(default_factory=Counter)
    """Finished attempts, by outcome."""
    irregular: Counter[Irregularity] = field(default_factory=Counter)
    """Finished attempts, by irregularity."""


@dataclass(slots=True)
class _Running:
    claim: Claim
    claimed_at: float
    """By the monotonic clock, before the claim was written."""
    task: asyncio.Task[None] | None = None
    requeue: bool = False
    """Requeue the call if the attempt ends unanswered: the service is draining."""
    ended: bool = False
    """The attempt is over, and its result is being written."""
    rang_at: float | None = None
    is_answered: bool = False
    """Its answer is stored, so its audio is played."""


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
        lease_clock: Callable[[], float] = boot_clock,
        ahead: Callable[[], float] = lambda: 0.0,
        late_ms: Callable[[], float] = lambda: 0.0,
        on_drain: Callable[[], None] = lambda: None,
        limit_group: LimitGroup | None = None,
        groups: Sequence[Membership] = (),
    ) -> None:
        """Take no lease yet: that is `take_over`.

        Args:
            clock: gives the Unix seconds of stored times.
            monotonic: gives seconds of a monotonic clock, for rates and the age of claims.
            lease_clock: the same of one that also counts while the machine is suspended.
            ahead: the seconds by which the system clock, which calling windows use, is ahead of
                `clock`.
            late_ms: how late RTP packets are, in milliseconds.
            on_drain: called when the operator has asked this worker to stop.
            limit_group: the dialers for which `limits` hold together; None: this one alone.
            groups: the groups of dialers whose calls this one takes, too.
        """
        self.figures = Figures()
        self.pressure = Backpressure()
        self.recording_faults = recording_faults or RecordingFaults(dialer_id, monotonic)
        self._load = load
        self._journal = journal
        self._mark = mark or ClaimMark(Path(os.devnull))
        self._paused = pausing.NONE
        self._on_settled = on_settled
        self.dialer_id = dialer_id
        self.worker = worker
        """The name of this worker in the dialer's row."""
        self._dialer = dialer
        group = limit_group or LimitGroup.of_one(dialer_id)
        self._groups = tuple(groups)
        is_shared = database.is_shared or bool(groups)
        self._shares = LimitShares(group, limits, monotonic, is_shared)
        self._database = database
        self._tariff = tariff
        self._clock = clock
        self._monotonic = monotonic
        self._lease_clock = lease_clock
        self._ahead = ahead
        self._late_ms = late_ms
        self._on_drain = on_drain
        self._running: dict[str, _Running] = {}
        self._last_project: dict[Lane, str] = {}
        self._last_campaign: OrderedDict[str, str] = OrderedDict()
        """By project."""
        weights = {each.group.id: each.group.weight(dialer_id) for each in groups}
        self._campaign_pace = CampaignPace(monotonic, self._shares, weights)
        self._shared_at = -math.inf
        self._seen_workers: set[tuple[str, int]] = set()
        """Workers, by dialer and epoch, when calls of those that are gone were counted."""
        self._is_hungry = False
        """More calls were due at the last claim than it might begin."""
        self._is_free = False
        """At the last look it could begin more calls than were due."""
        self._looks_free = False
        """The same, at a look that is under way."""
        self._claimed_before = 0
        self._queues = (dialer_id, *(each.group.id for each in groups))
        self._due_page, self._claim_page = Page(), Page()
        self._expiry_pages = {queue_id: Page() for queue_id in self._queues}
        self._wake_event = asyncio.Event()
        self._cancel_event = asyncio.Event()
        self._otp_running = 0
        self._more_due = False
        """Whether the last claim took all that it might, so that more calls are probably due."""
        self._doubtful: set[float] = set()
        """Times (Unix seconds) of claims whose COMMIT was not confirmed."""
        self._failing_since: float | None = None
        """When claims began to fail (monotonic); None if the last one succeeded."""
        self._draining = False
        self._claiming_ended = asyncio.Event()
        self._claiming_ended.set()
        self._drained = asyncio.Event()
        self._lease = Lease(dialer_id, worker, 0)  # none, until `take_over`
        self._lease_keeper: LeaseKeeper
        self._attempts: AttemptWriter

    @property
    def max_channels(self) -> int:
        """The number of channels."""
        return self._limits.max_channels

    @property
    def channels_share(self) -> int:
        """The channels of this worker, of those of all workers."""
        return self._shares.channels + self._shares.otp_channels

    @property
    def _limits(self) -> Limits:
        return self._shares.limits

    @property
    def held_back(self) -> float:
        """Seconds for which no calls were claimed because of overload, in total."""
        return self.pressure.seconds(self._monotonic())

    @property
    def claims_fail(self) -> bool:
        """Whether for `CLAIMS_FAIL_AFTER` seconds every claim has failed or a result could not be
        written: an attempt keeps its channel until its result is written."""
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

    async def change(
        self, limits: Limits, tariff: Tariff, groups: Sequence[Membership] = ()
    ) -> None:
        """Use other limits, prices and caller ids of its groups from now on.

        `ring_timeout` and the groups must stay the same.

        If more channels are in use than allowed, running calls continue, and new ones start after
        enough of them have ended.
        """
        assert limits.ring_timeout == self._limits.ring_timeout
        if self._journal is not None:
            await asyncio.to_thread(self._journal.grow, limits.max_channels)
        self._shares.change(limits)
        self._groups = tuple(groups)
        self._tariff = tariff
        self.wake()

    def wake(self) -> None:
        """Check at once for due calls and for attempts to cancel."""
        self._wake_event.set()
        self._cancel_event.set()

    async def take_over(
        self,
        slot: Slot | None = None,
        former: FormerWorker = FormerWorker(),  # noqa: B008 # immutable
        address: str = "",
    ) -> Recovered:
        """Take a lease of the dialer, and recover attempts of workers whose lease has ended.

        Args:
            slot: the place of this worker; None: the only one.
            former: what is known of the former worker of the slot.
            address: where SIP is spoken from.
        """
        ring_timeout = self._limits.ring_timeout
        # A claim is dialled within STALE_CLAIM; no INVITE is sent after the ring time-out.
        redial_after, last_invite = ring_timeout + REDIAL_MARGIN, STALE_CLAIM + ring_timeout
        if self._journal is not None:
            await apply_journal(self._database, self.dialer_id, self._journal, self._clock)
        mark = await asyncio.to_thread(self._mark.read)
        place = slot or Slot(self.dialer_id)

        def work(conn: Connection) -> tuple[Lease, Recovered]:
            now = self._clock()
            # Before the recovery, which makes calls due again.
            pausing.pause_if_older(conn, self.dialer_id, mark, now)
            return recovery.take_over(
                conn, place, self.worker, now, redial_after, last_invite, former, address
            )

        self._lease, recovered = await self._database.write(work)
        self._attempts = AttemptWriter(self._database, self._lease, self._clock, self._journal)
        self._lease_keeper = LeaseKeeper(
            self._database,
            self._lease,
            self._clock,
            self._lease_clock,
            self._state,
            redial_after,
            last_invite,
            on_lapse=self._abandon_unanswered,
            on_drain=self._on_drain,
            on_recovered=self.wake,
        )
        history = await self._database.read(lambda conn: leases.trunk_history(conn, self.dialer_id))
        if history.has_worked:
            self._dialer.assume_worked()
        if history.paused_reason:
            self._dialer.assume_paused(history.paused_reason)
        return recovered

    async def release(self) -> None:
        """Release the lease, after `run`. Raises UnavailableError."""
        await self._database.write(lambda conn: leases.release(conn, self._lease))

    async def confirm_lease(self) -> bool:
        """Whether the lease still holds; False also if the database does not answer within 3 s.

        If the lease is lost, `run` ends calls that are not answered, and raises LostLease.
        """
        return not self._lease.epoch or await self._lease_keeper.confirm()

    def is_first_worker(self) -> bool:
        """Whether this is the worker that does what one of the dialer's workers must do."""
        if not self._lease.epoch:
            return not self._database.is_shared
        return self._lease_keeper.is_first

    def has_lease(self) -> bool:
        """Whether an INVITE may be sent now."""
        return not self._lease.epoch or self._lease_keeper.is_valid

    async def run(self) -> None:
        """Dial due calls until `drain` has ended.

        Raises LostLease if the lease is lost, after the calls that were answered have ended, unless
        another process waits for that.
        """
        tasks = [
            asyncio.create_task(self._claim_until_drained()),
            asyncio.create_task(self._lease_keeper.run()),
            asyncio.create_task(self._expire_repeatedly()),
            asyncio.create_task(self._watch_for_cancels()),
            asyncio.create_task(self._drained.wait()),  # also while a claim hangs
        ]
        journaling = asyncio.create_task(self._attempts.keep_journal())
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except LostLease as lost:
            # A claim that fails does not know why; a renewal does.
            await self._lease_keeper.confirm()
            why = self._lease_keeper.lost or lost
            await self._end_without_lease(why)
            raise why from None
        finally:
            for task in [*tasks, journaling]:
                task.cancel()
            await asyncio.gather(*tasks, journaling, return_exceptions=True)
            if self._journal is not None:
                self._journal.close()
            self._mark.close()

    @property
    def lost(self) -> int:
        """Results of attempts that could be stored neither in the database nor in the journal."""
        return self._attempts.lost

    async def drain(self, timeout: float) -> None:
        """Stop claiming, let calls run for `timeout` seconds, then end them.

        Calls whose attempts are still unanswered then are requeued. Takes at most `timeout` +
        `ENDING_TIMEOUT` + `WRITING_TIMEOUT` + 1 s, with or without a database: results that it does
        not take go to the journal, or are logged and left to the recovery.
        """
        loop = asyncio.get_running_loop()
        self._draining = True
        self.wake()
        end = loop.time() + timeout
        # The calls of a claim in progress end, or are requeued, like all others.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(end):
                await self._claiming_ended.wait()
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
        log.info("drain_ends_calls", dialer=self.dialer_id, calls=len(late))
        for attempt_id, running in list(self._running.items()):
            running.requeue = True
            self._dialer.cancel(attempt_id)
        end = loop.time() + ENDING_TIMEOUT
        while not all(one.ended for one in self._running.values()) and loop.time() < end:
            await asyncio.wait(late, timeout=_CLAIM_INTERVAL)
        await asyncio.wait(late, timeout=WRITING_TIMEOUT)
        await self._give_up()

    async def _give_up(self) -> None:
        """Stop waiting for attempts and for the writing of their results."""
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
        self._claiming_ended.clear()
        try:
            await self._claim_repeatedly()
        finally:
            self._claiming_ended.set()
        await self._drained.wait()

    async def _claim_repeatedly(self) -> None:
        loop = asyncio.get_running_loop()
        while not self._draining:
            self._wake_event.clear()
            next_claim = loop.time() + _CLAIM_INTERVAL
            try:
                await self._update_shares()
                pause = min(await self._claim_due(), _SHARE if self._shares.is_shared else _POLL)
            except UnavailableError as fault:
                log.warning("claim_failed", dialer=self.dialer_id, fault=str(fault))
                self._failing_since = self._failing_since or self._monotonic()
                pause = _AFTER_FAULT
            except LostLease:
                raise
            except Exception:
                # For example a row that can't be read; running calls must go on.
                log.exception("claim_broke", dialer=self.dialer_id)
                self._failing_since = self._failing_since or self._monotonic()
                pause = 0.0
                await asyncio.sleep(_AFTER_BUG)
            if pause > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._wake_event.wait()
            await asyncio.sleep(next_claim - loop.time())

    async def _claim_due(self) -> float:
        """Claim and start the calls that may start now; returns the seconds until the next try."""
        self._looks_free = False
        try:
            return await self._look()
        finally:
            self._is_free = self._looks_free

    async def _look(self) -> float:
        if self._doubtful:
            await self._undo_doubtful()
        now = self._monotonic()
        load = self._load()
        if self._is_overloaded(load, now):
            return _OVERLOAD_POLL
        if load.messages_late > MESSAGES_LATE:
            return _CLAIM_INTERVAL
        wait = self.recording_faults.wait()
        if wait > 0:
            return min(wait, _POLL)
        free = self._shares.channels + self._shares.otp_channels - len(self._running)
        self._is_hungry = free <= 0
        if free <= 0:
            self._note_pause(await self._database.read(self._paused_by))
            return _POLL
        if not self._dialer.up or not self._lease_keeper.is_valid:
            return _POLL
        if self._dialer.probing:
            free = min(free, 1)
        may_begin = self._shares.may_begin(now)
        allowed = self.recording_faults.limit(min(free, may_begin))
        if allowed <= 0:
            self._is_hungry = may_begin <= 0
            return min(self._shares.rate.wait(), _POLL)
        room = self._room(allowed)
        lanes = tuple(Lane) if room.others > 0 else (Lane.OTP,)
        if not self._more_due:
            due, paused = await self._database.read(
                lambda conn: (self._next_due(conn, lanes), self._paused_by(conn))
            )
            self._failing_since = None
            self._note_pause(paused)
            # Calls that expire meanwhile are ended with the renewal of the lease.
            at = None if paused.reason else due.earliest
            wait = _POLL if at is None else at - self._clock()
            if wait > 0:
                self._looks_free = room.others > 0 and not paused.reason
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
        self._is_hungry = self._more_due = len(claimed) == allowed
        self._looks_free = len(claimed) < min(allowed, room.others) and not self._paused.reason
        self._shares.rate.take(self._monotonic(), len(claimed))
        self.figures.claimed += len(claimed)
        for number, claim in enumerate(claimed, 1):
            self._start(claim, claimed_at)
            self._note_turn(claim)
            if number % AT_ONCE == 0:
                await asyncio.sleep(_SPREAD * AT_ONCE / len(claimed))
        if claimed:
            return 0.0
        # Calls of a paused project stay due.
        return _POLL if self._paused.projects else _NOTHING_CLAIMED

    def _note_turn(self, claim: Claim) -> None:
        self._last_project[claim.lane] = claim.project_id
        if claim.campaign_id is not None:
            self._last_campaign[claim.project_id] = claim.campaign_id
            self._last_campaign.move_to_end(claim.project_id)
            if len(self._last_campaign) > MOST_PROJECTS:
                self._last_campaign.popitem(last=False)

    def _next_due(self, conn: Connection, lanes: Sequence[Lane]) -> NextDue:
        return claims.next_due(
            conn, self.dialer_id, self._clock(), lanes, self._ahead(), self._due_page, self._groups
        )

    def _expire(self, conn: Connection) -> int:
        now, ahead = self._clock(), self._ahead()
        return sum(
            claims.expire(conn, queue_id, now, ahead=ahead, page=self._expiry_pages[queue_id])
            for queue_id in self._queues
        )

    def _paused_by(self, conn: Connection) -> InForce:
        return pausing.in_force(conn, self.dialer_id)

    def _note_pause(self, paused: InForce) -> None:
        if paused.reason != self._paused.reason:
            if paused.reason:
                log.warning("paused", dialer=self.dialer_id, reason=paused.reason)
            else:
                log.info("resumed", dialer=self.dialer_id)
        self._paused = paused

    def _room(self, allowed: int) -> Room:
        """How many of `allowed` calls may be of each lane.

        OTP calls use their own channels first, and at most half of the shared ones.
        """
        shared, reserved = self._shares.channels, self._shares.otp_channels
        otp = self._otp_running
        otp_in_shared = max(0, otp - reserved)
        others = shared - otp_in_shared - (len(self._running) - otp)
        otp_most = reserved + max(1, shared // 2) - otp
        return Room(allowed, min(allowed, max(0, others)), max(0, min(allowed, otp_most)))

    async def _undo_doubtful(self) -> None:
        """Requeue calls that were claimed by a COMMIT that was not confirmed, so never dialled."""
        undone = await self._database.write(
            lambda conn: claims.undo(conn, self._lease, self._doubtful, self._running)
        )
        if undone:
            log.warning("claims_handed_back", dialer=self.dialer_id, claims=undone)
        self._doubtful.clear()

    def _is_overloaded(self, load: LoadSample, now: float) -> bool:
        pressure = self.pressure
        if pressure.look(load, now):
            if pressure.signs:
                signs = ", ".join(sorted(pressure.signs))
                log.warning("claiming_paused", dialer=self.dialer_id, signs=signs)
            else:
                log.info("claiming_resumed", dialer=self.dialer_id)
        return bool(pressure.signs)

    def _expire_and_claim(
        self, conn: Connection, room: Room, lanes: Sequence[Lane]
    ) -> tuple[int, list[Claim]]:
        now = self._clock()
        self._doubtful.add(now)
        ahead = self._ahead()
        expired = self._expire(conn)
        claimed = claims.claim(
            conn,
            self._lease,
            room,
            now,
            lanes,
            self._last_project,
            ahead,
            self._last_campaign,
            self._campaign_pace,
            self._claim_page,
            self._groups,
        )
        return expired, claimed

    def _start(self, claim: Claim, claimed_at: float) -> None:
        running = self._running[claim.attempt_id] = _Running(claim, claimed_at)
        self._otp_running += claim.lane is Lane.OTP
        if claim.campaign_id is not None:
            self._campaign_pace.begin(claim.campaign_id)
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
            if claim.campaign_id is not None:
                self._campaign_pace.end(claim.campaign_id)
            self._wake_event.set()

    def _log_end(self, claim: Claim, result: AttemptResult) -> None:
        answered_at = result.answered_at
        log.info(
            "attempt_ended",
            call=claim.call_id,
            attempt=claim.attempt_id,
            project=claim.project_id,
            dialer=self.dialer_id,
            outcome=result.outcome.value,
            sip_code=result.sip_code,
            seconds=0.0 if answered_at is None else round(result.ended_at - answered_at, 1),
            number=masked(claim.e164),
        )

    async def _dial(self, running: _Running) -> Settlement:
        claim = running.claim
        if self._draining:
            return self._requeue(claim, "the service was stopped")
        is_stale = self._monotonic() - running.claimed_at > STALE_CLAIM
        if is_stale or not self._lease_keeper.is_valid:
            return self._requeue(claim, "the claim was stale before it was dialled")
        if not self._tariff.prices(claim.e164):
            # The tariff has changed since the call was placed.
            return self._unpriced(claim)
        is_answered = False

        async def answered(answered_at: float) -> bool:
            nonlocal is_answered
            is_answered = await self._attempts.answered(
                claim.attempt_id, answered_at, is_reported=CALL_ANSWERED in claim.events
            )
            running.is_answered = is_answered
            self.figures.answered += is_answered
            return is_answered

        def ringing(rang_at: float) -> None:
            running.rang_at = rang_at
            self._attempts.ringing(
                claim.attempt_id, rang_at, is_reported=CALL_RINGING in claim.events
            )

        try:
            result = await self._dialer.dial(claim, answered, ringing)
        except Exception:
            # UNCERTAIN bounds the redials: a bug that always recurs must not ring a phone forever.
            log.exception("attempt_failed", attempt=claim.attempt_id, number=masked(claim.e164))
            result = AttemptResult(
                Outcome.INTERRUPTED if is_answered else Outcome.UNCERTAIN,
                started_at=claim.started_at,
                ended_at=self._clock(),
                detail="a fault inside the dialer",
            )
        is_ours = running.requeue and result.outcome is Outcome.CANCELED
        if is_ours and (running.rang_at is None or result.answered_at is not None):
            # Its INVITE may have been sent, so the redial waits for the retry interval.
            return self._requeue(claim, "the service was stopped", claim.rule.retry_interval)
        try:
            rule = claim.rule._replace(
                uncertain_redials=self._limits.uncertain_redials,
                longest_ring=self._limits.ring_timeout + RING_MARGIN,
            )
            # UNCERTAIN bounds the redials: repeated restarts must not ring a phone each time.
            counted = result._replace(outcome=Outcome.UNCERTAIN) if is_ours else result
            decision = decide(rule, counted)
            bill = self._tariff.bill(claim.e164, result)
        except Exception:
            log.exception("attempt_not_decided", attempt=claim.attempt_id, call=claim.call_id)
            return settling.minimal(claim.attempt_id, claim.call_id, result, self._clock())
        return Settlement(claim.attempt_id, claim.call_id, result, decision, bill)

    async def opt_out(self, attempt_id: str) -> None:
        """Put the number of a running attempt on its project's do-not-call list.

        Tries again until that is durable, then returns; ends earlier if it is cancelled.
        """
        claim = self._running[attempt_id].claim
        while True:
            try:
                await self._database.write(
                    lambda conn: do_not_call.add(conn, claim.project_id, claim.e164)
                )
            except UnavailableError as fault:
                log.warning("opt_out_not_written", call=claim.call_id, fault=str(fault))
                await asyncio.sleep(_AFTER_FAULT)
            else:
                return

    def _unpriced(self, claim: Claim) -> Settlement:
        now = self._clock()
        why = "no line of the tariff prices the number"
        result = AttemptResult(Outcome.REFUSED, now, now, detail=why)
        decision = Finish(CallStatus.ERROR, why)
        return Settlement(claim.attempt_id, claim.call_id, result, decision)

    def _requeue(self, claim: Claim, why: str, delay: float = 0.0) -> Settlement:
        """Ends an attempt for reasons of the service; its call is due again in `delay` seconds."""
        now = self._clock()
        result = AttemptResult(Outcome.CANCELED, claim.started_at, now, detail=why)
        return Settlement(claim.attempt_id, claim.call_id, result, Requeue(now + delay), NOTHING)

    async def _watch_for_cancels(self) -> None:
        """End running attempts whose calls were cancelled by their client."""
        while True:
            self._cancel_event.clear()
            if self._running:
                try:
                    wanted = await self._database.read(
                        lambda conn: claims.cancel_requests(conn, self.dialer_id)
                    )
                except UnavailableError as fault:
                    log.warning("cancels_not_read", dialer=self.dialer_id, fault=str(fault))
                    wanted = []
                except Exception:
                    log.exception("cancels_broke", dialer=self.dialer_id)
                    wanted = []
                    await asyncio.sleep(_AFTER_BUG)
                for attempt_id in wanted:
                    if attempt_id in self._running:
                        self._dialer.cancel(attempt_id)
                # Requests that come meanwhile share the next query.
                await asyncio.sleep(_CANCEL_PAUSE)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL):
                    await self._cancel_event.wait()

    async def _expire_repeatedly(self) -> None:
        """End expired calls also while every channel is taken, and sync the mark of the claims."""
        while True:
            await asyncio.sleep(_EXPIRE)
            try:
                expired = await self._database.write(self._expire)
                await asyncio.to_thread(self._mark.sync)
            except UnavailableError:
                continue  # the renewal of the lease has logged it
            except Exception:
                log.exception("expiry_broke", dialer=self.dialer_id)
                continue
            if expired:
                self._on_settled()

    def _state(self) -> WorkerState:
        begun = self.figures.claimed - self._claimed_before
        self._claimed_before = self.figures.claimed
        return WorkerState(
            up=self._dialer.up,
            paused_reason=self._dialer.paused_reason,
            has_worked=self._dialer.has_worked,
            channels=len(self._running),
            calls_per_second=begun / self._lease_keeper.every,
            late_ms=self._late_ms(),
            is_free=self._is_free and self._lease_keeper.is_valid and not self._draining,
        )

    async def _update_shares(self) -> None:
        """Report what this worker uses and wants of the shared limits, and take its shares.

        Between two claims, so that what it uses does not grow meanwhile. Raises UnavailableError.
        """
        now = self._monotonic()
        if now - self._shared_at < _SHARE and not self._campaign_pace.has_new:
            return
        self._shared_at = now
        if not self._shares.is_shared:
            await self._database.read(self._find_occupied)
            return
        shares, pace = self._shares, self._campaign_pace
        is_able = self._dialer.up and not self._draining and self._lease_keeper.is_valid
        usage = Usage(len(self._running), self._otp_running, self._is_hungry, is_able)
        needs = {**shares.needs(usage), **pace.needs(is_able=is_able)}

        def taken(conn: Connection) -> dict[str, int]:
            self._find_occupied(conn)
            return {**shares.taken(), **pace.taken()}

        try:
            usable = await self._database.write(
                lambda conn: worker_shares.update(conn, self._lease, needs, taken)
            )
        except BaseException:
            # It may have been written, with less than what this worker had.
            shares.apply({})
            raise
        shares.apply(usable or {})

    def _find_occupied(self, conn: Connection) -> None:
        """Count the channels of calls whose worker is gone: there may be some if one has gone."""
        dialers = self._shares.group.dialer_ids
        # Those of its groups, too: they dial the same campaigns.
        related = {*dialers, *(each for of in self._groups for each in of.group.dialers)}
        workers = {(e.dialer_id, e.epoch) for each in related for e in leases.workers(conn, each)}
        self._campaign_pace.workers = sum(each == self.dialer_id for each, _ in workers)
        occupied = self._shares.occupied
        if workers != self._seen_workers or occupied.channels or occupied.by_campaign:
            now = self._clock()
            self._shares.occupied = number_exclusion.occupied(conn, dialers, now)
            self._seen_workers = workers

    def _abandon_unanswered(self) -> None:
        """End the attempts that are not answered: other workers may make their calls."""
        for attempt_id, running in list(self._running.items()):
            if not running.is_answered:
                running.requeue = True
                self._dialer.abandon(attempt_id)

    async def _end_without_lease(self, lost: LostLease) -> None:
        """End what is not answered; wait for answered calls, unless another process waits too."""
        self._draining = True
        self._abandon_unanswered()
        if lost.is_fenced:
            for attempt_id in list(self._running):
                self._dialer.abandon(attempt_id)
            return
        log.warning("lease_lost", dialer=self.dialer_id, calls=len(self._running))
        while tasks := [each.task for each in self._running.values() if each.task]:
            await asyncio.wait(tasks)
