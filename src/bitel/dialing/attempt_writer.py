"""Writes ringing, answers and ends of a dispatcher's attempts, many per transaction."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple, TypeVar

import structlog
from sqlalchemy import Connection

from bitel.batcher import Batcher
from bitel.dialing.journal import Journal
from bitel.domain.retry import Finish
from bitel.errors import UnavailableError
from bitel.store import claims, db_errors, settling
from bitel.store.database import Database
from bitel.store.leases import Lease
from bitel.store.settling import Settlement

log = structlog.get_logger(__name__)

T = TypeVar("T")

ANSWER_PATIENCE = 3.0
"""Seconds that somebody who has answered is kept waiting for the database, in silence."""

REST = 0.04
"""Seconds from one write to the next: so long somebody who has answered may wait in silence, and
an attempt that is over keeps its channel. A transaction costs as much CPU as a few calls do."""

JOURNAL_AFTER: Final = 2.0
"""Seconds after which a settlement that is not in the database is written to the journal too."""

JOURNAL_TIMEOUT: Final = 1.0
"""Seconds that the journal may take at the exit."""

RINGING_DELAY = 0.2
"""Seconds until ringing is written, so that a call answered at once costs no write for it."""


class _Heard(NamedTuple):
    attempt_id: str
    answered_at: float


class _Ringing(NamedTuple):
    rang_at: dict[str, float]


_Item = _Heard | _Ringing | Settlement


class _Unwritten(NamedTuple):
    settlement: Settlement
    since: float
    written: asyncio.Future[bool]


class AttemptWriter:
    """Writes ringing, answers and ends of attempts under one lease.

    Ends that the database does not take within `JOURNAL_AFTER` are kept in `journal`, if there is
    one, until they are in the database.
    """

    def __init__(
        self,
        database: Database,
        lease: Lease,
        clock: Callable[[], float],
        journal: Journal | None = None,
    ) -> None:
        self._database = database
        self._lease = lease
        self._clock = clock
        self._journal = journal
        # One thread, so that what is appended after a clearing began is not cleared by it.
        self._journal_thread = ThreadPoolExecutor(1, "journal")
        self._batcher: Batcher[_Item, bool] = Batcher(self._write, rest=REST, retries=True)
        self._unwritten: dict[str, _Unwritten] = {}
        self._journaled: set[str] = set()
        self._given_up = False
        self.lost = 0
        """Settlements that were given up, and are in no journal."""
        # Attempts that ring, unwritten: by attempt when that was reported (loop time), and rang_at.
        self._ringing: dict[str, tuple[float, float]] = {}
        self._ringing_timer: asyncio.TimerHandle | None = None

    @property
    def oldest_unwritten(self) -> float | None:
        """Since when an end of an attempt has been waiting to be written (loop time), if one is."""
        return min((one.since for one in self._unwritten.values()), default=None)

    def ringing(self, attempt_id: str, rang_at: float) -> None:
        """Make durable that an attempt rings, within about twice `RINGING_DELAY`.

        Nothing waits for it: an answer or an end that comes first is written in its place.
        """
        loop = asyncio.get_running_loop()
        self._ringing[attempt_id] = loop.time(), rang_at
        if self._ringing_timer is None:
            self._ringing_timer = loop.call_later(RINGING_DELAY, self._write_ringing)

    def _write_ringing(self) -> None:
        loop = asyncio.get_running_loop()
        before = loop.time() - RINGING_DELAY
        ripe: dict[str, float] = {}
        for attempt_id, (reported, rang_at) in self._ringing.items():
            if reported > before:
                break  # the rest was reported later
            ripe[attempt_id] = rang_at
        for attempt_id in ripe:
            del self._ringing[attempt_id]
        if ripe:
            self._batcher.put(_Ringing(ripe)).add_done_callback(_log_unwritten)
        self._ringing_timer = (
            loop.call_later(RINGING_DELAY, self._write_ringing) if self._ringing else None
        )

    async def answered(self, attempt_id: str, answered_at: float) -> bool:
        """Persist an answer. False: it is not persisted, so nothing may be played.

        That is so when the claim is lost, when the database does not answer within
        `ANSWER_PATIENCE`, and when it refuses this answer, which is logged.
        """
        self._ringing.pop(attempt_id, None)
        written = self._batcher.put(_Heard(attempt_id, answered_at))
        loop = asyncio.get_running_loop()
        timer = loop.call_later(ANSWER_PATIENCE, _give_up_answer, attempt_id, written)
        try:
            return await written
        except Exception as fault:
            _log_fault("answer_refused", fault, attempt=attempt_id)
            return False
        finally:
            timer.cancel()

    async def settle(self, settlement: Settlement) -> bool:
        """Make an attempt's end durable, however long the database takes, until `give_up`.

        One that the database refuses is written in a plain form, without what it may have been
        refused for. False, and logged: it is not written, as the claim is lost or that was refused
        too.
        """
        about = {"attempt": settlement.attempt_id, "call": settlement.call_id}
        try:
            written = await self._settle(settlement)
        except Exception as fault:
            _log_fault("settlement_refused", fault, **about)
        else:
            if not written:
                log.error("claim_lost", **about)
            return written
        now = self._clock()
        plain = settling.minimal(settlement.attempt_id, settlement.call_id, settlement.result, now)
        try:
            return await self._settle(plain)
        except Exception as fault:
            # The recovery at the next start decides about it.
            _log_fault("attempt_left_open", fault, **about)
            return False

    async def keep_journal(self) -> None:
        """Keep in the journal what the database has not taken for `JOURNAL_AFTER`; never returns.

        A process that is killed while the database is away then loses only the last seconds. The
        journal is cleared once all of its settlements are in the database.
        """
        while self._journal is not None:
            await asyncio.sleep(JOURNAL_AFTER / 2)
            try:
                await self._update_journal(self._journal)
            except Exception:
                log.exception("journal_not_kept")

    async def _update_journal(self, journal: Journal) -> None:
        now = asyncio.get_running_loop().time()
        late = [
            one.settlement
            for attempt_id, one in self._unwritten.items()
            if one.since <= now - JOURNAL_AFTER and attempt_id not in self._journaled
        ]
        if late:
            left = await self._in_journal_thread(journal.append, late)
            self._note_journaled(late, left)
        elif self._journaled and self._journaled.isdisjoint(self._unwritten):
            self._journaled.clear()
            await self._in_journal_thread(journal.clear)

    async def finish(self) -> None:
        """Clear the journal, once all settlements are in the database. After `give_up`: no-op."""
        if not self._given_up:
            await self._clear_journal()

    async def give_up(self) -> None:
        """Wait for the database no longer: what is unwritten goes to the journal, or is logged."""
        self._given_up = True
        if not self._journaled <= self._unwritten.keys():
            # Otherwise the next start would complain of entries that it can't apply.
            await self._clear_journal()
        unwritten = list(self._unwritten.values())
        settlements = [one.settlement for one in unwritten]
        await self._put_into_journal(
            [one for one in settlements if one.attempt_id not in self._journaled]
        )
        for one in unwritten:
            if not one.written.done():
                one.written.set_result(True)

    async def _settle(self, settlement: Settlement) -> bool:
        self._ringing.pop(settlement.attempt_id, None)
        if self._given_up:
            await self._put_into_journal([settlement])
            return True
        written = self._batcher.put(settlement)
        since = asyncio.get_running_loop().time()
        self._unwritten[settlement.attempt_id] = _Unwritten(settlement, since, written)
        try:
            return await written
        finally:
            del self._unwritten[settlement.attempt_id]

    async def _in_journal_thread(self, work: Callable[..., T], *arguments: object) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._journal_thread, work, *arguments)

    async def _clear_journal(self) -> None:
        if self._journal is not None:
            self._journaled.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(JOURNAL_TIMEOUT):
                    await self._in_journal_thread(self._journal.clear)

    def _note_journaled(
        self, settlements: Sequence[Settlement], left: Sequence[Settlement]
    ) -> None:
        kept = {one.attempt_id for one in settlements} - {one.attempt_id for one in left}
        self._journaled |= kept
        if kept or not self._given_up:  # at the exit, what is left is logged one by one
            log.warning("settlements_journaled", settlements=len(kept), left=len(left))

    async def _put_into_journal(self, settlements: Sequence[Settlement]) -> None:
        if not settlements:
            return
        left = settlements
        if self._journal is not None:
            try:
                async with asyncio.timeout(JOURNAL_TIMEOUT):
                    left = await self._in_journal_thread(self._journal.append, settlements)
            except TimeoutError:
                log.error("journal_not_written", fault="the disk does not answer")
        self._note_journaled(settlements, left)
        for one in left:
            self.lost += 1
            log.error("settlement_lost", **log_fields(one))

    async def _write(self, items: Sequence[_Item]) -> Sequence[bool]:
        if self._given_up:
            raise UnavailableError("the service stops")
        answered_at = {one.attempt_id: one.answered_at for one in items if isinstance(one, _Heard)}
        rang_at = {
            key: at for one in items if isinstance(one, _Ringing) for key, at in one.rang_at.items()
        }
        settlements = [one for one in items if isinstance(one, Settlement)]
        now = self._clock()

        def write(conn: Connection) -> tuple[set[str], set[str]]:
            if rang_at:
                claims.mark_ringing(conn, self._lease, rang_at)
            heard = claims.mark_answered(conn, self._lease, answered_at) if answered_at else set()
            return heard, settling.settle(conn, self._lease, settlements, now)

        heard, settled = await self._database.write(write)
        return [
            isinstance(one, _Ringing)
            or one.attempt_id in (heard if isinstance(one, _Heard) else settled)
            for one in items
        ]


def _log_unwritten(written: asyncio.Future[bool]) -> None:
    if not written.cancelled() and (fault := written.exception()) is not None:
        log.error("ringing_not_recorded", exc_info=fault)


async def apply_journal(
    database: Database, dialer_id: str, journal: Journal, clock: Callable[[], float]
) -> None:
    """Settle what an earlier process left in the journal, where it is still open; then empty it.

    To be called before the recovery. What can't be applied is logged. Raises UnavailableError, and
    leaves the journal as it is, when the database can't be written.
    """
    # Of several entries of an attempt the first counts: a later one is its minimal form.
    left = {one.attempt_id: one for one in reversed(await asyncio.to_thread(journal.open))}
    applied: set[str] = set()

    async def settle(some: Sequence[Settlement]) -> None:
        now = clock()
        applied.update(
            await database.write(lambda conn: settling.settle_journaled(conn, dialer_id, some, now))
        )

    try:
        await settle(list(left.values()))
    except UnavailableError:
        raise
    except Exception as fault:
        _log_fault("journal_applied_one_by_one", fault)
        for one in left.values():
            try:
                await settle([one])
            except UnavailableError:
                raise
            except Exception as refused:
                _log_fault("settlement_refused", refused, **log_fields(one))
                plain = settling.minimal(one.attempt_id, one.call_id, one.result, clock())
                try:
                    await settle([plain])
                except UnavailableError:
                    raise
                except Exception as also_refused:
                    _log_fault("attempt_left_open", also_refused, **log_fields(one))
    for attempt_id, one in left.items():
        if attempt_id not in applied:
            log.error("settlement_not_applied", **log_fields(one))
    if applied:
        log.warning("settlements_applied", dialer=dialer_id, settlements=len(applied))
    await asyncio.to_thread(journal.clear)


def log_fields(one: Settlement) -> dict[str, str]:
    """A settlement as the log shows it: no number, nothing that was keyed."""
    decision = one.decision
    then = decision.status.name if isinstance(decision, Finish) else "due again"
    return {
        "attempt": one.attempt_id,
        "call": one.call_id,
        "outcome": one.result.outcome.value,
        "then": then,
        "price": str(one.bill.price),
    }


def _log_fault(event: str, fault: Exception, **about: str) -> None:
    # What a driver says goes without its statement and parameters, which may be private.
    words = f"{type(fault).__name__}: {db_errors.first_line(fault)}"
    log.error(event, fault=words, **about)


def _give_up_answer(attempt_id: str, written: asyncio.Future[bool]) -> None:
    if not written.done():
        log.error("answer_not_recorded", attempt=attempt_id)
        written.set_result(False)
