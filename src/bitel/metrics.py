"""Prometheus metrics of this process, and the page `/metrics`.

`Sources` names where values are read from, `Page` caches the text, and a function for each part of
the service makes its metric families. No label names a project, a call or a number. Metrics with
the label `dialer` come from the process that runs the dialer, except those of the queue, which are
read from the database and are the same in every process.
"""

from __future__ import annotations

import asyncio
import itertools
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Final, Protocol

import structlog
from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily as Counter
from prometheus_client.core import GaugeMetricFamily as Gauge
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import Connection

from bitel.dialer.trunk import shown
from bitel.dialer.trunk_monitor import TrunkState
from bitel.dialing.backpressure import LIMITS, OverloadReason
from bitel.dialing.dispatcher import Figures
from bitel.domain.attempts import Irregularity, Outcome
from bitel.domain.calls import CallStatus, Lane
from bitel.errors import UnavailableError
from bitel.maintenance.storage_pressure import StoragePressure
from bitel.observability.event_loop import Histogram
from bitel.rtp.streamer import StreamerStats
from bitel.store import leases, monitoring
from bitel.store.database import Database
from bitel.store.leases import DialerState
from bitel.store.monitoring import Waiting

log = structlog.get_logger(__name__)

FRESH: Final = 1.0
"""Seconds for which a page is cached."""
DATABASE_TIMEOUT: Final = 2.0
"""Seconds that the database may take; beyond, the page omits the metrics of the database."""
SEEN_WITHIN: Final = 15.0
"""Maximum seconds since the last heartbeat of a dialer that counts as up."""

_VERSION: Final = version("bitel")  # read once, since it is in a file


@dataclass(frozen=True, slots=True)
class DialerFigures:
    """The present state of one dialer of this process."""

    dialer_id: str
    is_paused: bool
    """Whether its trunks refuse all calls, so that calls wait."""
    channels: int
    """In use."""
    max_channels: int
    channels_share: int
    """Channels of this worker, of those of all workers together."""
    has_lease: bool
    figures: Figures
    invites: int
    signs: frozenset[OverloadReason]
    held_back: float
    """Seconds for which claims were paused because of overload."""
    trunks: Sequence[TrunkState]
    streams: StreamerStats
    messages_dropped: tuple[int, int] = (0, 0)
    """SIP messages from sources that are not accepted: all, and those that name a running call."""
    recordings_unreachable: int = 0
    """Missing recordings and languages of digits that calls need."""


DialerSource = Callable[[], DialerFigures]


class Deliverer(Protocol):
    """Delivers webhooks."""

    @property
    def running(self) -> int:
        """Running tries."""


@dataclass(slots=True)
class Sources:
    """Where the metrics of this process are read from; `dialers` grows during the start."""

    database: Database
    dialer_ids: Sequence[str]
    """All dialers of the settings, of this process or others."""
    clock: Callable[[], float]
    """Unix seconds of stored times."""
    lag: Histogram
    """Lateness of the event loop."""
    collector: Histogram
    """Pauses by the garbage collector."""
    clock_gap: Callable[[], float] = lambda: 0.0
    """Seconds by which the system clock is ahead of `clock`."""
    storage: StoragePressure | None = None
    """Sizes of database and disk."""
    api_processes: Callable[[], int] | None = None
    """How many processes share the rate limits, as this one counts; None: it has no API."""
    deliverer: Deliverer | None = None
    group_ids: Sequence[str] = ()
    """The groups of dialers, whose calls wait in queues of their own."""
    """None if another process delivers."""
    dialers: list[DialerSource] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Metrics from the database, about all processes."""

    at: float
    waiting: Waiting
    dialers: dict[str, DialerState]
    """By dialer that ever ran."""


class Page(Collector):
    """Call it for the text, in Prometheus's exposition format (version 0.0.4).

    The text is cached for `FRESH` seconds.
    """

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._snapshot: Snapshot | None = None
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._lock = asyncio.Lock()
        self._text = b""
        self._made_at = -FRESH

    async def __call__(self) -> bytes:
        """The page, at most `FRESH` seconds old."""
        async with self._lock:
            now = asyncio.get_running_loop().time()
            if now - self._made_at >= FRESH:
                self._snapshot = await self._read_snapshot()
                self._text = generate_latest(self._registry)
                self._made_at = asyncio.get_running_loop().time()
            return self._text

    def collect(self) -> Iterator[Metric]:
        """The metrics, for the registry."""
        return _families(self._sources, self._snapshot)

    async def _read_snapshot(self) -> Snapshot | None:
        """The metrics from the database; None if it does not answer in time."""
        now = self._sources.clock()

        def work(conn: Connection) -> Snapshot:
            return Snapshot(
                now,
                monitoring.waiting(conn, (*self._sources.dialer_ids, *self._sources.group_ids)),
                leases.dialer_states(conn, now, SEEN_WITHIN),
            )

        try:
            async with asyncio.timeout(DATABASE_TIMEOUT):
                return await self._sources.database.read(work)
        except (UnavailableError, TimeoutError) as fault:
            log.warning("metrics_without_database", fault=str(fault) or "it takes too long")
            return None


def _families(sources: Sources, snapshot: Snapshot | None) -> Iterator[Metric]:
    labels = {"version": _VERSION, "python": platform.python_version()}
    yield _family(
        Gauge, "bitel_build_info", "The version that runs.", list(labels), [(labels.values(), 1)]
    )
    yield from _calls(sources.database)
    if snapshot is not None:
        yield from _queue(snapshot, sources.dialer_ids)
    if sources.dialers:
        dialers = [figures_of() for figures_of in sources.dialers]
        yield from _per_dialer(dialers)
    yield from _database(sources.database, reached=snapshot is not None)
    yield _histogram(
        "bitel_event_loop_lag_seconds",
        "How late the event loop was for a timer that is due ten times a second.",
        sources.lag,
    )
    yield _histogram(
        "bitel_collector_pause_seconds",
        "How long a run of the collector of cyclic garbage took, all else waiting.",
        sources.collector,
    )
    yield Gauge(
        "bitel_clock_step_seconds",
        "Seconds by which the system clock is ahead of the clock that due times are measured by.",
        value=sources.clock_gap(),
    )
    if sources.storage is not None:
        yield from _storage(sources.storage)
    if sources.api_processes is not None:
        yield Gauge(
            "bitel_api_processes",
            "Live processes that answer the API and share its rate limits, as this one counts.",
            value=sources.api_processes(),
        )
    if sources.deliverer is not None:
        running = sources.deliverer.running
        yield Gauge("bitel_webhook_tries_running", "Tries under way.", value=running)


def _family(
    kind: type[Counter] | type[Gauge],
    name: str,
    what: str,
    labels: Sequence[str],
    samples: Iterable[tuple[Iterable[str], float]],
) -> Metric:
    """A metric family; a sample is the values of `labels` and the metric's value."""
    family = kind(name, what, labels=labels)
    for values, value in samples:
        family.add_metric(list(values), value)
    return family


def _histogram(name: str, what: str, counted: Histogram) -> Metric:
    family = HistogramMetricFamily(name, what)
    bounds = [*(str(bound) for bound in counted.bounds), "+Inf"]
    family.add_metric(
        [],
        buckets=list(zip(bounds, map(float, itertools.accumulate(counted.counts)), strict=True)),
        sum_value=counted.total,
    )
    return family


def _calls(database: Database) -> Iterator[Metric]:
    """Calls that this process placed and ended."""
    counts = database.stats.calls
    placed = (([lane.name.lower()], counts["placed", lane.name]) for lane in Lane)
    yield _family(Counter, "bitel_calls_placed", "Calls placed.", ["lane"], placed)
    ended = (([each.name], counts["ended", each.name]) for each in CallStatus if each.final)
    yield _family(
        Counter, "bitel_calls_ended", "Calls that are final, by status.", ["status"], ended
    )


def _queue(snapshot: Snapshot, dialer_ids: Sequence[str]) -> Iterator[Metric]:
    queues = snapshot.waiting.queues

    def state(dialer_id: str) -> DialerState:
        return snapshot.dialers.get(dialer_id, DialerState())

    def per_queue(
        name: str, what: str, value: Callable[[str], float], ids: Iterable[str] = queues
    ) -> Metric:
        return _family(Gauge, name, what, ["dialer"], (([each], value(each)) for each in ids))

    def age(dialer_id: str) -> float:
        due_at = queues[dialer_id].oldest_due_at
        return 0.0 if due_at is None else max(0.0, snapshot.at - due_at)

    yield per_queue(
        "bitel_dialer_up", "Whether calls can be placed.", lambda each: state(each).up, dialer_ids
    )
    yield per_queue(
        "bitel_workers",
        "Processes that dial for it, on all machines.",
        lambda each: state(each).workers,
        dialer_ids,
    )
    yield per_queue(
        "bitel_calls_waiting",
        "Calls that wait for an attempt, due or not; 10000 means that many or more.",
        lambda each: queues[each].waiting,
    )
    yield per_queue(
        "bitel_queue_age_seconds",
        "For how long the call has been due that has been due for longest; 0 where none is.",
        age,
    )
    yield Gauge(
        "bitel_webhook_backlog",
        "Webhook events still to be delivered; 10000 means that many or more.",
        value=snapshot.waiting.webhooks,
    )


def _per_dialer(dialers: Sequence[DialerFigures]) -> Iterator[Metric]:
    for kind, name, what, labels, value in PER_DIALER:
        samples: list[tuple[Iterable[str], float]] = []
        for one in dialers:
            found = value(one)
            by_labels = found if isinstance(found, Mapping) else {(): found}
            samples += (((one.dialer_id, *each), number) for each, number in by_labels.items())
        yield _family(kind, name, what, ["dialer", *labels], samples)


def _address(state: TrunkState) -> tuple[str, str]:
    return state.trunk, shown(state.address) if state.address else ""


PerDialer = tuple[
    type[Counter] | type[Gauge],
    str,
    str,
    Sequence[str],
    Callable[[DialerFigures], float | Mapping[tuple[str, ...], float]],
]

_PLACE: Final = ("trunk", "address")

# fmt: off
PER_DIALER: Final[Sequence[PerDialer]] = (
    (Gauge, "bitel_channels_used", "Channels in use.", (), lambda one: one.channels),
    (Gauge, "bitel_channels_max", "Channels that there are.", (), lambda one: one.max_channels),
    (Gauge, "bitel_worker_channels", "Channels that this worker may use of those.", (),
     lambda one: one.channels_share),
    (Gauge, "bitel_worker_lease", "1 while this worker holds a valid lease of the dialer.", (),
     lambda one: one.has_lease),
    (Counter, "bitel_attempts", "Attempts begun.", (), lambda one: one.figures.claimed),
    (Counter, "bitel_invites", "INVITEs sent, repetitions not counted.", (),
     lambda one: one.invites),
    (Counter, "bitel_answers", "Attempts that were answered.", (),
     lambda one: one.figures.answered),
    (Counter, "bitel_attempts_ended", "Attempts that are over.", ("outcome",),
     lambda one: {(each.value,): one.figures.ended[each] for each in Outcome}),
    (Counter, "bitel_attempts_irregular",
     "Answered attempts with an irregularity, which did not change their outcome.",
     ("irregularity",),
     lambda one: {(each.value,): one.figures.irregular[each] for each in Irregularity}),
    (Gauge, "bitel_dialer_paused", "1 while calls wait because the trunks refuse all of them.", (),
     lambda one: one.is_paused),
    (Gauge, "bitel_claiming_paused",
     "1 while no call is claimed because the machine has no room, by sign.", ("sign",),
     lambda one: {(sign,): sign in one.signs for sign in LIMITS}),
    (Counter, "bitel_claiming_paused_seconds", "For how long that has been so.", (),
     lambda one: one.held_back),
    (Counter, "bitel_sip_messages_dropped",
     "SIP messages from sources that are not accepted, by what they are about: a running call, "
     "or nothing that is known.", ("about",),
     lambda one: {("call",): one.messages_dropped[1],
                  ("other",): one.messages_dropped[0] - one.messages_dropped[1]}),
    (Gauge, "bitel_recordings_unreachable",
     "Recordings, and languages for digits, that waiting calls need and that can't be had.", (),
     lambda one: one.recordings_unreachable),
    (Gauge, "bitel_trunk_up", "Whether a call would be tried there first.", _PLACE,
     lambda one: {_address(each): each.usable for each in one.trunks}),
    (Gauge, "bitel_trunk_resting", "Whether it asked to be left alone.", _PLACE,
     lambda one: {_address(each): each.rests for each in one.trunks}),
    (Gauge, "bitel_trunk_answered_timestamp_seconds", "When it last answered.", _PLACE,
     lambda one: {_address(each): each.answered_at
                  for each in one.trunks if each.answered_at is not None}),
    (Gauge, "bitel_trunk_registered",
     "Whether the dialer is registered there, where it is to be.", ("trunk",),
     lambda one: {(each.trunk,): each.registered
                  for each in one.trunks if each.registered is not None}),
    (Gauge, "bitel_rtp_streams", "RTP streams that run.", (), lambda one: one.streams.running),
    (Counter, "bitel_rtp_packets", "RTP packets sent.", (), lambda one: one.streams.packets),
    (Counter, "bitel_rtp_packets_refused", "RTP packets that the kernel did not take.", (),
     lambda one: one.streams.refused),
    (Counter, "bitel_rtp_ticks", "Batches of packets sent.", (), lambda one: one.streams.ticks),
    (Counter, "bitel_rtp_ticks_late", "Those that were more than 5 ms late.", (),
     lambda one: one.streams.late_ticks),
    (Gauge, "bitel_rtp_tick_lateness_seconds",
     "How late they were in the last 10 s: the 99th percentile, and the maximum.", ("statistic",),
     lambda one: {("p99",): one.streams.p99_ms / 1000, ("max",): one.streams.worst_ms / 1000}),
    (Counter, "bitel_rtp_cpu_seconds", "CPU time of the sender processes.", (),
     lambda one: one.streams.cpu_seconds),
    (Counter, "bitel_rtp_sender_failures",
     "Sender processes that died or hung, and failed starts of their replacements.", (),
     lambda one: one.streams.failures),
)
# fmt: on
"""Metrics of the dialers of this process: kind, name, help text, labels besides `dialer`, and a
function that returns a dialer's value, or its values by label values."""


def _database(store: Database, *, reached: bool) -> Iterator[Metric]:
    stats = store.stats
    for kind, name, what, value in (
        (Gauge, "up", "Whether it answered when these metrics were read.", reached),
        (Counter, "batches", "Transactions committed.", stats.batches),
        (Counter, "batches_failed", "Transactions lost.", stats.failed_batches),
        (Counter, "writes", "Units of work in them.", stats.units),
        (Gauge, "batch_largest", "The most in one of them.", stats.largest_batch),
        (Counter, "commit_seconds", "Time spent in COMMIT.", stats.commit_seconds),
        (Gauge, "writes_waiting", "Units that wait now.", store.writes_waiting),
    ):
        yield _family(kind, f"bitel_database_{name}", what, [], [([], value)])


def _storage(sizes: StoragePressure) -> Iterator[Metric]:
    state = sizes.state
    for name, what, value in (
        ("bitel_database_bytes", "Size of the database.", state.database),
        ("bitel_sqlite_wal_bytes", "Size of SQLite's write-ahead log.", state.wal),
        ("bitel_postgresql_dead_rows", "Rows that a vacuum is to remove.", state.dead_rows),
        (
            "bitel_postgresql_oldest_transaction_seconds",
            "For how long the oldest snapshot has been in use, as far as our role may see.",
            state.oldest_transaction,
        ),
        ("bitel_disk_free_bytes", "Free on the disk of data_dir.", sizes.disk_free),
    ):
        yield Gauge(name, what, value=value)
