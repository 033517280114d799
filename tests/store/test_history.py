"""Random histories of placing, claiming, answering, settling, canceling, crashing, taking over.

A model remembers what a client and a person with a telephone would: whom we have rung, who has
heard us, what was paid. After every step the store must agree with it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection, Select, func, select

from bitel.domain import ids
from bitel.domain.attempts import AttemptResult, Outcome
from bitel.domain.calls import CallStatus, Lane, NewCall
from bitel.domain.ids import new_id
from bitel.domain.pricing import NOTHING, Bill
from bitel.domain.retry import Requeue, RetryDecision, decide
from bitel.domain.webhooks import CALL_ANSWERED, CALL_COMPLETED, CALL_INITIATED, EVENT_TYPES
from bitel.errors import InsufficientBalanceError
from bitel.store import (
    call_events,
    claims,
    do_not_call,
    engines,
    projects,
    recordings,
    recovery,
    settling,
)
from bitel.store import calls as call_rows
from bitel.store.claims import Claim
from bitel.store.leases import Lease, LostLease, Slot
from bitel.store.schema import (
    attempt,
    call,
    cancel_request,
    ends_call,
    is_in_flight,
    is_open,
    ledger_entry,
    project,
    recording,
    webhook_event,
)
from bitel.store.settling import Settlement
from tests.support import call_rows as rows

if TYPE_CHECKING:
    from collections.abc import Callable

REDIAL_AFTER = 77.0
LAST_INVITE = 55.0
NUMBERS = ["+98912", "+98913", "+98914"]
OUTCOMES = [outcome for outcome in Outcome if outcome is not Outcome.ANSWERED]


class Luck:
    """Randomness that can begin anew."""

    random = Random(0)

    def urandom(self, count: int) -> bytes:
        return self.random.randbytes(count)


LUCK = Luck()


@dataclass(frozen=True)
class Dialled:
    """An attempt that some worker believes is its own."""

    lease: Lease
    claim: Claim


class History(RuleBasedStateMachine):
    """Two projects, one dialer, and workers that come and go."""

    template: ClassVar[Path]

    dialled = Bundle("dialled")

    def __init__(self) -> None:
        super().__init__()
        LUCK.random.seed(0)
        self.folder = Path(tempfile.mkdtemp(prefix="bitel-history-"))
        path = self.folder / "bitel.db"
        shutil.copy(self.template, path)
        self.engine = engines.make_engine(engines.parse_url(f"sqlite:///{path}"), "writer")
        self.connection = self.engine.connect()
        driver: Any = self.connection.connection.driver_connection
        driver.execute("PRAGMA synchronous = OFF")  # for speed; nothing here needs the disk
        self.now = 1_700_000_000.0
        self.leases: list[Lease] = []
        self.heard: set[str] = set()
        """Calls whose person has heard us."""
        self.billed: Counter[str] = Counter()
        """Entries we expect, by attempt."""
        self.moved = {True: Decimal(0), False: Decimal(0)}
        self.final: dict[str, CallStatus] = {}
        self.canceled: set[str] = set()
        self.barred: set[tuple[str, str]] = set()
        """Projects, and numbers on their do-not-call list."""
        self.reserve: dict[str, Decimal] = {}
        """By call, the most that it may cost; of the limited project only."""
        self.ringing_until: dict[str, float] = {}
        """By call: until when an attempt that a crash cut off may still ring."""

    def teardown(self) -> None:
        self.connection.close()
        shutil.rmtree(self.folder)

    def do(self, work: Callable[[Connection], Any]) -> Any:
        try:
            result = work(self.connection)
        except BaseException:
            self.connection.rollback()
            raise
        self.connection.commit()
        return result

    @initialize(target=dialled)
    def some_calls_are_being_dialled(self) -> Any:
        self.limited = self.do(lambda conn: projects.create(conn, "limited", self.now)).id
        self.unlimited = self.do(lambda conn: projects.create(conn, "unlimited", self.now)).id
        self.recordings = {}
        for owner in (self.limited, self.unlimited):
            new = recordings.Recording(new_id(self.now), owner, "r", 1.0, 1, self.now)
            self.do(partial(recordings.add, new=new))
            self.recordings[owner] = new.id
        self.do(lambda conn: projects.set_balance(conn, self.limited, Decimal(50), self.now))
        self.do(
            lambda conn: projects.change(
                conn,
                self.limited,
                webhook_url="u",
                webhook_secret="s",
                webhook_events=EVENT_TYPES,
            )
        )
        self.take_over()
        for limited in (True, False):
            self.place(limited, Lane.SINGLE, 2, 30, 2000, NUMBERS * 3, Decimal(2))
        lease = self.leases[-1]
        claimed = self.do(lambda conn: claims.claim(conn, lease, 8, self.now))
        return multiple(*(Dialled(lease, one) for one in claimed))

    @rule(
        limited=st.sampled_from([True, True, False]),
        lane=st.sampled_from(Lane),
        retries=st.integers(0, 3),
        interval=st.integers(5, 60),
        lives=st.sampled_from([2000, 200, 20]),
        numbers=st.lists(st.sampled_from(NUMBERS), min_size=1, max_size=4),
        reserve=st.decimals("0.0001", 9, places=4),
    )
    def place(
        self,
        limited: bool,
        lane: Lane,
        retries: int,
        interval: int,
        lives: int,
        numbers: list[str],
        reserve: Decimal,
    ) -> None:
        owner = self.limited if limited else self.unlimited
        new = [
            NewCall(new_id(self.now), owner, "main", "0912", number, self.recordings[owner], lane,
                    retries, interval, self.now, self.now + lives, reserve=reserve)
            for number in numbers
        ]  # fmt: skip
        allowed = [one for one in new if (owner, one.e164) not in self.barred]
        before, free = self.dump(), self.free()
        try:
            placed = self.do(lambda conn: rows.place(conn, new))
        except InsufficientBalanceError:
            assert limited
            assert free < reserve * len(allowed)
            assert self.dump() == before
            return
        assert [one.status is CallStatus.ERROR for one in placed] == [
            one not in allowed for one in new
        ]
        if limited:
            self.reserve |= {one.id: reserve for one in new}
            # A one-time password gives back what the older ones that it supersedes had reserved.
            released = self.free() - (free - reserve * len(allowed))
            assert released >= 0 if lane is Lane.OTP else released == 0
            assert self.free() >= 0 or not allowed

    @rule(limited=st.booleans(), number=st.sampled_from(NUMBERS), on=st.booleans())
    def bar(self, limited: bool, number: str, on: bool) -> None:
        owner = self.limited if limited else self.unlimited
        change = do_not_call.add if on else do_not_call.remove
        self.do(lambda conn: change(conn, owner, number))
        (self.barred.add if on else self.barred.discard)((owner, number))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        rows = self.rows(select(call.c.id, call.c.project_id, call.c.status).order_by(call.c.id))
        waiting = [row for row in rows if row.status == CallStatus.WAITING]
        if not rows:
            return
        mostly: int = data.draw(st.integers(0, 5))
        if waiting and mostly:
            rows = waiting
        row = data.draw(st.sampled_from(rows))
        open_calls = {one.call_id for one in self.open_attempts()}
        before = self.final.get(row.id)
        found = self.do(lambda conn: call_rows.cancel(conn, row.project_id, row.id, self.now))
        if before is not None:
            assert found.status is before
        elif row.id in open_calls:
            assert found.status is CallStatus.WAITING
            self.canceled.add(row.id)
        else:
            assert found.status is CallStatus.CANCELED

    @rule(seconds=st.floats(0, 200))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(crashes=st.sampled_from([False, False, True]))
    def perhaps_take_over(self, crashes: bool) -> None:
        if crashes:
            self.take_over()

    def take_over(self) -> None:
        open_before = self.open_attempts()
        lease, recovered = self.do(
            lambda conn: recovery.take_over(
                conn, Slot("main"), "w", self.now, REDIAL_AFTER, LAST_INVITE
            )
        )
        assert all(lease.epoch > older.epoch for older in self.leases)
        assert recovered.redialled + recovered.unknown == len(open_before)
        assert self.open_attempts() == []
        for row in open_before:
            sent_by = min(self.now, row.started_at + LAST_INVITE)
            self.ringing_until[row.call_id] = sent_by + REDIAL_AFTER
        self.leases.append(lease)

    @rule(target=dialled, data=st.data(), limit=st.integers(1, 5))
    def claim(self, data: st.DataObject, limit: int) -> Any:
        stale = bool(data.draw(st.integers(0, 5)) == 0)
        lease = data.draw(st.sampled_from(self.leases[-3:])) if stale else self.leases[-1]
        before = self.dump()
        if lease is not self.leases[-1]:
            with pytest.raises(LostLease):
                self.do(lambda conn: claims.claim(conn, lease, limit, self.now))
            assert self.dump() == before
            return multiple()
        claimed = self.do(lambda conn: claims.claim(conn, lease, limit, self.now))
        assert len(claimed) <= limit
        for one in claimed:
            assert one.call_id not in self.heard
            assert one.call_id not in self.final
            assert one.rule.expires_at > self.now
            assert self.now >= self.ringing_until.get(one.call_id, 0)
            assert one.call_id not in self.canceled
            assert (one.project_id, one.e164) not in self.barred
        in_flight = Counter(self.rows(select(call.c.project_id, call.c.e164).where(is_in_flight)))
        assert all(attempts == 1 for attempts in in_flight.values()), "two at once to a number"
        return multiple(*(Dialled(lease, one) for one in claimed))

    @rule(one=dialled, after=st.floats(0, 30))
    def answer(self, one: Dialled, after: float) -> None:
        self.now += after
        before = self.dump()
        answered = {one.claim.attempt_id: self.now}
        reported = answered if CALL_ANSWERED in one.claim.events else ()
        done = self.do(lambda conn: claims.mark_answered(conn, one.lease, answered, reported))
        if done:
            assert one.lease is self.leases[-1]
            self.heard.add(one.claim.call_id)
        else:
            assert self.dump() == before
        assert done <= {one.claim.attempt_id}

    @rule(
        some=st.lists(consumes(dialled), min_size=1, max_size=4),
        outcomes=st.lists(st.sampled_from(OUTCOMES), min_size=4, max_size=4),
        lasted=st.floats(0, 100),
        price=st.decimals(0, 9, places=4),
        hand_back=st.booleans(),
        twice=st.booleans(),
    )
    def settle(
        self,
        some: list[Dialled],
        outcomes: list[Outcome],
        lasted: float,
        price: Decimal,
        hand_back: bool,
        twice: bool,
    ) -> None:
        self.now += lasted
        lease = some[0].lease
        open_before = {row.id: row for row in self.open_attempts()}
        offered = {}
        for one, outcome in zip(some, outcomes, strict=False):
            row = open_before.get(one.claim.attempt_id)
            answered_at = None if row is None else row.answered_at
            offered[one.claim.attempt_id] = self.settlement(
                one, outcome, answered_at, Bill(3, price), hand_back
            )
        before, free = self.dump(), self.free()
        accepted = self.do(
            lambda conn: settling.settle(conn, lease, list(offered.values()), self.now)
        )
        if lease is not self.leases[-1]:
            assert accepted == set()
        if not accepted:
            assert self.dump() == before
        assert accepted <= set(open_before)
        for attempt_id in accepted:
            done = offered[attempt_id]
            if done.result.answered_at is not None:
                self.billed[attempt_id] += 1
                limited = self.project_of(done.call_id) == self.limited
                most = self.reserve.get(done.call_id, done.bill.price)
                self.moved[limited] += min(most, done.bill.price)
        assert self.free() >= free
        if twice:
            again = self.do(
                lambda conn: settling.settle(conn, lease, list(offered.values()), self.now)
            )
            assert again == set()

    def settlement(
        self,
        one: Dialled,
        outcome: Outcome,
        answered_at: float | None,
        bill: Bill,
        hand_back: bool,
    ) -> Settlement:
        if answered_at is not None:
            outcome = Outcome.ANSWERED
        done = AttemptResult(outcome, one.claim.started_at, self.now, answered_at)
        decision: RetryDecision = decide(one.claim.rule, done)
        if hand_back and answered_at is None:
            decision = Requeue(self.now)
        bill = NOTHING if answered_at is None else bill
        return Settlement(one.claim.attempt_id, one.claim.call_id, done, decision, bill)

    @rule(limit=st.integers(1, 5))
    def expire(self, limit: int) -> None:
        assert self.do(lambda conn: claims.expire(conn, "main", self.now, limit)) <= limit

    @rule(amount=st.decimals(-20, 20, places=4))
    def top_up(self, amount: Decimal) -> None:
        self.do(lambda conn: projects.set_balance(conn, self.limited, amount, self.now))

    @invariant()
    def one_open_attempt_a_call_and_the_call_waits(self) -> None:
        rows = self.open_attempts()
        assert len({row.call_id for row in rows}) == len(rows)
        for row in rows:
            found = self.connection.execute(select(call).where(call.c.id == row.call_id)).one()
            assert found.due_at is None
            assert found.status == CallStatus.WAITING
        self.connection.rollback()

    @invariant()
    def a_call_is_waiting_dialled_or_final_for_ever(self) -> None:
        open_calls = {row.call_id for row in self.open_attempts()}
        for row in self.connection.execute(select(call)):
            status = CallStatus(row.status)
            assert (row.due_at is not None) + (row.id in open_calls) + status.final == 1
            assert self.final.get(row.id, status) is status
            assert 0 <= row.retries_left <= row.retry_count
            if status.final:
                self.final[row.id] = status
                assert row.finished_at > 0
        self.connection.rollback()

    @invariant()
    def what_is_reserved_is_what_waiting_calls_may_cost(self) -> None:
        reserved = {self.limited: Decimal(0), self.unlimited: Decimal(0)}
        for row in self.rows(select(call)):
            waits = row.status == CallStatus.WAITING
            assert row.reserved == (self.reserve.get(row.id, 0) if waits else 0)
            reserved[row.project_id] += row.reserved
        for row in self.rows(select(project)):
            assert row.reserved == reserved[row.id]

    @invariant()
    def there_is_one_event_for_each_call_that_is_over(self) -> None:
        over = [one for one in self.final if one in self.reserve]
        events = self.rows(select(webhook_event.c.call_id).where(ends_call))
        assert sorted(row.call_id for row in events) == sorted(over)

    @invariant()
    def each_event_of_an_attempt_is_there_once_and_shows_it_as_it_was(self) -> None:
        begun: Counter[tuple[str, int, str]] = Counter()
        for row in self.rows(select(webhook_event).where(~ends_call)):
            call_id, attempts = row.call_id, call_events.from_snapshot(row.body).attempts
            begun[call_id, len(attempts), row.type] += 1
            assert call_id in self.reserve, "the other project asks for no events"
            last = attempts[-1]
            assert (row.type == CALL_COMPLETED) == (last.ended_at is not None)
            assert row.type != CALL_INITIATED or last.answered_at is None
            assert row.type != CALL_ANSWERED or last.answered_at is not None
        expected: Counter[tuple[str, int, str]] = Counter()
        for row in self.rows(select(attempt).where(attempt.c.call_id.in_(self.reserve))):
            facts = {
                CALL_INITIATED: row.started_at,
                CALL_ANSWERED: row.answered_at,
                CALL_COMPLETED: row.ended_at,
            }
            expected.update(
                (row.call_id, row.number, type_) for type_, at in facts.items() if at is not None
            )
        assert begun == expected

    @invariant()
    def what_was_called_off_is_not_due_again(self) -> None:
        due = select(call.c.due_at).where(call.c.id.in_(self.canceled))
        assert all(row.due_at is None for row in self.rows(due))
        asked = {row.attempt_id for row in self.rows(select(cancel_request))}
        open_attempts = {row.id for row in self.open_attempts() if row.call_id in self.canceled}
        assert asked == open_attempts

    @invariant()
    def whoever_heard_us_is_left_in_peace(self) -> None:
        heard = select(call.c.due_at).where(call.c.id.in_(self.heard))
        assert all(due is None for due in self.connection.execute(heard).scalars())
        self.connection.rollback()

    @invariant()
    def the_ledger_is_what_was_billed_and_what_the_balance_moved(self) -> None:
        entries = select(ledger_entry.c.attempt_id).where(ledger_entry.c.kind == "call")
        assert Counter(self.connection.execute(entries).scalars()) == self.billed
        total = select(project.c.id, project.c.balance)
        for project_id, balance in self.connection.execute(total).all():
            of_project = select(func.sum(ledger_entry.c.amount, type_=ledger_entry.c.amount.type))
            sum_ = self.connection.execute(
                of_project.where(ledger_entry.c.project_id == project_id)
            ).scalar_one() or Decimal(0)
            if balance is not None:
                assert balance == sum_
            else:
                assert sum_ == -self.moved[False]
        prices = select(func.sum(call.c.price, type_=call.c.price.type))
        paid = self.connection.execute(prices).scalar_one() or Decimal(0)
        assert paid == sum(self.moved.values())
        self.connection.rollback()

    @invariant()
    def what_is_next_due_is_never_missed(self) -> None:
        waiting = self.connection.execute(
            select(call.c.due_at, call.c.expires_at).where(call.c.due_at.is_not(None))
        ).all()
        expected = min((min(row) for row in waiting), default=None)
        assert claims.next_due(self.connection, "main", 0.0).earliest == expected
        self.connection.rollback()

    def rows(self, query: Select[Any]) -> list[Any]:
        rows = self.connection.execute(query).all()
        self.connection.rollback()
        return list(rows)

    def open_attempts(self) -> list[Any]:
        return self.rows(select(attempt).where(is_open))

    def free(self) -> Decimal:
        """What of the limited project's balance nothing is reserved for."""
        found = projects.by_id(self.connection, self.limited)
        self.connection.rollback()
        assert found is not None
        assert found.balance is not None
        return found.balance - found.reserved

    def project_of(self, call_id: str) -> str:
        found: str = self.connection.execute(
            select(call.c.project_id).where(call.c.id == call_id)
        ).scalar_one()
        self.connection.rollback()
        return found

    def dump(self) -> list[Any]:
        tables = (call, attempt, ledger_entry, project, recording, webhook_event, cancel_request)
        # Past SQLAlchemy: this is asked for all the time.
        driver: Any = self.connection.connection.driver_connection
        return [driver.execute(f'SELECT * FROM "{table.name}"').fetchall() for table in tables]


def test_no_history_breaks_a_promise(
    sqlite_template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Identifiers decide who comes first, and a history must be the same when it is tried again.
    monkeypatch.setattr(ids, "os", LUCK)
    History.template = sqlite_template
    run_state_machine_as_test(
        History,
        settings=settings(
            max_examples=15,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
