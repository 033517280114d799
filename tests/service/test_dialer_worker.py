"""A dialer's worker between standby and work, with real SIP ports and a real store."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from bitel import service
from bitel.demo.stage import free_port
from bitel.dialer.config import SipTrunkConfig
from bitel.dialer.sip_dialer import SipTrunkDialer
from bitel.dialer.trunk import Trunk
from bitel.dialing.dispatcher import Dispatcher
from bitel.dialing.limit_shares import Limits
from bitel.dialing.standby import DialerLock, Standby
from bitel.domain.pricing import Tariff
from bitel.errors import BitelError, UnavailableError
from bitel.service import dialer_worker
from bitel.service.dialer_worker import DialerWorker
from bitel.service.shutdown import Shutdown
from bitel.settings import DialerSettings, Settings
from bitel.store import leases
from bitel.store.database import Database
from bitel.store.leases import Holder, LostLease, Slot
from bitel.store.recovery import Recovered
from tests.support.sip_dialer import OneClip
from tests.support.waiting import until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialer_worker, "POLL", 0.02)
    monkeypatch.setattr(dialer_worker, "FORCE_TIMEOUT", 0.3)


class Process:
    """What one process has of a dialer."""

    def __init__(self, folder: Path, database: Database, name: str, port: int = 0) -> None:
        data_dir = folder / name
        data_dir.mkdir(exist_ok=True)
        self.dialer = SipTrunkDialer(
            SipTrunkConfig(
                (Trunk.parse("sip:127.0.0.1:9"),),
                ("127.0.0.1", port),
                range(20000, 20020),
                ring_timeout=10.0,
                ping_interval=0.0,
            ),
            OneClip(folder),
            time.time,
        )
        self.dispatcher = Dispatcher(
            "main", name, self.dialer, Limits(1, 1.0, 10.0), database, Tariff(()), time.time
        )
        self.standby = Standby("main", name, database, data_dir)
        self.worker = DialerWorker(self.dialer, self.dispatcher, self.standby, 1.0, Shutdown(1.0))

    @contextlib.asynccontextmanager
    async def up(self, take_over: bool = False) -> AsyncIterator[DialerWorker]:
        await self.worker.start(take_over)
        task = asyncio.create_task(self.worker.run())
        try:
            yield self.worker
        finally:
            await self.worker.stop(task)


def holder(database: Database) -> Holder:
    return database.read_now(lambda conn: leases.holder(conn, "main"))


async def active(worker: DialerWorker) -> None:
    await until(lambda: not worker.in_standby)


async def test_a_standby_whose_port_is_taken_leaves_the_lease_alone(
    sqlite_database: Database, tmp_path: Path
) -> None:
    port = free_port()
    first = Process(tmp_path, sqlite_database, "first")
    second = Process(tmp_path, sqlite_database, "second", port)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", port))
        with structlog.testing.capture_logs() as logs:
            async with contextlib.AsyncExitStack() as stack:
                async with first.up():
                    worker = await stack.enter_async_context(second.up())
                    assert worker.in_standby
                await until(lambda: any(each["event"] == "standby_waits" for each in logs))
                assert holder(sqlite_database)[:3] == (1, "first", None)
                taken.close()
                await active(worker)
                assert holder(sqlite_database).worker == "second"
    events = [each["event"] for each in logs]
    assert [each for each in events if each in {"standby", "standby_waits", "active"}] == [
        "standby", "standby_waits", "active",
    ]  # fmt: skip
    [said] = [each["fault"] for each in logs if each["event"] == "standby_waits"]
    assert said.startswith(f"SIP can't be spoken from 127.0.0.1:{port}: ")


async def test_a_port_that_is_taken_fails_the_start_where_the_lease_is_free(
    sqlite_database: Database, tmp_path: Path
) -> None:
    port = free_port()
    process = Process(tmp_path, sqlite_database, "first", port)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", port))
        with pytest.raises(BitelError, match="SIP can't be spoken"):
            await process.worker.start()
    assert holder(sqlite_database) == Holder()
    assert DialerLock(process.standby.lock.path).acquire(), "another process may try"


async def test_who_comes_second_lets_go_of_its_port_and_waits(
    sqlite_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = Process(tmp_path, sqlite_database, "first")
    tries: list[bool] = []
    take_over = process.dispatcher.take_over

    async def late(*arguments: Any) -> Recovered:
        tries.append(process.dialer.up)
        if len(tries) < 3:
            raise LostLease("another was faster")
        return await take_over(*arguments)

    monkeypatch.setattr(process.dispatcher, "take_over", late)
    async with process.up() as worker:
        assert worker.in_standby
        assert not process.dialer.up
        await active(worker)
        assert process.dialer.up
    assert tries == [True, True, True]
    assert holder(sqlite_database)[:3] == (1, "first", None)


async def test_a_worker_that_keeps_its_lock_is_not_forced_out(
    sqlite_database: Database, tmp_path: Path
) -> None:
    first = Process(tmp_path, sqlite_database, "here")
    async with contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(first.up())
        second = Process(tmp_path, sqlite_database, "here")
        with pytest.raises(BitelError, match="can't be taken over: its worker here does not end"):
            await second.worker.start(take_over=True)
        # It can't write any more, and stops once it finds out.
        assert not await first.dispatcher.confirm_lease()
        with pytest.raises(BitelError, match="process took over the dialer 'main', so this"):
            await stack.aclose()
    async with Process(tmp_path, sqlite_database, "here").up() as worker:
        assert not worker.in_standby


async def test_a_forced_take_over_that_is_interrupted_leaves_a_standby(
    sqlite_database: Database, tmp_path: Path
) -> None:
    cancel = asyncio.Event()
    cancel.set()
    process = Process(tmp_path, sqlite_database, "first")
    await process.worker.start(True, cancel)
    assert process.worker.in_standby
    await process.worker.stop(asyncio.create_task(process.worker.run()))


async def test_a_lease_that_can_not_be_released_ends_the_worker_all_the_same(
    sqlite_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = Process(tmp_path, sqlite_database, "first")

    async def away() -> None:
        raise UnavailableError("the database can't be reached")

    monkeypatch.setattr(process.dispatcher, "release", away)
    async with process.up():
        pass
    assert not process.dialer.up
    async with Process(tmp_path, sqlite_database, "first").up() as worker:
        assert not worker.in_standby, "on the same data_dir that costs no time"
    assert holder(sqlite_database)[:3] == (2, "first", None)


async def test_the_sip_transport_can_ask_for_the_lease(tmp_path: Path) -> None:
    main = DialerSettings(id="main", trunks=["sip:127.0.0.1:9"], bind="127.0.0.1:0")
    settings = Settings(data_dir=tmp_path / "data", dialers=[main])
    lost = asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        running = await stack.enter_async_context(service.running(settings, "dialer", lost))
        transport = running.dialers[0]._transport
        assert transport is not None
        assert transport.confirm_lease is not None
        assert await transport.confirm_lease()
        with Database.open(settings.effective_database_url) as database:
            database.write_now(lambda conn: leases.fence(conn, Slot("main"), "w", time.time()))
        assert not await transport.confirm_lease()
        async with asyncio.timeout(2):  # a renewal would come after 5 s
            await lost.wait()
        with pytest.raises(BitelError, match="another process took over the dialer 'main'"):
            await stack.aclose()


async def test_a_standby_ends_at_once_while_the_database_is_frozen(
    sqlite_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Process(tmp_path, sqlite_database, "first")
    second = Process(tmp_path, sqlite_database, "second")
    asked = asyncio.Event()

    async def never(work: Any) -> Any:
        asked.set()
        await asyncio.Event().wait()

    async with first.up():
        await second.worker.start()
        task = asyncio.create_task(second.worker.run())
        with monkeypatch.context() as frozen:
            frozen.setattr(sqlite_database, "read", never)
            await asked.wait()
            async with asyncio.timeout(1):
                await second.worker.stop(task)
