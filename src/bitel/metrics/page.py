"""The page itself: put together at most once a second, whoever asks for it how often."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest
from prometheus_client.core import Metric
from sqlalchemy import Connection

from bitel.errors import UnavailableError
from bitel.metrics import families
from bitel.metrics.sources import Snapshot, Sources
from bitel.store import leases, monitoring
from bitel.store.database import Database

log = structlog.get_logger(__name__)

FRESH: Final = 1.0
"""Seconds for which a page is shown again as it is."""
PATIENCE: Final = 2.0
"""Seconds that the database may take; then the page comes without what it knows."""
SEEN_WITHIN: Final = 15.0
"""Seconds since a dialer was last heard of, within which it counts as up."""


class Page:
    """Call it for the text, in Prometheus's exposition format (version 0.0.4)."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._process = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._process)
        GCCollector(registry=self._process)
        self._lock = asyncio.Lock()
        self._text = b""
        self._made_at = -FRESH

    async def __call__(self) -> bytes:
        """The page as it is now, or was a moment ago."""
        async with self._lock:
            now = asyncio.get_running_loop().time()
            if now - self._made_at >= FRESH:
                snapshot = await self._look()
                made = _Collected(_all(self._sources, snapshot))
                self._text = generate_latest(made) + generate_latest(self._process)
                self._made_at = asyncio.get_running_loop().time()
            return self._text

    async def _look(self) -> Snapshot | None:
        """What the database says; None where it does not answer in time."""
        try:
            async with asyncio.timeout(PATIENCE):
                return await self._read(self._sources.database)
        except (UnavailableError, TimeoutError) as fault:
            log.warning("metrics_without_database", fault=str(fault) or "it takes too long")
            return None

    async def _read(self, database: Database) -> Snapshot:
        now = self._sources.clock()

        def work(conn: Connection) -> Snapshot:
            return Snapshot(
                now,
                monitoring.waiting(conn, self._sources.dialer_ids),
                leases.dialers_up(conn, now, SEEN_WITHIN),
            )

        return await database.read(work)


class _Collected(CollectorRegistry):
    """Metrics that are there already, for `generate_latest`."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        super().__init__(auto_describe=False)
        self._metrics = list(metrics)

    def collect(self) -> Iterator[Metric]:
        """Those given."""
        yield from self._metrics


def _all(sources: Sources, snapshot: Snapshot | None) -> Iterator[Metric]:
    dialers = [figures_of() for figures_of in sources.dialers]
    yield from families.build()
    yield from families.calls(sources.database)
    if snapshot is not None:
        yield from families.queue(snapshot)
    if dialers:
        yield from families.dialer(dialers)
        yield from families.pressure(dialers)
        yield from families.strangers(dialers)
        yield from families.recordings(dialers)
        yield from families.trunks(dialers)
        yield from families.streams(dialers)
    yield from families.database(sources.database, reached=snapshot is not None)
    yield from families.pauses(sources.lag, sources.collector)
    yield families.clock(sources.clock_gap())
    if sources.storage is not None:
        yield from families.storage(sources.storage)
    if sources.deliverer is not None:
        yield from families.webhooks(sources.deliverer.running)
