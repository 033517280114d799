"""Projects with receivers, events that are due, and a deliverer that works on them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection, insert, select, update

from bitel.domain.calls import CallStatus
from bitel.domain.ids import new_id, new_ids
from bitel.store import call_details, call_events, projects, webhooks
from bitel.store.database import Database
from bitel.store.schema import PENDING, call, project, webhook_event
from bitel.store.webhooks import Event
from bitel.webhooks.deliverer import Deliverer
from bitel.webhooks.signing import new_secret
from tests.support.waiting import until

if TYPE_CHECKING:
    from tests.support.clocks import FakeClock

T = TypeVar("T")


@dataclass
class Post:
    """What a test of delivery starts from."""

    database: Database
    clock: FakeClock

    def do(self, work: Callable[[Connection], T]) -> T:
        return self.database.write_now(work)

    def project(self, url: str | None, name: str = "shop") -> str:
        """A project with a receiver."""
        made = self.do(lambda conn: projects.create(conn, name, self.clock()))
        self.set(made.id, webhook_url=url, webhook_secret=new_secret())
        return made.id

    def set(self, project_id: str, **values: Any) -> None:
        self.do(
            lambda conn: conn.execute(
                update(project).where(project.c.id == project_id).values(**values)
            )
        )

    def column(self, project_id: str, name: str) -> Any:
        wanted = select(project.c[name]).where(project.c.id == project_id)
        return self.do(lambda conn: conn.execute(wanted).scalar_one())

    def events(self, project_id: str, count: int = 1, **call_values: Any) -> list[str]:
        """Calls that have just ended, each with its event; the events' ids."""
        now = self.clock()
        call_rows, event_rows = [], []
        for _ in range(count):
            values: dict[str, Any] = {
                "id": new_id(now),
                "project_id": project_id,
                "dialer_id": "main",
                "phone_number": "0912 123 4567",
                "e164": "+989121234567",
                "digits": "123",
                "lane": 1,
                "status": int(CallStatus.NORMAL),
                "retry_count": 1,
                "retries_left": 1,
                "retry_interval": 60,
                "requested_at": now - 60.5,
                "expires_at": now + 14_400,
                "trouble": 0,
                "attempts": 1,
                "executed_at": now - 30,
                "finished_at": now,
                "bill_seconds": 12,
                "price": Decimal("34.2"),
                "reason": "",
            }
            call_rows.append(values | call_values)
            event = {"id": new_id(now), "project_id": project_id, "call_id": values["id"],
                     "created_at": now, "due_at": now, "tries": 0, "state": PENDING}  # fmt: skip
            event_rows.append(event)

        def work(conn: Connection) -> None:
            conn.execute(insert(call), call_rows)
            conn.execute(insert(webhook_event), event_rows)

        self.do(work)
        return [row["id"] for row in event_rows]

    def more_events(self, event: Event, count: int) -> list[str]:
        """Further events about the call of one, each later than the one before."""
        now = self.clock()
        ids = new_ids(now + 0.001, count)

        def work(conn: Connection) -> None:
            row = conn.execute(select(webhook_event).where(webhook_event.c.id == event.id)).one()
            body = call_events.snapshot(call_details.find_many(conn, {row.call_id})[row.call_id])
            # The end of a call is one event, so these have a type.
            more = {**row._mapping, "type": "call.completed", "body": body}
            conn.execute(insert(webhook_event), [{**more, "id": each} for each in ids])

        self.do(work)
        return ids

    async def passing(self) -> None:
        """Let the clock pass faster than time, until cancelled."""
        while True:
            self.clock.advance(0.5)
            await asyncio.sleep(0.02)

    def history(self, project_id: str) -> list[Event]:
        """The project's events, the oldest first."""
        return self.do(lambda conn: webhooks.history(conn, project_id, limit=10_000))[::-1]

    async def until(self, holds: Callable[[], bool], timeout: float = 10.0) -> None:
        """Wait until `holds` says so."""
        await until(lambda: holds(), timeout)

    async def settled(self, project_id: str, tries: int) -> list[Event]:
        """The project's events, once that many of their tries are written."""
        await until(lambda: sum(len(event.tried) for event in self.history(project_id)) >= tries)
        return self.history(project_id)

    async def looked(self, deliverer: Deliverer, *, wake: bool = True) -> None:
        """Return once the deliverer has looked for events that are due, and begun their tries.

        Woken again and again, unless `wake` is False: then it is enough that it has looked once.
        Each look is one unit of work of the database, so nothing else may be written meanwhile.
        """
        begun = self.database.stats.units
        if not wake:
            await until(lambda: self.database.stats.units > begun)
            return

        def seen() -> bool:
            # One look may be under way, the next is whole, and its tries are begun by the third.
            deliverer.wake()
            return self.database.stats.units >= begun + 3

        await until(seen)

    @contextlib.asynccontextmanager
    async def deliverer(self, **changes: Any) -> AsyncIterator[Deliverer]:
        """A deliverer at work inside the block, drained behind it."""
        one = Deliverer(self.database, self.clock, **{"allow_private": True, **changes})
        task = asyncio.create_task(one.run())
        try:
            yield one
        finally:
            await one.drain(0)
            await task
