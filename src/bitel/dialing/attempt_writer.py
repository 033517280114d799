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

ANSWER_TIMEOUT = 3.0
"""Seconds that the database may take to store an answer; the callee hears silence meanwhile."""

WRITE_INTERVAL = 0.04
"""Seconds between two writes. It delays audio after an answer, and the release of a channel after
an end; a shorter one costs more CPU, since a transaction costs as much as a few calls."""

JOURNAL_AFTER: Final = 2.0
"""Seconds after which a settlement that is not in the database is also written to the journal."""

JOURNAL_TIMEOUT: Final = 1.0
"""Seconds that the journal may take at the exit."""

RINGING_DELAY = 0.2
"""Seconds until ringing is written: a call that is answered sooner needs no such write."""


class _Answered(NamedTuple):
    attempt_id: str
    answered_at: float
    is_reported: bool


class _Ringing(NamedTuple):
    rang_at: dict[str, float]
    is_reported: bool = False


_Item = _Answered | _Ringing | Settlement


class _Unwritten(NamedTuple):
    settlement: Settlement
    since: float
    written: asyncio.Future[bool]


class AttemptWriter:
    """Writes ringing, answers and ends of attempts under one lease.

    Ends that are not in the database within `JOURNAL_AFTER` are kept in `journal`, if there is one,
    until they are.
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
        # One thread, so that an append waits for a clear that has begun.
        self._journal_thread = ThreadPoolExecutor(1, "journal")
        self._batcher: Batcher[_Item, bool] = Batcher(
            self._write, rest=WRITE_INTERVAL, retries=True
        )
        self._unwritten: dict[str, _Unwritten] = {}
        self._journaled: set[str] = set()
        self._given_up = False
        self.lost = 0
        """Settlements that were given up and are in no journal."""
        # Unwritten ringing, by attempt: when it was reported (loop time), and `rang_at`.
        self._ringing: dict[str, tuple[float, float]] = {}
        self._ringing_timer: asyncio.TimerHandle | None = None

    @property
    def oldest_unwritten(self) -> float | None:
        """Loop time since which the oldest unwritten settlement has waited; None without one."""
        return min((one.since for one in self._unwritten.values()), default=None)

    def ringing(self, attempt_id: str, rang_at: float, *, is_reported: bool = False) -> None:
        """Store that an attempt rings, within about twice `RINGING_DELAY`.

        Not written if an answer or an end comes first, unless its call asks for an event.
        """
        if is_reported:
            ringing = _Ringing({attempt_id: rang_at}, is_reported=True)
            self._batcher.put(ringing).add_done_callback(_log_unwritten)
            return
        loop = asyncio.get_running_loop()
        self._ringing[attempt_id] = loop.time(), rang_at
        if self._ringing_timer is None:
            self._ringing_timer = loop.call_later(RINGING_DELAY, self._write_ringing)

    def _write_ringing(self) -> None:
        loop = asyncio.get_running_loop()
        before = loop.time() - RINGING_DELAY
        due = {key: rang_at for key, (at, rang_at) in self._ringing.items() if at <= before}
        for attempt_id in due:
            del self._ringing[attempt_id]
        if due:
            self._batcher.put(_Ringing(due)).add_done_callback(_log_unwritten)
        self._ringing_timer = (
            loop.call_later(RINGING_DELAY, self._write_ringing) if self._ringing else None
        )

    async def answered(
        self, attempt_id: str, answered_at: float, *, is_reported: bool = False
    ) -> bool:
        """Persist an answer, with an event if its call asks for one.

        If it returns False, nothing may be played.

        False: the claim is lost, the database did not answer within `ANSWER_TIMEOUT`, or it refused
        the answer, which is logged.
        """
        self._ringing.pop(attempt_id, None)
        written = self._batcher.put(_Answered(attempt_id, answered_at, is_reported))
        loop = asyncio.get_running_loop()
        timer = loop.call_later(ANSWER_TIMEOUT, _give_up_answer, attempt_id, written)
        try:
            return await written
        except Exception as fault:
            _log_fault("answer_refused", fault, attempt=attempt_id)
            return False
        finally:
            timer.cancel()

    async def settle(self, settlement: Settlement) -> bool:
        """Store an attempt's end, however long the database takes, until `give_up`.

        A settlement that the database refuses is written in its minimal form. Returns False, and
        logs it, if the claim is lost or the minimal form is refused too.
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
            # Left to the recovery at the next start.
            _log_fault("attempt_left_open", fault, **about)
            return False

    async def keep_journal(self) -> None:
        """Write settlements to the journal that have waited `JOURNAL_AFTER`; never returns.

        A process that is killed during an outage of the database loses only the last seconds. The
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
        """Stop waiting for the database: write what is unwritten to the journal, or log it."""
        self._given_up = True
        if not self._journaled <= self._unwritten.keys():
            # Some entries are in the database now; the next start would fail to apply them.
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
        answered_at = {
            one.attempt_id: one.answered_at for one in items if isinstance(one, _Answered)
        }
        rang_at = {
            key: at for one in items if isinstance(one, _Ringing) for key, at in one.rang_at.items()
        }
        ringing = {
            key
            for one in items
            if isinstance(one, _Ringing) and one.is_reported
            for key in one.rang_at
        }
        answered = {
            one.attempt_id for one in items if isinstance(one, _Answered) and one.is_reported
        }
        settlements = [one for one in items if isinstance(one, Settlement)]
        now = self._clock()

        def write(conn: Connection) -> tuple[set[str], set[str]]:
            if rang_at:
                claims.mark_ringing(conn, self._lease, rang_at, ringing)
            marked: set[str] = set()
            if answered_at:
                marked = claims.mark_answered(conn, self._lease, answered_at, answered)
            return marked, settling.settle(conn, self._lease, settlements, now)

        marked, settled = await self._database.write(write)
        return [
            isinstance(one, _Ringing)
            or one.attempt_id in (marked if isinstance(one, _Answered) else settled)
            for one in items
        ]


def _log_unwritten(written: asyncio.Future[bool]) -> None:
    if not written.cancelled() and (fault := written.exception()) is not None:
        log.error("ringing_not_recorded", exc_info=fault)


async def apply_journal(
    database: Database, dialer_id: str, journal: Journal, clock: Callable[[], float]
) -> None:
    """Settle the attempts in the journal that are still open, then clear the journal.

    Call it before the recovery. Settlements that can't be applied are logged. Raises
    UnavailableError if the database can't be written; the journal then stays as it is.
    """
    # The first entry of an attempt counts: a later one is its minimal form.
    left = {one.attempt_id: one for one in reversed(await asyncio.to_thread(journal.open))}
    applied: set[str] = set()

    async def settle(some: Sequence[Settlement]) -> Exception | None:
        """Return why the database refused them, if it did."""
        now = clock()
        try:
            applied.update(
                await database.write(
                    lambda conn: settling.settle_journaled(conn, dialer_id, some, now)
                )
            )
        except UnavailableError:
            raise
        except Exception as fault:
            return fault
        return None

    if fault := await settle(list(left.values())):
        _log_fault("journal_applied_one_by_one", fault)
        for one in left.values():
            if fault := await settle([one]):
                _log_fault("settlement_refused", fault, **log_fields(one))
                plain = settling.minimal(one.attempt_id, one.call_id, one.result, clock())
                if fault := await settle([plain]):
                    _log_fault("attempt_left_open", fault, **log_fields(one))
    for attempt_id, one in left.items():
        if attempt_id not in applied:
            log.error("settlement_not_applied", **log_fields(one))
    if applied:
        log.warning("settlements_applied", dialer=dialer_id, settlements=len(applied))
    await asyncio.to_thread(journal.clear)


def log_fields(one: Settlement) -> dict[str, str]:
    """The fields of a settlement that the log shows: no phone number and no DTMF digits."""
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
    # Without the driver's statement and parameters, which may be private.
    log.error(event, fault=f"{type(fault).__name__}: {db_errors.first_line(fault)}", **about)


def _give_up_answer(attempt_id: str, written: asyncio.Future[bool]) -> None:
    if not written.done():
        log.error("answer_not_recorded", attempt=attempt_id)
        written.set_result(False)
