"""What the page says, what it never says, and what it costs to ask."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Connection, event

from bitel import metrics
from bitel.dialer.trunk_monitor import TrunkState
from bitel.dialing.dispatcher import Figures
from bitel.domain.attempts import Outcome
from bitel.domain.calls import CallStatus, Lane
from bitel.metrics import DialerFigures, Page, Sources
from bitel.observability.event_loop import LoopLag, Pauses, measuring_lag
from bitel.rtp.streamer import StreamerStats
from bitel.sip.grammar import Address
from bitel.store import endings, projects, recovery
from bitel.store.database import Database
from bitel.store.db_errors import StoreUnavailable
from bitel.store.endings import CallEnd
from bitel.store.leases import Slot
from tests.support import call_rows, factories
from tests.support.waiting import until

if TYPE_CHECKING:
    from tests.support.clocks import FakeClock

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]

NAME, NUMBER = "acme-inc", "+989121234567"


def dialer() -> DialerFigures:
    return DialerFigures(
        dialer_id="main",
        is_paused=True,
        channels=3,
        max_channels=100,
        channels_share=50,
        has_lease=True,
        figures=Figures(9, 5, Counter({Outcome.ANSWERED: 5, Outcome.BUSY: 1})),
        invites=11,
        signs=frozenset({"late packets"}),
        held_back=12.5,
        trunks=[
            TrunkState("sip:a.example", Address("192.0.2.1", 5060), True, False, True, 1234.5),
            TrunkState("sip:b.example", None, False, False, None, None),
        ],
        streams=StreamerStats(
            running=3,
            packets=1000,
            refused=2,
            ticks=500,
            late_ticks=7,
            worst_ms=31,
            p99_ms=4,
            failures=5,
        ),
        messages_dropped=(7, 2),
        recordings_unreachable=4,
    )


def place(database: Database, clock: FakeClock, count: int) -> list[str]:
    def work(conn: Connection) -> list[str]:
        project = projects.create(conn, NAME, clock())
        now = clock()
        new = [
            factories.new_call(
                project.id,
                None,
                now,
                phone_number=NUMBER,
                e164=f"{NUMBER[:-1]}{n}",
                lane=Lane.OTP,
                retry_count=0,
                expires_at=now + 600,
                digits="123",
            )
            for n in range(count)
        ]
        call_rows.place(conn, new)
        recovery.take_over(conn, Slot("main"), "w", now, 77.0)
        return [call.id for call in new]

    return database.write_now(work)


async def read(page: Page) -> Samples:
    text = (await page()).decode()
    assert NAME not in text
    assert NUMBER not in text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def at(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]


@pytest.fixture
def sources(database: Database, clock: FakeClock) -> Sources:
    return Sources(database, ["main", "spare"], clock, LoopLag(), Pauses())


async def test_calls_and_the_queue(sources: Sources, database: Database, clock: FakeClock) -> None:
    ids = place(database, clock, 3)
    end = CallEnd(ids[0], CallStatus.NO_ANSWER)
    database.write_now(lambda conn: endings.end_calls(conn, [end], clock()))
    clock.advance(10.0)
    samples = await read(Page(sources))
    assert at(samples, "bitel_calls_placed_total", lane="otp") == 3
    assert at(samples, "bitel_calls_placed_total", lane="batch") == 0
    assert at(samples, "bitel_calls_ended_total", status="NO_ANSWER") == 1
    assert at(samples, "bitel_calls_ended_total", status="NORMAL") == 0
    assert at(samples, "bitel_calls_waiting", dialer="main") == 2
    assert at(samples, "bitel_queue_age_seconds", dialer="main") == 10.0
    assert at(samples, "bitel_queue_age_seconds", dialer="spare") == 0.0
    assert at(samples, "bitel_dialer_up", dialer="main") == 1
    assert at(samples, "bitel_dialer_up", dialer="spare") == 0
    assert at(samples, "bitel_webhook_backlog") == 0
    assert at(samples, "bitel_database_up") == 1
    assert at(samples, "bitel_database_batches_total") == database.stats.batches
    assert at(samples, "process_cpu_seconds_total") > 0
    assert any(name == "bitel_build_info" for name, _ in samples)
    # Nothing of dialers, which run elsewhere.
    assert not any(name.startswith("bitel_channels") for name, _ in samples)


async def test_a_dialer(sources: Sources) -> None:
    sources.dialers.append(dialer)
    samples = await read(Page(sources))
    assert at(samples, "bitel_channels_used", dialer="main") == 3
    assert at(samples, "bitel_channels_max", dialer="main") == 100
    assert at(samples, "bitel_attempts_total", dialer="main") == 9
    assert at(samples, "bitel_invites_total", dialer="main") == 11
    assert at(samples, "bitel_answers_total", dialer="main") == 5
    assert at(samples, "bitel_attempts_ended_total", dialer="main", outcome="busy") == 1
    paused = "bitel_claiming_paused"
    assert at(samples, paused, dialer="main", sign="late packets") == 1
    assert at(samples, paused, dialer="main", sign="late loop") == 0
    assert at(samples, "bitel_claiming_paused_seconds_total", dialer="main") == 12.5
    assert at(samples, "bitel_recordings_unreachable", dialer="main") == 4
    assert at(samples, "bitel_sip_messages_dropped_total", dialer="main", about="call") == 2
    assert at(samples, "bitel_sip_messages_dropped_total", dialer="main", about="other") == 5
    here = {"dialer": "main", "trunk": "sip:a.example", "address": "192.0.2.1:5060"}
    assert at(samples, "bitel_trunk_up", **here) == 1
    assert at(samples, "bitel_trunk_answered_timestamp_seconds", **here) == 1234.5
    assert at(samples, "bitel_trunk_registered", dialer="main", trunk="sip:a.example") == 1
    unknown = {"dialer": "main", "trunk": "sip:b.example", "address": ""}
    assert at(samples, "bitel_trunk_up", **unknown) == 0
    assert at(samples, "bitel_rtp_streams", dialer="main") == 3
    assert at(samples, "bitel_rtp_packets_total", dialer="main") == 1000
    assert at(samples, "bitel_rtp_packets_refused_total", dialer="main") == 2
    assert at(samples, "bitel_rtp_ticks_late_total", dialer="main") == 7
    assert at(samples, "bitel_rtp_sender_failures_total", dialer="main") == 5
    lateness = "bitel_rtp_tick_lateness_seconds"
    assert at(samples, lateness, dialer="main", statistic="p99") == 0.004


async def test_the_loop_and_the_webhooks(sources: Sources) -> None:
    class Deliverer:
        running = 4

    for late in (0.0005, 0.03, 7.0):
        sources.lag.add(late)
    sources.deliverer = Deliverer()
    samples = await read(Page(sources))
    assert at(samples, "bitel_event_loop_lag_seconds_bucket", le="0.001") == 1
    assert at(samples, "bitel_event_loop_lag_seconds_bucket", le="0.05") == 2
    assert at(samples, "bitel_event_loop_lag_seconds_bucket", le="+Inf") == 3
    assert at(samples, "bitel_event_loop_lag_seconds_sum") == pytest.approx(7.0305)
    assert at(samples, "bitel_webhook_tries_running") == 4


async def test_the_collectors_pauses(sources: Sources) -> None:
    for pause in (0.0004, 0.004, 0.004, 3.0):
        sources.collector.add(pause)
    samples = await read(Page(sources))
    assert at(samples, "bitel_collector_pause_seconds_bucket", le="0.0005") == 1
    assert at(samples, "bitel_collector_pause_seconds_bucket", le="0.01") == 3
    assert at(samples, "bitel_collector_pause_seconds_bucket", le="+Inf") == 4
    assert at(samples, "bitel_collector_pause_seconds_sum") == pytest.approx(3.0084)


async def test_many_readers_cost_no_more_than_one(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    real = sources.database.read

    async def counted(work: Callable[[Connection], object]) -> object:
        nonlocal looks
        looks += 1
        return await real(work)

    monkeypatch.setattr(sources.database, "read", counted)
    page = Page(sources)
    await asyncio.gather(*(page() for _ in range(50)))
    assert looks == 1
    monkeypatch.setattr(metrics, "FRESH", 0.0)
    await page()
    assert looks == 2


async def test_without_the_database_the_rest_is_said(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def gone(work: object) -> object:
        raise StoreUnavailable("the database is away")

    monkeypatch.setattr(sources.database, "read", gone)
    sources.dialers.append(dialer)
    samples = await read(Page(sources))
    assert at(samples, "bitel_database_up") == 0
    assert at(samples, "bitel_channels_used", dialer="main") == 3
    assert not any(name == "bitel_calls_waiting" for name, _ in samples)


async def test_a_database_that_hangs_is_not_waited_for(
    sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hangs(work: object) -> object:
        await asyncio.Event().wait()
        raise AssertionError("never reached")

    monkeypatch.setattr(sources.database, "read", hangs)
    monkeypatch.setattr(metrics, "DATABASE_TIMEOUT", 0.01)
    assert at(await read(Page(sources)), "bitel_database_up") == 0


@pytest.fixture
def statements(sqlite_database: Database) -> Iterator[list[str]]:
    """The text of each statement that reads run."""
    seen: list[str] = []
    engine = sqlite_database.read_now(lambda conn: conn.engine)

    def note(_c: object, _cursor: object, statement: str, *_more: object) -> None:
        seen.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    yield seen
    event.remove(engine, "before_cursor_execute", note)


async def test_a_page_is_a_handful_of_statements(
    sqlite_database: Database, clock: FakeClock, statements: list[str]
) -> None:
    sources = Sources(sqlite_database, ["a", "b"], clock, LoopLag(), Pauses())
    await Page(sources)()
    selects = [each for each in statements if each.startswith("SELECT")]
    assert len(selects) == 5  # two queues, the events, the dialers, their workers


async def test_a_step_of_the_system_clock_is_shown(sources: Sources) -> None:
    assert at(await read(Page(sources)), "bitel_clock_step_seconds") == 0.0
    sources.clock_gap = lambda: -3600.0
    assert at(await read(Page(sources)), "bitel_clock_step_seconds") == -3600.0


async def test_the_processes_that_share_rate_limits_are_counted_where_the_api_is(
    sources: Sources,
) -> None:
    assert ("bitel_api_processes", ()) not in await read(Page(sources))
    sources.api_processes = lambda: 3
    assert at(await read(Page(sources)), "bitel_api_processes") == 3.0


async def test_a_loop_that_is_kept_busy_is_late() -> None:
    import time

    async with measuring_lag() as lag:
        await until(lambda: sum(lag.counts) >= 2)
        before = lag.mean
        time.sleep(0.4)  # the loop does nothing else meanwhile
        await until(lambda: lag.mean > before)
        assert sum(lag.counts[-3:]) == 1


def test_lag_is_the_mean_of_the_last_second() -> None:
    lag = LoopLag()
    assert lag.mean == 0.0
    lag.record(-0.1, 0.0)
    lag.record(1.0, 0.5)
    assert lag.mean == 0.5
    lag.record(0.0, 1.6)
    assert lag.mean == 0.0
