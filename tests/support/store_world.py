"""A project with a recording in an empty database, and short words for what tests of it do."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, TypeVar

from sqlalchemy import Connection, func, select

from bitel.domain.calls import Call, NewCall
from bitel.store import calls, claims, projects, recovery, settling
from bitel.store.claims import Claim
from bitel.store.database import Database
from bitel.store.leases import Lease, Slot
from bitel.store.projects import Project
from bitel.store.recovery import FormerWorker, Recovered
from bitel.store.schema import ledger_entry
from bitel.store.settling import Settlement
from tests.support import call_rows, factories
from tests.support.clocks import FakeClock

T = TypeVar("T")

REDIAL_AFTER = 77.0
LAST_INVITE = 55.0


@dataclass
class World:
    """What a test of the store starts from."""

    database: Database
    clock: FakeClock
    project_id: str
    recording_id: str
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1234567))

    @classmethod
    def make(cls, database: Database, clock: FakeClock, name: str = "shop") -> World:
        project_id, recording_id = database.write_now(
            lambda conn: factories.make_project(conn, clock(), name)
        )
        return cls(database, clock, project_id, recording_id)

    def do(self, work: Callable[[Connection], T]) -> T:
        return self.database.write_now(work)

    def new_call(self, **changes: Any) -> NewCall:
        # A number of its own: calls to one number wait for each other.
        e164 = f"+98912{next(self.numbers):07}"
        fields = {"e164": e164, "recording_id": self.recording_id, **changes}
        return factories.new_call(self.project_id, now=self.clock(), **fields)

    def place(self, **changes: Any) -> str:
        new = self.new_call(**changes)
        self.do(lambda conn: call_rows.place(conn, [new]))
        return new.id

    def take_over(self, worker: str = "w") -> Lease:
        return self.recover(worker)[0]

    def take_over_of(self, dialer_id: str) -> Lease:
        now = self.clock()
        return self.do(
            lambda conn: recovery.take_over(conn, Slot(dialer_id), "w", now, REDIAL_AFTER)
        )[0]

    def recover(self, worker: str = "w", **terms: Any) -> tuple[Lease, Recovered]:
        now, given = self.clock(), FormerWorker(**terms)
        return self.do(
            lambda conn: recovery.take_over(
                conn, Slot("main"), worker, now, REDIAL_AFTER, LAST_INVITE, given
            )
        )

    def claim(self, lease: Lease, limit: int = 100, **more: Any) -> list[Claim]:
        return self.do(lambda conn: claims.claim(conn, lease, limit, self.clock(), **more))

    def cancel(self, call_id: str) -> Call:
        now = self.clock()
        return self.do(lambda conn: calls.cancel(conn, self.project_id, call_id, now))

    def change(self, project_id: str | None = None, **changes: Any) -> Project:
        which = project_id or self.project_id
        return self.do(lambda conn: projects.change(conn, which, **changes))

    def project(self) -> Project:
        found = self.do(lambda conn: projects.by_id(conn, self.project_id))
        assert found is not None
        return found

    def another(self, name: str) -> World:
        """Another project with a recording, in the same database at the same time."""
        return World.make(self.database, self.clock, name)

    def heard(self, lease: Lease, *claimed: Claim) -> set[str]:
        answered = {one.attempt_id: self.clock() for one in claimed}
        return self.do(lambda conn: claims.mark_answered(conn, lease, answered))

    def settle(self, lease: Lease, *settlements: Settlement) -> set[str]:
        return self.do(lambda conn: settling.settle(conn, lease, settlements, self.clock()))

    def call(self, call_id: str) -> Call:
        found = self.do(lambda conn: calls.find(conn, self.project_id, call_id))
        assert found is not None
        return found

    def attempts(self, call_id: str) -> list[calls.AttemptRow]:
        return self.do(lambda conn: calls.attempts(conn, call_id))

    def set_balance(self, amount: Decimal | None) -> None:
        self.do(lambda conn: projects.set_balance(conn, self.project_id, amount, self.clock()))

    def balance(self) -> Decimal | None:
        return self.project().balance

    def ledger(self) -> list[Decimal]:
        entries = select(ledger_entry.c.amount).order_by(ledger_entry.c.id)
        return list(self.do(lambda conn: conn.execute(entries).scalars().all()))

    def count(self, table: Any) -> int:
        counted: int = self.do(
            lambda conn: conn.execute(select(func.count()).select_from(table)).scalar_one()
        )
        return counted
