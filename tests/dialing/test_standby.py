"""When a process may take over a dialer, over a real store and by a clock of the test's."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from bitel.dialing.standby import (
    HEARTBEAT_TIMEOUT,
    LONGEST_LOOK,
    POLL,
    PROBE_AFTER,
    DialerLock,
    HeartbeatMonitor,
    Standby,
    installation_of,
)
from bitel.errors import BitelError, UnavailableError
from bitel.store import leases, recovery
from bitel.store.database import Database
from bitel.store.leases import Holder, Lease, LostLease
from bitel.store.recovery import FormerWorker
from bitel.store.schema import dialer
from tests.support.clocks import FakeClock


class Site:
    """A database, a clock of seconds, and installations that use both."""

    def __init__(self, database: Database, folder: Path) -> None:
        self.database = database
        self.clock = FakeClock(1000.0)
        self._folder = folder

    def standby(
        self, name: str, where: str | None = None, clock: Callable[[], float] = time.time
    ) -> Standby:
        data_dir = self._folder / (where or name)
        data_dir.mkdir(exist_ok=True)
        return Standby("main", name, self.database, data_dir, clock, monotonic=self.clock)

    def take_over(self, standby: Standby, terms: FormerWorker | None) -> Lease:
        assert terms is not None, "it had to wait"
        lease, _ = self.database.write_now(
            lambda conn: recovery.take_over(
                conn, standby.slot, standby._worker, 1.0, 77.0, 55.0, terms
            )
        )
        return lease

    def do(self, work: Callable[[Any], Any]) -> Any:
        return self.database.write_now(work)

    def renew(self, lease: Lease) -> None:
        assert self.do(lambda conn: leases.renew(conn, lease, self.clock()))

    async def waits(self, standby: Standby) -> float:
        """Looks until the standby may take over; after how many seconds that is."""
        begun = self.clock()
        while await standby.look() is None:
            self.clock.advance(POLL)
            assert self.clock() - begun < 100
        return self.clock() - begun


@pytest.fixture
def site(sqlite_database: Database, tmp_path: Path) -> Site:
    """In SQLite, where a dialer has one worker."""
    return Site(sqlite_database, tmp_path)


@pytest.fixture
def shared(postgres_url: str, tmp_path: Path) -> Iterator[Site]:
    with Database.open(postgres_url) as database:
        yield Site(database, tmp_path)


async def test_processes_that_share_postgresql_work_at_the_same_time(shared: Site) -> None:
    taken = []
    for name in ("first", "second", "third"):
        standby = shared.standby(name)
        taken.append(shared.take_over(standby, await standby.look()))
    for lease in taken:
        assert lease.epoch in {each.epoch for each in shared.do(renewal(lease))}


def renewal(lease: Lease) -> Callable[[Any], Any]:
    return lambda conn: leases.renew(conn, lease, 5.0)


async def test_a_slot_has_one_worker_at_a_time(shared: Site) -> None:
    first, second = shared.standby("first", "here"), shared.standby("second", "here")
    lease = shared.take_over(first, await first.look())
    assert await second.look() is None
    assert second.waits_for == "first"
    first.lock.release()
    shared.take_over(second, await second.look())
    assert [each.name for each in shared.do(renewal(lease))] == ["second"]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_a_worker_of_the_version_before_is_waited_for(
    request: pytest.FixtureRequest, kind: str
) -> None:
    site: Site = request.getfixturevalue("site" if kind == "sqlite" else "shared")
    old = {"id": "main", "epoch": 7, "worker": "old", "seen_at": 5.0, "installation": "i" * 32}
    site.do(lambda conn: conn.execute(insert(dialer).values(old)))
    second = site.standby("second")
    assert await second.look() is None
    assert second.waits_for == "old"
    assert await site.waits(second) == HEARTBEAT_TIMEOUT
    found = await second.look()
    assert found is not None
    assert not found.has_ended
    lease = site.take_over(second, found)
    assert lease.epoch == 8
    with pytest.raises(LostLease):
        site.take_over(second, found)


async def test_a_dialer_that_nobody_ran_is_taken_at_once(site: Site) -> None:
    first = site.standby("first")
    assert site.take_over(first, await first.look()).epoch == 1


async def test_a_dead_worker_of_the_same_data_dir_is_replaced_at_once(site: Site) -> None:
    first = site.standby("first", "here")
    site.take_over(first, await first.look())
    second = site.standby("second", "here")
    assert await second.look() is None
    site.clock.advance(1000)
    assert await second.look() is None, "it may be stopped, and go on at any time"
    assert second.waits_for == "first"
    first.lock.release()  # as the kernel does when it dies
    terms = await second.look()
    assert terms is not None
    assert terms.has_ended
    site.take_over(second, terms)


async def test_a_released_dialer_is_taken_at_once_by_any_installation(site: Site) -> None:
    first, second = site.standby("first"), site.standby("second")
    lease = site.take_over(first, await first.look())
    assert await second.look() is None
    site.do(lambda conn: leases.release(conn, lease))
    terms = await second.look()
    assert terms is not None
    assert terms.has_ended


async def test_another_installations_worker_is_replaced_after_twenty_seconds_of_silence(
    site: Site,
) -> None:
    first, second = site.standby("first"), site.standby("second")
    lease = site.take_over(first, await first.look())
    for _ in range(30):
        assert await second.look() is None
        site.clock.advance(POLL)
        site.renew(lease)
    assert await site.waits(second) == HEARTBEAT_TIMEOUT
    terms = await second.look()
    assert terms is not None
    assert not terms.has_ended, "it may only be cut off from the database"
    site.renew(lease)
    with pytest.raises(LostLease):
        site.take_over(second, terms)
    second.reset()
    assert await second.look() is None


@pytest.mark.parametrize("ahead", [3600.0, -3600.0])
async def test_the_difference_to_a_silent_workers_clock_is_known_from_its_heartbeat(
    site: Site, ahead: float
) -> None:
    first, second = site.standby("first"), site.standby("second", clock=site.clock)
    lease = site.take_over(first, await first.look())
    assert await second.look() is None
    site.do(lambda conn: leases.renew(conn, lease, site.clock() + ahead))
    await site.waits(second)
    terms = await second.look()
    assert terms is not None
    # Never more than it is: then an INVITE that may still ring would count as dead.
    assert ahead - POLL - LONGEST_LOOK <= terms.ahead <= ahead


async def test_the_difference_to_a_forced_out_workers_clock_is_known(site: Site) -> None:
    first, second = site.standby("first"), site.standby("second", clock=site.clock)
    lease = site.take_over(first, await first.look())
    site.do(lambda conn: leases.renew(conn, lease, site.clock() - 3600.0))
    site.clock.advance(5.0)
    terms = await second.fence()
    assert terms.ahead == -3605.0


async def test_of_two_standbys_one_takes_over(site: Site) -> None:
    first = site.standby("first")
    site.take_over(first, await first.look())
    second, third = site.standby("second"), site.standby("third")
    await second.look()
    await third.look()
    while (terms := await second.look()) is None:
        assert await third.look() is None
        site.clock.advance(POLL)
    others = await third.look()
    site.take_over(second, terms)
    with pytest.raises(LostLease):
        site.take_over(third, others)


async def test_a_standby_that_was_paused_itself_looks_anew(site: Site) -> None:
    first, second = site.standby("first"), site.standby("second")
    site.take_over(first, await first.look())
    await second.look()
    site.clock.advance(1000)
    assert await second.look() is None
    assert await site.waits(second) == HEARTBEAT_TIMEOUT


@pytest.mark.parametrize("fault", ["fails", "late"])
@pytest.mark.parametrize("when", [PROBE_AFTER / 2, HEARTBEAT_TIMEOUT - POLL])
async def test_a_database_that_does_not_answer_takes_a_dialer_from_nobody(
    site: Site, monkeypatch: pytest.MonkeyPatch, fault: str, when: float
) -> None:
    first, second = site.standby("first"), site.standby("second")
    site.take_over(first, await first.look())
    begun = site.clock()
    while site.clock() - begun < when:
        assert await second.look() is None
        site.clock.advance(POLL)

    async def ask(work: Callable[[Any], Any]) -> Any:
        if fault == "fails":
            raise UnavailableError("the database can't be reached")
        site.clock.advance(LONGEST_LOOK + 0.5)
        return site.do(work)

    with monkeypatch.context() as broken:
        broken.setattr(site.database, "read", ask)
        broken.setattr(site.database, "write", ask)
        if fault == "fails":
            with pytest.raises(UnavailableError):
                await second.look()
        else:
            assert await second.look() is None
    assert await site.waits(second) == HEARTBEAT_TIMEOUT


async def test_a_database_that_takes_no_writes_takes_a_dialer_from_nobody(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As when its disk is full: the holder can't renew, however alive it is.
    first, second = site.standby("first"), site.standby("second")
    site.take_over(first, await first.look())
    written = 0

    async def write(work: Callable[[Any], Any]) -> Any:
        nonlocal written
        written += 1
        raise UnavailableError("the disk is full")

    with monkeypatch.context() as full:
        full.setattr(site.database, "write", write)
        for _ in range(40):
            with contextlib.suppress(UnavailableError):
                assert await second.look() is None
            site.clock.advance(POLL)
    assert written > 2
    second.reset()
    assert await site.waits(second) == HEARTBEAT_TIMEOUT


async def test_a_forced_take_over_fences_the_worker_and_waits_for_its_lock(site: Site) -> None:
    first, second = site.standby("first", "here"), site.standby("second", "here")
    lease = site.take_over(first, await first.look())
    terms = await second.fence()
    assert (second.waits_for, terms.has_ended) == ("first", True)
    assert not site.do(lambda conn: leases.holds(conn, lease))
    assert not second.lock.acquire()
    first.lock.release()
    assert second.lock.acquire()
    assert site.take_over(second, terms).epoch == 3


async def test_who_was_forced_out_and_is_started_again_waits(site: Site) -> None:
    first, second = site.standby("first"), site.standby("second")
    site.take_over(first, await first.look())
    terms = await second.fence()
    assert not terms.has_ended
    first.lock.release()
    again = site.standby("again", "first")
    assert await again.look() is None
    assert site.take_over(second, terms).epoch == 3


async def test_a_forced_take_over_of_a_dialer_that_nobody_ran(site: Site) -> None:
    first = site.standby("first")
    assert site.take_over(first, await first.fence()).epoch == 1


def test_silence_counts_between_the_answer_before_and_the_question_after() -> None:
    monitor, holder = HeartbeatMonitor(POLL + LONGEST_LOOK), Holder(1, "w", "i" * 32, 5.0)
    monitor.observe(holder, 10.0, 12.0)
    assert monitor.seconds == 0
    monitor.observe(holder, 14.0, 15.0)
    assert monitor.seconds == 2
    monitor.observe(
        holder._replace(seen_at=4.0), 16.0, 16.5
    )  # the clock of that machine was set back
    assert monitor.seconds == 0
    monitor.observe(holder._replace(seen_at=4.0), 18.0, 18.0)
    assert monitor.seconds == 1.5


def test_an_installation_is_made_once(tmp_path: Path) -> None:
    made = installation_of(tmp_path)
    assert len(made) == 32
    assert installation_of(tmp_path) == made
    assert [each.name for each in tmp_path.iterdir()] == ["installation"]
    (tmp_path / "installation").write_text("cut")
    assert installation_of(tmp_path) not in (made, "cut")


def test_a_lock_that_can_not_be_had_says_so(tmp_path: Path) -> None:
    lock = DialerLock(tmp_path / "missing" / "dialer-main.lock")
    with pytest.raises(BitelError, match=r"dialer-main.lock can't be locked: No such file"):
        lock.acquire()


def test_a_lock_is_not_inherited(tmp_path: Path) -> None:
    lock = DialerLock(tmp_path / "dialer-main.lock")
    assert lock.acquire()
    assert lock._file is not None
    assert not os.get_inheritable(lock._file)
    assert not DialerLock(lock.path).acquire()
    lock.release()
    assert DialerLock(lock.path).acquire()
