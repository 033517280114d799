"""A project with a recording over a real store, and a dialer that follows a script."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from sqlalchemy import Connection

from bitel.dialing.backpressure import LoadSample
from bitel.dialing.dialer import OnAnswered, OnRinging, ignore_ringing
from bitel.dialing.dispatcher import Dispatcher
from bitel.dialing.limit_shares import Limits
from bitel.domain.attempts import AttemptResult, DialRequest, Outcome
from bitel.domain.calls import Call, Lane
from bitel.domain.pricing import Rate, Tariff
from bitel.store import calls, projects
from bitel.store.database import Database
from tests.support import call_rows, factories
from tests.support.clocks import FakeClock
from tests.support.waiting import until

TARIFF = Tariff((Rate("+98", Decimal(60), increment=1),))
RING_TIMEOUT = 45.0


@dataclass
class ScriptedDialer:
    """Ends each attempt as the next word of its script says; ANSWERED lasts `talk` seconds."""

    clock: FakeClock
    script: list[Outcome]
    talk: float = 10.0
    hold: asyncio.Event | None = None
    orders: list[DialRequest] = field(default_factory=list)
    busiest: int = 0
    called_off: set[str] = field(default_factory=set)
    abandoned: set[str] = field(default_factory=set)
    up: bool = True
    probing: bool = False
    paused_reason: str = ""
    has_worked: bool = False
    rings: bool = False
    pending: bool = False
    """Whether uncertain attempts end without a final response."""
    _now_busy: int = 0

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def assume_worked(self) -> None:
        self.has_worked = True

    def assume_paused(self, reason: str) -> None:
        self.paused_reason = reason

    async def dial(
        self, order: DialRequest, heard: OnAnswered, rang: OnRinging = ignore_ringing
    ) -> AttemptResult:
        self.orders.append(order)
        if self.rings:
            rang(self.clock())
        self._now_busy += 1
        self.busiest = max(self.busiest, self._now_busy)
        try:
            return await self._dial(order, heard)
        finally:
            self._now_busy -= 1

    async def _dial(self, order: DialRequest, heard: OnAnswered) -> AttemptResult:
        started_at = self.clock()
        if self.hold is not None:
            await self.hold.wait()
        if order.attempt_id in self.called_off:
            return AttemptResult(Outcome.CANCELED, started_at, self.clock())
        outcome = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if outcome is not Outcome.ANSWERED:
            pending = outcome is Outcome.UNCERTAIN and self.pending
            return AttemptResult(
                outcome, started_at, self.clock(), detail="as scripted", is_pending=pending
            )
        answered_at = self.clock()
        if not await heard(answered_at):
            return AttemptResult(Outcome.TRUNK_TROUBLE, started_at, self.clock())
        return AttemptResult(outcome, started_at, answered_at + self.talk, answered_at)

    def cancel(self, attempt_id: str) -> None:
        self.called_off.add(attempt_id)
        if self.hold is not None:
            self.hold.set()

    def abandon(self, attempt_id: str) -> None:
        self.abandoned.add(attempt_id)
        self.cancel(attempt_id)


class Play:
    """A project with a recording, and a dispatcher over its database."""

    def __init__(self, database: Database, clock: FakeClock) -> None:
        self.database = database
        self.clock = clock
        self.project_id = ""
        self.recording_id = ""
        self._numbers = itertools.count()
        self._looks = 0

    async def set_up(self) -> None:
        def work(conn: Connection) -> tuple[str, str]:
            now = self.clock()
            project = projects.create(conn, "acme", now).id
            return project, factories.make_recording(conn, project, now, duration=10.0).id

        self.project_id, self.recording_id = await self.database.write(work)

    async def place(
        self,
        count: int = 1,
        lane: Lane = Lane.SINGLE,
        project_id: str | None = None,
        first: int | None = None,
        **terms: float,
    ) -> list[str]:
        """Place calls, each to a number of its own; with `first`, to those that begin with it."""
        now = self.clock()
        otp = lane is Lane.OTP
        numbers = self._numbers if first is None else itertools.count(first)
        new = [
            factories.new_call(
                project_id or self.project_id,
                None if otp or project_id else self.recording_id,
                now,
                phone_number=f"0912{n:07}",
                e164=f"+98912{n:07}",
                lane=lane,
                digits="123" if otp or project_id else "",
                retry_count=int(terms.get("retries", 1)),
                retry_interval=int(terms.get("interval", 60)),
                expires_at=now + terms.get("time_to_live", 14400),
            )
            for n in itertools.islice(numbers, count)
        ]
        await self.database.write(lambda conn: call_rows.place(conn, new))
        return [call.id for call in new]

    async def call(self, call_id: str) -> Call:
        found = await self.database.read(lambda conn: calls.find(conn, self.project_id, call_id))
        assert found is not None
        return found

    def dispatcher(
        self,
        dialer: ScriptedDialer,
        channels: int = 100,
        pace: float = 1000.0,
        otp_channels: int = 0,
        load: Callable[[], LoadSample] = LoadSample,
        uncertain_redials: int = 1,
        worker: str = "worker-1",
        monotonic: FakeClock | None = None,
    ) -> Dispatcher:
        def looking() -> LoadSample:
            # The first thing that a dispatcher does where it looks for calls to claim.
            self._looks += 1
            return load()

        return Dispatcher(
            "main",
            worker,
            dialer,
            Limits(channels, pace, RING_TIMEOUT, otp_channels, uncertain_redials),
            self.database,
            TARIFF,
            self.clock,
            load=looking,
            monotonic=monotonic or self.clock,
        )

    async def looked(self, dispatcher: Dispatcher | None = None) -> None:
        """Return once the dispatcher at work has looked for calls, from beginning to end.

        Woken again and again where it is given. The look that may be under way does not count:
        what has changed before this was called has been seen when it returns.
        """
        begun = self._looks
        async with asyncio.timeout(10.0):
            while self._looks < begun + 2:
                if dispatcher is not None:
                    dispatcher.wake()
                await asyncio.sleep(0.01)

    async def dialled(self, dialer: ScriptedDialer, count: int = 1) -> None:
        """Return once that many calls have been dialled."""
        await until(lambda: len(dialer.orders) >= count)

    async def until(self, ready: Callable[[Sequence[Call]], bool], ids: Sequence[str]) -> None:
        async with asyncio.timeout(10.0):
            while not ready([await self.call(call_id) for call_id in ids]):
                await asyncio.sleep(0.01)

    async def until_over(self, ids: Sequence[str]) -> None:
        await self.until(lambda found: all(call.status.final for call in found), ids)


@contextlib.asynccontextmanager
async def at_work(dispatcher: Dispatcher) -> AsyncIterator[None]:
    await dispatcher.take_over()
    task = asyncio.create_task(dispatcher.run())
    try:
        yield
    finally:
        await dispatcher.drain(5.0)
        await task
