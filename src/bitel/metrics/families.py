"""Each metric: its name, what it counts, and where its value is from.

No label names a project, a call or a number. Those that a dialer has belong to the process that
runs it; what is read from the database is the same from every process.
"""

from __future__ import annotations

import itertools
import platform
from collections.abc import Iterator
from importlib.metadata import version
from typing import Final

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from bitel.dialer.trunk import shown
from bitel.dialing.backpressure import LIMITS
from bitel.domain.attempts import Irregularity, Outcome
from bitel.domain.calls import CallStatus, Lane
from bitel.metrics.sources import DialerFigures, Snapshot, Storage
from bitel.observability.histogram import Histogram
from bitel.store.database import Database

_DIALER: Final = ["dialer"]
_VERSION: Final = version("bitel")  # read from a file, so once


def build() -> Iterator[Metric]:
    """Which version this is."""
    labels = {"version": _VERSION, "python": platform.python_version()}
    info = GaugeMetricFamily("bitel_build_info", "The version that runs.", labels=list(labels))
    info.add_metric(list(labels.values()), 1)
    yield info


def calls(database: Database) -> Iterator[Metric]:
    """Calls that this process took in and ended: those of all processes add up."""
    tally = database.stats.calls
    placed = CounterMetricFamily("bitel_calls_placed", "Calls placed.", labels=["lane"])
    for lane in Lane:
        placed.add_metric([lane.name.lower()], tally["placed", lane.name])
    yield placed
    ended = CounterMetricFamily(
        "bitel_calls_ended", "Calls that are final, by status.", labels=["status"]
    )
    for status in CallStatus:
        if status.final:
            ended.add_metric([status.name], tally["ended", status.name])
    yield ended


def queue(snapshot: Snapshot) -> Iterator[Metric]:
    """What waits in the database."""
    up = GaugeMetricFamily("bitel_dialer_up", "Whether calls can be placed.", labels=_DIALER)
    waiting = GaugeMetricFamily(
        "bitel_calls_waiting",
        "Calls that wait for an attempt, due or not; 10000 means that many or more.",
        labels=_DIALER,
    )
    age = GaugeMetricFamily(
        "bitel_queue_age_seconds",
        "For how long the call has been due that has been due for longest; 0 where none is.",
        labels=_DIALER,
    )
    for dialer_id, each in snapshot.waiting.queues.items():
        up.add_metric([dialer_id], snapshot.up.get(dialer_id, False))
        waiting.add_metric([dialer_id], each.waiting)
        due_at = snapshot.at if each.oldest_due_at is None else each.oldest_due_at
        age.add_metric([dialer_id], max(0.0, snapshot.at - due_at))
    yield from (up, waiting, age)
    yield GaugeMetricFamily(
        "bitel_webhook_backlog",
        "Webhook events still to be delivered; 10000 means that many or more.",
        value=snapshot.waiting.webhooks,
    )


def dialer(dialers: list[DialerFigures]) -> Iterator[Metric]:
    """What the dialers of this process do."""
    used = GaugeMetricFamily("bitel_channels_used", "Channels in use.", labels=_DIALER)
    most = GaugeMetricFamily("bitel_channels_max", "Channels that there are.", labels=_DIALER)
    attempts = CounterMetricFamily("bitel_attempts", "Attempts begun.", labels=_DIALER)
    invites = CounterMetricFamily(
        "bitel_invites", "INVITEs sent, repetitions not counted.", labels=_DIALER
    )
    answers = CounterMetricFamily("bitel_answers", "Attempts that were answered.", labels=_DIALER)
    ended = CounterMetricFamily(
        "bitel_attempts_ended", "Attempts that are over.", labels=["dialer", "outcome"]
    )
    irregular = CounterMetricFamily(
        "bitel_attempts_irregular",
        "Answered attempts with an irregularity, which did not change their outcome.",
        labels=["dialer", "irregularity"],
    )
    paused = GaugeMetricFamily(
        "bitel_dialer_paused",
        "1 while calls wait because the trunks refuse all of them.",
        labels=_DIALER,
    )
    for one in dialers:
        key = [one.dialer_id]
        used.add_metric(key, one.channels)
        most.add_metric(key, one.max_channels)
        attempts.add_metric(key, one.figures.claimed)
        invites.add_metric(key, one.invites)
        paused.add_metric(key, one.is_paused)
        answers.add_metric(key, one.figures.answered)
        for outcome in Outcome:
            ended.add_metric([*key, outcome.value], one.figures.ended[outcome])
        for kind in Irregularity:
            irregular.add_metric([*key, kind.value], one.figures.irregular[kind])
    yield from (used, most, attempts, invites, answers, ended, irregular, paused)


def pressure(dialers: list[DialerFigures]) -> Iterator[Metric]:
    """Whether calls are held back, and why."""
    paused = GaugeMetricFamily(
        "bitel_claiming_paused",
        "1 while no call is claimed because the machine has no room, by sign.",
        labels=["dialer", "sign"],
    )
    seconds = CounterMetricFamily(
        "bitel_claiming_paused_seconds", "For how long that has been so.", labels=_DIALER
    )
    for one in dialers:
        for sign in LIMITS:
            paused.add_metric([one.dialer_id, sign], sign in one.signs)
        seconds.add_metric([one.dialer_id], one.held_back)
    yield from (paused, seconds)


def strangers(dialers: list[DialerFigures]) -> Iterator[Metric]:
    """What comes from sources that are not accepted."""
    dropped = CounterMetricFamily(
        "bitel_sip_messages_dropped",
        "SIP messages from sources that are not accepted, by what they are about: a running call, "
        "or nothing that is known.",
        labels=["dialer", "about"],
    )
    for one in dialers:
        every, of_calls = one.messages_dropped
        dropped.add_metric([one.dialer_id, "call"], of_calls)
        dropped.add_metric([one.dialer_id, "other"], every - of_calls)
    yield dropped


def recordings(dialers: list[DialerFigures]) -> Iterator[Metric]:
    """Whether there is something to play."""
    unreachable = GaugeMetricFamily(
        "bitel_recordings_unreachable",
        "Recordings, and languages for digits, that waiting calls need and that can't be had.",
        labels=_DIALER,
    )
    for one in dialers:
        unreachable.add_metric([one.dialer_id], one.recordings_unreachable)
    yield unreachable


def trunks(dialers: list[DialerFigures]) -> Iterator[Metric]:
    """How the carriers' addresses stand."""
    place = ["dialer", "trunk", "address"]
    usable = GaugeMetricFamily(
        "bitel_trunk_up", "Whether a call would be tried there first.", labels=place
    )
    rests = GaugeMetricFamily(
        "bitel_trunk_resting", "Whether it asked to be left alone.", labels=place
    )
    answered = GaugeMetricFamily(
        "bitel_trunk_answered_timestamp_seconds", "When it last answered.", labels=place
    )
    registered = GaugeMetricFamily(
        "bitel_trunk_registered",
        "Whether the dialer is registered there, where it is to be.",
        labels=["dialer", "trunk"],
    )
    for one in dialers:
        known: dict[str, bool] = {}
        for state in one.trunks:
            address = shown(state.address) if state.address else ""
            key = [one.dialer_id, state.trunk, address]
            usable.add_metric(key, state.usable)
            rests.add_metric(key, state.rests)
            if state.answered_at is not None:
                answered.add_metric(key, state.answered_at)
            if state.registered is not None:
                known[state.trunk] = state.registered
        for trunk, is_registered in known.items():
            registered.add_metric([one.dialer_id, trunk], is_registered)
    yield from (usable, rests, answered, registered)


def streams(dialers: list[DialerFigures]) -> Iterator[Metric]:
    """How the senders of RTP fare."""
    running = GaugeMetricFamily("bitel_rtp_streams", "RTP streams that run.", labels=_DIALER)
    packets = CounterMetricFamily("bitel_rtp_packets", "RTP packets sent.", labels=_DIALER)
    refused = CounterMetricFamily(
        "bitel_rtp_packets_refused", "RTP packets that the kernel did not take.", labels=_DIALER
    )
    ticks = CounterMetricFamily("bitel_rtp_ticks", "Batches of packets sent.", labels=_DIALER)
    late = CounterMetricFamily(
        "bitel_rtp_ticks_late", "Those that were more than 5 ms late.", labels=_DIALER
    )
    lateness = GaugeMetricFamily(
        "bitel_rtp_tick_lateness_seconds",
        "How late they were in the last 10 s: the 99th percentile, and the maximum.",
        labels=["dialer", "statistic"],
    )
    cpu = CounterMetricFamily(
        "bitel_rtp_cpu_seconds", "CPU time of the sender processes.", labels=_DIALER
    )
    failures = CounterMetricFamily(
        "bitel_rtp_sender_failures",
        "Sender processes that died or hung, and failed starts of their replacements.",
        labels=_DIALER,
    )
    for one in dialers:
        key, stats = [one.dialer_id], one.streams
        running.add_metric(key, stats.running)
        packets.add_metric(key, stats.packets)
        refused.add_metric(key, stats.refused)
        ticks.add_metric(key, stats.ticks)
        late.add_metric(key, stats.late_ticks)
        lateness.add_metric([*key, "p99"], stats.p99_ms / 1000)
        lateness.add_metric([*key, "max"], stats.worst_ms / 1000)
        cpu.add_metric(key, stats.cpu_seconds)
        failures.add_metric(key, stats.failures)
    yield from (running, packets, refused, ticks, late, lateness, cpu, failures)


def database(store: Database, *, reached: bool) -> Iterator[Metric]:
    """What this process's writer has done."""
    stats = store.stats
    yield GaugeMetricFamily(
        "bitel_database_up", "Whether it answered when these metrics were read.", value=reached
    )
    yield CounterMetricFamily(
        "bitel_database_batches", "Transactions committed.", value=stats.batches
    )
    yield CounterMetricFamily(
        "bitel_database_batches_failed", "Transactions lost.", value=stats.failed_batches
    )
    yield CounterMetricFamily("bitel_database_writes", "Units of work in them.", value=stats.units)
    yield GaugeMetricFamily(
        "bitel_database_batch_largest", "The most in one of them.", value=stats.largest_batch
    )
    yield CounterMetricFamily(
        "bitel_database_commit_seconds", "Time spent in COMMIT.", value=stats.commit_seconds
    )
    yield GaugeMetricFamily(
        "bitel_database_writes_waiting", "Units that wait now.", value=store.writes_waiting
    )


def pauses(lag: Histogram, collector: Histogram) -> Iterator[Metric]:
    """How punctual the event loop is, and how long Python's own housekeeping kept it."""
    yield _histogram(
        "bitel_event_loop_lag_seconds",
        "How late the event loop was for a timer that is due ten times a second.",
        lag,
    )
    yield _histogram(
        "bitel_collector_pause_seconds",
        "How long a run of the collector of cyclic garbage took, all else waiting.",
        collector,
    )


def storage(sizes: Storage) -> Iterator[Metric]:
    """How large database and disk are, and what keeps the database from shrinking."""
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
        yield GaugeMetricFamily(name, what, value=value)


def clock(gap: float) -> Metric:
    """How far the system clock has been set since the service's clock was taken from it."""
    return GaugeMetricFamily(
        "bitel_clock_step_seconds",
        "Seconds by which the system clock is ahead of the clock that due times are measured by.",
        value=gap,
    )


def _histogram(name: str, what: str, counted: Histogram) -> Metric:
    family = HistogramMetricFamily(name, what)
    bounds = [*(str(bound) for bound in counted.bounds), "+Inf"]
    family.add_metric(
        [],
        buckets=list(zip(bounds, map(float, itertools.accumulate(counted.counts)), strict=True)),
        sum_value=counted.total,
    )
    return family


def webhooks(under_way: int) -> Iterator[Metric]:
    """What this process delivers."""
    yield GaugeMetricFamily("bitel_webhook_tries_running", "Tries under way.", value=under_way)
