"""Builds the parts of the service from its settings; `run` starts and stops them."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import structlog
from sqlalchemy import URL, Connection

from bitel.api import signing_keys
from bitel.api.auth import TokenSigner
from bitel.api.context import ApiContext
from bitel.api.live_processes import LiveProcesses
from bitel.api.rate_limits import quota_of
from bitel.api.routes.health import Readiness
from bitel.api.signing_keys import SigningKeyRefresher
from bitel.dialer.call_attempt import CallObserver
from bitel.dialer.caller_identity import CallerIds
from bitel.dialer.config import sip_trunk_config
from bitel.dialer.playlist import Playlists
from bitel.dialer.sip_dialer import SipTrunkDialer, packets_late
from bitel.dialing.backpressure import LoadSample
from bitel.dialing.dispatcher import Dispatcher
from bitel.dialing.journal import Journal
from bitel.dialing.lease_keeper import ClaimMark
from bitel.dialing.limit_shares import LimitGroup, Limits
from bitel.dialing.recording_faults import RecordingFaults
from bitel.dialing.standby import Standby
from bitel.domain.dialer_groups import DialerGroup, Membership
from bitel.domain.ids import new_id
from bitel.errors import BitelError
from bitel.maintenance.retention import Retention
from bitel.maintenance.storage_pressure import StoragePressure
from bitel.metrics import DialerFigures, DialerSource, Page
from bitel.notifications.conditions import Change, Condition, ConditionWatcher, of_dialer
from bitel.observability.event_loop import LoopLag
from bitel.recordings.storage import VoiceStore
from bitel.service.dialer_worker import DialerWorker
from bitel.service.shutdown import CLOSING_TIMEOUT, Shutdown
from bitel.settings import DialerSettings, Settings, WorkerSlot
from bitel.speech.engines import SpeechOptions
from bitel.speech.library import SpeechLibrary
from bitel.speech.renderer import TextRenderer
from bitel.steady_clock import SteadyClock
from bitel.store import engines, migrate, recordings, speech_parts, wakeups
from bitel.store.database import Database
from bitel.store.wakeups import Wakeups

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Resources:
    """What the parts of one process share."""

    settings: Settings
    """Those in force; a reload replaces them, so read them at each use."""
    clock: SteadyClock
    database: Database
    voices: VoiceStore
    speech: SpeechLibrary
    playlists: Playlists
    worker: str
    """The name of this process, as in `bitel workers`."""
    wakeups: Wakeups | None = None
    """To other processes; None where the database has none."""


@contextlib.asynccontextmanager
async def open_resources(settings: Settings, shutdown: Shutdown) -> AsyncIterator[Resources]:
    """Create `data_dir`, upgrade and open the database, and check the storage of recordings.

    Raises BitelError.
    """
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as fault:
        raise BitelError(f"data_dir {settings.data_dir} can't be made: {fault.strerror}") from fault
    clock = await asyncio.to_thread(SteadyClock.open, settings.data_dir)
    url = settings.effective_database_url
    if await asyncio.to_thread(migrate.upgrade, url):
        log.info("database_created", at=engines.place(engines.parse_url(url)))
    database = Database.open(url)
    try:
        voices = VoiceStore.open(
            settings.storage_url.get_secret_value(), settings.data_dir, settings.s3
        )
        await voices.check()
        speech = SpeechLibrary(
            settings.data_dir / "speech",
            SpeechOptions(
                default_language=settings.speech.default_language,
                languages=settings.speech.languages,
                piper=settings.speech.piper,
                max_chars=settings.speech.max_chars,
            ),
            clock=clock,
        )
        playlists = Playlists(
            voices, speech, lambda id_: database.read(functools.partial(_duration, id_=id_))
        )
        try:
            worker = f"{socket.gethostname()}-{os.getpid()}-{new_id(clock())[-6:]}"
            yield Resources(settings, clock, database, voices, speech, playlists, worker)
        finally:
            await shutdown.step("speech", speech.close)
    finally:
        # In this thread: those of the executor may all be blocked.
        if not database.close(shutdown.left(CLOSING_TIMEOUT)):
            log.warning("not_stopped_in_time", part="database")


def _duration(conn: Connection, id_: str) -> float | None:
    """Duration in seconds of a recording or of a part of a text; None without one."""
    seconds = recordings.duration(conn, id_)
    return speech_parts.duration(conn, id_) if seconds is None else seconds


async def open_signer(resources: Resources) -> tuple[TokenSigner, SigningKeyRefresher]:
    """The signer of tokens, and what keeps its keys those of the database.

    Raises SettingsError if the keys can't be unwrapped, and UnavailableError.
    """
    settings, clock, database = resources.settings, resources.clock, resources.database
    secret = settings.signing_key_secret.get_secret_value()

    def system_clock() -> float:
        return clock.date(clock())

    keys = await database.write(
        lambda conn: signing_keys.open_keys(conn, settings.data_dir, secret, system_clock())
    )
    signer = TokenSigner(keys, system_clock)
    return signer, SigningKeyRefresher(signer, database, secret)


def build_dialer(
    dialer: DialerSettings,
    slot: WorkerSlot,
    resources: Resources,
    observer: CallObserver,
    on_settled: Callable[[], None],
    lag: LoopLag,
    shutdown: Shutdown,
    on_drain: Callable[[], None],
) -> DialerWorker:
    """A SIP dialer with its dispatcher.

    `on_settled` is called after results are committed, `on_drain` if the operator has asked the
    worker to stop.
    """
    settings, clock, database = resources.settings, resources.clock, resources.database
    name = f"{dialer.id}{slot.suffix}"
    recording_faults = RecordingFaults(dialer.id, time.monotonic)
    trunk = SipTrunkDialer(
        sip_trunk_config(dialer, settings.region),
        resources.playlists,
        clock,
        observer=observer,
        recording_faults=recording_faults,
    )

    def load() -> LoadSample:
        late = packets_late(trunk.streamer.stats())
        return LoadSample(late, lag.mean * 1000, database.writes_waiting, trunk.behind * 1000)

    dispatcher = Dispatcher(
        dialer.id,
        worker=resources.worker,
        dialer=trunk,
        limits=dispatch_limits(dialer),
        limit_group=LimitGroup(
            f"={dialer.limit_group}" if dialer.limit_group else dialer.id,
            settings.limit_group_of(dialer),
        ),
        database=database,
        tariff=settings.price_list(),
        clock=clock,
        ahead=functools.partial(getattr, clock, "gap"),
        on_settled=on_settled,
        load=load,
        recording_faults=recording_faults,
        journal=Journal(
            settings.data_dir / f"unsettled-{name}.journal",
            capacity=dialer.max_channels,
        ),
        mark=ClaimMark(settings.data_dir / f"dialer-{name}.mark"),
        late_ms=lambda: packets_late(trunk.streamer.stats()),
        on_drain=on_drain,
        groups=memberships(settings, dialer),
    )
    trunk.confirm_lease, trunk.has_lease = dispatcher.confirm_lease, dispatcher.has_lease
    trunk.registers = dispatcher.is_first_worker
    trunk.opt_out = dispatcher.opt_out
    standby = Standby(
        dialer.id, dispatcher.worker, database, settings.data_dir, clock, number=slot.number
    )
    return DialerWorker(trunk, dispatcher, standby, settings.drain_timeout, shutdown)


def dispatch_limits(dialer: DialerSettings) -> Limits:
    """The limits of a dialer's dispatcher."""
    return Limits(
        dialer.max_channels,
        dialer.calls_per_second,
        dialer.ring_timeout,
        dialer.otp_channels,
        dialer.uncertain_redials,
    )


def memberships(settings: Settings, dialer: DialerSettings) -> list[Membership]:
    """The groups that a dialer is in."""
    caller_ids = CallerIds(dialer.caller_pool, dialer.caller_ids)
    return [
        Membership(
            DialerGroup(each.id, tuple(each.dialers), tuple(each.weights)),
            dialer.id,
            dialer.all_caller_ids,
            caller_ids.choose,
        )
        for each in settings.dialer_groups
        if dialer.id in each.dialers
    ]


def dialer_source(worker: DialerWorker) -> DialerSource:
    """What the metrics report about a dialer."""
    trunk, dispatcher = worker.dialer, worker.dispatcher
    return lambda: DialerFigures(
        dialer_id=dispatcher.dialer_id,
        is_paused=bool(trunk.paused_reason),
        channels=dispatcher.running,
        max_channels=dispatcher.max_channels,
        channels_share=dispatcher.channels_share,
        has_lease=not worker.in_standby and dispatcher.has_lease(),
        figures=dispatcher.figures,
        invites=trunk.invites,
        signs=dispatcher.pressure.signs,
        held_back=dispatcher.held_back,
        trunks=trunk.trunks(),
        streams=trunk.streamer.stats(),
        messages_dropped=trunk.messages_dropped,
        recordings_unreachable=dispatcher.recording_faults.count(),
    )


def build_renderer(resources: Resources, workers: Sequence[DialerWorker]) -> TextRenderer:
    """Speaks the texts of waiting calls; `workers` are the dialers of this process."""
    return TextRenderer(
        resources.database,
        resources.voices,
        resources.speech,
        resources.clock,
        lambda: quota_of(resources.settings).stored_bytes,
        waker(resources, workers),
    )


def waker(resources: Resources, workers: Sequence[DialerWorker]) -> Callable[[str], None]:
    """Wakes the dispatchers of a dialer, or of a group, in this process and in others."""
    dispatchers = {each.dialer_id: each.dispatcher for each in workers}
    settings = resources.settings
    behind = {
        server_id: [each.id for each in settings.dialers_behind(server_id)]
        for server_id in settings.server_ids
    }

    def wake(server_id: str) -> None:
        for dialer_id in behind.get(server_id, [server_id]):
            if dialer_id in dispatchers:
                dispatchers[dialer_id].wake()
            if resources.wakeups is not None:
                resources.wakeups.send(wakeups.calls_of(dialer_id))

    return wake


def build_wakeups(
    url: URL, workers: Sequence[DialerWorker], wake_deliverer: Callable[[], None]
) -> Wakeups:
    """Wakes parts of this process when another one has something for them.

    `workers` grows during the start.
    """
    loop = asyncio.get_running_loop()

    def wake(topic: str) -> None:
        if topic in (wakeups.EVENTS, wakeups.EVERYTHING):
            wake_deliverer()
        for each in workers:
            if topic in (wakeups.calls_of(each.dialer_id), wakeups.EVERYTHING):
                each.dispatcher.wake()

    def wake_soon(topic: str) -> None:
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            loop.call_soon_threadsafe(wake, topic)

    return Wakeups(url, wake_soon)


def build_api(
    resources: Resources,
    workers: Sequence[DialerWorker],
    signer: TokenSigner,
    refresher: SigningKeyRefresher,
    processes: LiveProcesses,
    renderer: TextRenderer,
    page: Page | None,
    pressure: StoragePressure,
    shutdown: Shutdown,
) -> ApiContext:
    """What the HTTP API works with; `workers` are the dialers of this process."""

    def notes() -> dict[str, Any]:
        days = resources.settings.retention.calls
        kept = f"{days:g} days" if days else "ever"
        return {
            "warnings": list(pressure.warnings),
            "storage": f"calls are kept for {kept}, and each takes 650 B to 1.5 kB of the database",
        }

    return ApiContext(
        settings=resources.settings,
        database=resources.database,
        voices=resources.voices,
        speech=resources.speech,
        tokens=signer,
        find_key=refresher.find,
        live_processes=functools.partial(getattr, processes, "count"),
        clock=resources.clock,
        date=resources.clock.date,
        on_placed=waker(resources, workers),
        on_texts_placed=renderer.wake,
        metrics=page,
        ready=Readiness(
            resources.database,
            lambda: shutdown.has_begun,
            lambda: [each.dialer_id for each in workers if each.in_standby],
            lambda: [each.dialer_id for each in workers if each.dispatcher.claims_fail],
        ),
        ready_notes=notes,
    )


def build_retention(resources: Resources, workers: Sequence[DialerWorker]) -> Retention:
    """Deletes what is older than the settings allow, while no dialer is under pressure."""
    clock = resources.clock
    return Retention(
        resources.database,
        resources.voices,
        lambda: resources.settings.retention,
        clock,
        lambda: clock.date(clock()),
        lambda: any(each.dispatcher.pressure.signs for each in workers),
    )


def build_condition_watcher(
    resources: Resources,
    workers: Sequence[DialerWorker],
    *,
    processes: LiveProcesses | None,
    put: Callable[[Change], None],
) -> ConditionWatcher:
    """Finds what the operator is notified of, and calls `put` with it.

    One of the `processes` that answer the API checks balances; None: this one is none of them.
    """
    settings = resources.settings

    def conditions_of(worker: DialerWorker) -> Sequence[Condition]:
        if worker.in_standby:
            return ()
        return of_dialer(worker.dialer_id, worker.dialer.trunks(), worker.dialer.paused_reason)

    return ConditionWatcher(
        resources.database,
        [functools.partial(conditions_of, worker) for worker in workers],
        [settings.data_dir],
        settings.notifications.disk_megabytes,
        settings.notifications.low_balance,
        settings.currency,
        put,
        lambda: processes is not None and processes.is_first,
    )
