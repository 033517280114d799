"""Builds the parts that a role needs, starts them in order, and stops them in the opposite one."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import structlog
import uvicorn
from fastapi import FastAPI

from bitel.api import server as http_server
from bitel.api.app import ApiContext, build_app
from bitel.api.auth import TokenSigner
from bitel.api.routes.health import Readiness
from bitel.api.routes.metrics import build_listener
from bitel.dialer.call_attempt import CallObserver
from bitel.dialer.config import sip_trunk_config
from bitel.dialer.playlist import DurationOf, Playlists
from bitel.dialer.sip_dialer import SipTrunkDialer, packets_late
from bitel.dialer.sip_trace import Keep, TraceStore
from bitel.dialer_worker import DialerWorker
from bitel.dialing.backpressure import LoadSample
from bitel.dialing.claim_mark import ClaimMark
from bitel.dialing.dispatcher import Dispatcher, Limits
from bitel.dialing.journal import Journal
from bitel.dialing.recording_faults import RecordingFaults
from bitel.dialing.standby import Standby
from bitel.domain.ids import new_id
from bitel.errors import BitelError
from bitel.maintenance.housekeeping import Housekeeper
from bitel.maintenance.retention import Retention
from bitel.maintenance.storage_pressure import StoragePressure
from bitel.metrics import DialerFigures, DialerSource, Page, Sources
from bitel.notifications.conditions import Condition, ConditionWatcher, of_dialer
from bitel.notifications.sender import NotificationSender
from bitel.observability import logging
from bitel.observability.event_loop import (
    LoopLag,
    collect_when_quiet,
    disable_collector,
    measuring_lag,
    measuring_pauses,
)
from bitel.recordings.storage import VoiceStore
from bitel.recordings.worker_process import log_confinement
from bitel.reloading import plan_reload
from bitel.settings import (
    DialerSettings,
    HttpSettings,
    RetentionSettings,
    Settings,
    TraceSettings,
    split_address,
)
from bitel.shutdown import CLOSING_TIMEOUT, Shutdown
from bitel.speech.engines import SpeechOptions
from bitel.speech.library import SpeechLibrary
from bitel.steady_clock import SteadyClock
from bitel.store import engines, migrate, recordings
from bitel.store.database import Database
from bitel.supervision import background
from bitel.webhooks.deliverer import Deliverer

log = structlog.get_logger(__name__)

WEBHOOK_PATIENCE = 5.0
"""Seconds that deliveries under way may still take at the end."""

HTTP_PATIENCE: Final = 10
"""Seconds that requests under way may still take at the end."""

TURN: Final = 0.0005
"""Seconds for which a thread keeps the interpreter while another waits for it. Those that work on
the database give it away at every statement, and at CPython's 5 ms a few dozen of them would wait
longer for a busy event loop than for the disk."""

Role = Literal["all", "api", "dialer"]


@dataclass(frozen=True, slots=True)
class Running:
    """A service that is up."""

    http_address: tuple[str, int] | None
    """Where HTTP is answered; None without the API."""
    metrics_address: tuple[str, int] | None
    """Where `/metrics` is answered without the API; None: beside it, or nowhere."""
    dialers: tuple[SipTrunkDialer, ...]
    dispatchers: tuple[Dispatcher, ...]
    workers: tuple[DialerWorker, ...]
    use: Callable[[Settings], Awaitable[None]]
    """Changes what can be changed while it runs: see `bitel.reloading`. Raises BitelError, and then
    the settings in force are those of before."""


async def serve(
    settings: Settings,
    role: Role = "all",
    take_over: bool = False,
    read_again: Callable[[], Settings] | None = None,
) -> None:
    """Run the service until SIGTERM or SIGINT, then drain it.

    That takes at most `drain_timeout` + `SHUTDOWN_MARGIN` seconds, with or without a database.
    `take_over` takes its dialers from workers that are alive, instead of waiting for their end.
    `read_again` reads the settings on SIGHUP (None: SIGHUP is ignored); it may raise BitelError.
    Raises BitelError in one sentence where it can't start, when another worker took over a dialer
    of this one, or when ends of calls could be stored nowhere.
    """
    stop = asyncio.Event()
    shutdown = Shutdown(settings.drain_timeout)
    loop = asyncio.get_running_loop()

    def end() -> None:
        shutdown.begin()
        stop.set()

    reload = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    # From the first moment on: by default, SIGHUP ends a process.
    loop.add_signal_handler(signal.SIGHUP, reload.set)
    async with running(settings, role, stop, shutdown, take_over) as service:
        if not settings.dialers:
            log.warning("no_dialers", hint="no call can be placed without a [[dialers]] section")
        log.info("ready", **_places(service, settings))
        disable_collector()
        sys.setswitchinterval(TURN)
        reloading = asyncio.create_task(_reload(service, settings, read_again, reload))
        await stop.wait()
        reloading.cancel()
        shutdown.begin()
        log.info("draining", timeout=settings.drain_timeout)
        # HTTP goes on while calls end, so that their status can still be asked for.
        await asyncio.gather(*(worker.drain() for worker in service.workers))


async def _reload(
    service: Running,
    settings: Settings,
    read_again: Callable[[], Settings] | None,
    wanted: asyncio.Event,
) -> None:
    """Read the settings again whenever `wanted` is set. What is wrong with them is logged."""
    while True:
        await wanted.wait()
        wanted.clear()
        if read_again is None:
            continue
        try:
            plan = plan_reload(settings, await asyncio.to_thread(read_again))
            await service.use(plan.settings)
        except BitelError as fault:
            log.error("reload_failed", fault=str(fault), in_force="the settings of before")
            continue
        except Exception:
            log.exception("reload_failed", in_force="the settings of before, or a part of the new")
            continue
        settings = plan.settings
        logging.configure(settings.log_level, settings.log_json)
        log.info("reloaded", changed=",".join(plan.changed) or "nothing")
        if plan.needs_restart:
            log.warning("restart_needed", changed=",".join(plan.needs_restart))


@contextlib.asynccontextmanager
async def running(
    settings: Settings,
    role: Role = "all",
    stop: asyncio.Event | None = None,
    shutdown: Shutdown | None = None,
    take_over: bool = False,
) -> AsyncIterator[Running]:
    """The service, up inside the block and drained behind it; `stop` is set if it must end."""
    stop = stop or asyncio.Event()
    shutdown = shutdown or Shutdown(settings.drain_timeout)
    _private_folder(settings)
    in_force = [settings]
    clock = await asyncio.to_thread(SteadyClock.open, settings.data_dir)
    url = settings.effective_database_url
    if await asyncio.to_thread(migrate.upgrade, url):
        log.info("database_created", at=engines.place(engines.parse_url(url)))
    database = Database.open(url)
    voices = VoiceStore.open(
        settings.storage_url.get_secret_value(), settings.data_dir, settings.s3
    )
    await voices.check()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(_close_database, database, shutdown)
        await stack.enter_async_context(_housekeeping(settings, database, clock))
        lag = await stack.enter_async_context(measuring_lag())
        pauses = stack.enter_context(measuring_pauses())
        ids = [each.id for each in settings.dialers]
        sources = Sources(database, ids, clock, lag, pauses, clock_gap=lambda: clock.gap)
        dialers, dispatchers, workers = [], [], []
        speech = SpeechLibrary(settings.data_dir / "speech", _speech_options(settings), clock=clock)
        stack.push_async_callback(shutdown.step, "speech", speech.close)
        playlists = Playlists(voices, speech, _duration_from(database))
        deliverer = None
        log_confinement()
        if role != "dialer":
            allow_private = settings.webhook_allow_private
            deliverer = Deliverer(database, clock, clock.date, allow_private=allow_private)
            await stack.enter_async_context(_delivering(deliverer, shutdown))
            sources.deliverer = deliverer
        pressure = StoragePressure(
            database, settings.data_dir, lambda: in_force[0].notifications.disk_megabytes
        )
        sources.storage = pressure
        await stack.enter_async_context(background("storage", pressure.run))
        bell = deliverer.wake if deliverer else lambda: None
        if role != "api":
            traces = TraceStore(settings.data_dir / "traces", _keep(settings.traces))
            close_traces = functools.partial(asyncio.to_thread, traces.close)
            stack.push_async_callback(shutdown.step, "traces", close_traces)
            for dialer_settings in settings.dialers:
                dialer, dispatcher = _dialer(
                    dialer_settings, settings, database, clock, playlists, traces, bell, lag
                )
                sources.dialers.append(_figures(dialer, dispatcher))
                standby = Standby(
                    dialer_settings.id, dispatcher.worker, database, settings.data_dir, clock
                )
                worker = DialerWorker(dialer, dispatcher, standby, settings.drain_timeout, shutdown)
                await stack.enter_async_context(_dialing(worker, stop, take_over))
                workers.append(worker)
                dialers.append(dialer)
                dispatchers.append((dialer_settings.id, dispatcher))
        await stack.enter_async_context(
            _notifying(settings, database, clock, list(zip(workers, dialers, strict=True)), role)
        )
        address = metrics_address = parts = None
        page = Page(sources) if settings.metrics.enabled else None
        if role == "dialer" and page is not None and settings.metrics.bind:
            listener = build_listener(page, lambda: in_force[0].metrics.token.get_secret_value())
            place = split_address(settings.metrics.bind)
            metrics_address = await stack.enter_async_context(
                _http(listener, settings.http, place, "metrics.bind", shutdown, stop)
            )
        if role != "dialer":
            by_id = dict(dispatchers)

            def wake(dialer_id: str) -> None:
                if dialer_id in by_id:
                    by_id[dialer_id].wake()

            parts = ApiContext(
                settings=settings,
                database=database,
                voices=voices,
                speech=speech,
                tokens=TokenSigner.open(settings.data_dir),
                clock=clock,
                date=clock.date,
                on_placed=wake,
                metrics=page,
                ready=Readiness(
                    database,
                    lambda: shutdown.has_begun,
                    lambda: [each.dialer_id for each in workers if each.in_standby],
                    lambda: [each for each, dispatcher in dispatchers if dispatcher.claims_fail],
                ),
                ready_notes=lambda: _notes(pressure, in_force[0].retention),
            )
            http = settings.http
            address = await stack.enter_async_context(
                _http(build_app(parts), http, (http.host, http.port), "http.port", shutdown, stop)
            )
        await stack.enter_async_context(_collecting([each for _, each in dispatchers]))
        if role != "dialer":
            # One process is enough: that with the API.
            keeper = Retention(
                database,
                voices,
                lambda: in_force[0].retention,
                clock,
                lambda: clock.date(clock()),
                lambda: any(each.pressure.signs for _, each in dispatchers),
            )
            await stack.enter_async_context(background("retention", keeper.run))

        async def use(changed: Settings) -> None:
            for dialer in dialers:
                dialer.renew_certificate()  # what can fail comes first
            for dialer, (dialer_id, dispatcher) in zip(dialers, dispatchers, strict=True):
                chosen = changed.dialer(dialer_id)
                assert chosen is not None
                dialer.change(sip_trunk_config(chosen, changed.region))
                await dispatcher.change(_limits(chosen), changed.price_list())
            in_force[0] = changed
            if parts is not None:
                parts.settings = changed

        yield Running(
            address,
            metrics_address,
            tuple(dialers),
            tuple(each for _, each in dispatchers),
            tuple(workers),
            use,
        )


def _dialer(
    dialer: DialerSettings,
    settings: Settings,
    database: Database,
    clock: SteadyClock,
    playlists: Playlists,
    observer: CallObserver,
    on_settled: Callable[[], None],
    lag: LoopLag,
) -> tuple[SipTrunkDialer, Dispatcher]:
    recording_faults = RecordingFaults(dialer.id, time.monotonic)
    trunk = SipTrunkDialer(
        sip_trunk_config(dialer, settings.region),
        playlists,
        clock,
        observer=observer,
        recording_faults=recording_faults,
    )

    def load() -> LoadSample:
        late = packets_late(trunk.streamer.stats())
        return LoadSample(late, lag.mean * 1000, database.writes_waiting, trunk.behind * 1000)

    dispatcher = Dispatcher(
        dialer.id,
        worker=f"{socket.gethostname()}-{os.getpid()}-{new_id(clock())[-6:]}",
        dialer=trunk,
        limits=_limits(dialer),
        database=database,
        tariff=settings.price_list(),
        clock=clock,
        ahead=lambda: clock.gap,
        on_settled=on_settled,
        load=load,
        recording_faults=recording_faults,
        journal=Journal(
            settings.data_dir / f"unsettled-{dialer.id}.journal", capacity=dialer.max_channels
        ),
        mark=ClaimMark(settings.data_dir / f"dialer-{dialer.id}.mark"),
    )
    trunk.confirm_lease = dispatcher.confirm_lease
    return trunk, dispatcher


def _limits(dialer: DialerSettings) -> Limits:
    return Limits(
        dialer.max_channels,
        dialer.calls_per_second,
        dialer.ring_timeout,
        dialer.otp_channels,
        dialer.uncertain_redials,
    )


def _figures(trunk: SipTrunkDialer, dispatcher: Dispatcher) -> DialerSource:
    """What the metrics report about a dialer."""
    return lambda: DialerFigures(
        dialer_id=dispatcher.dialer_id,
        is_paused=bool(trunk.paused_reason),
        channels=dispatcher.running,
        max_channels=dispatcher.max_channels,
        figures=dispatcher.figures,
        invites=trunk.invites,
        signs=dispatcher.pressure.signs,
        held_back=dispatcher.held_back,
        trunks=trunk.trunks(),
        streams=trunk.streamer.stats(),
        messages_dropped=trunk.messages_dropped,
        recordings_unreachable=dispatcher.recording_faults.count(),
    )


def _duration_from(database: Database) -> DurationOf:
    return lambda recording_id: database.read(lambda conn: recordings.duration(conn, recording_id))


def _keep(traces: TraceSettings) -> Keep:
    return Keep(traces.calls, traces.errors, traces.megabytes * 1024 * 1024, traces.days)


def _speech_options(settings: Settings) -> SpeechOptions:
    speech = settings.speech
    return SpeechOptions(
        default_language=speech.default_language,
        languages=speech.languages,
        piper=speech.piper,
        max_chars=speech.max_chars,
    )


@contextlib.asynccontextmanager
async def _delivering(deliverer: Deliverer, shutdown: Shutdown) -> AsyncIterator[None]:
    """Webhooks, delivered until all dispatchers have stopped."""
    task = asyncio.create_task(deliverer.run())
    try:
        yield
    finally:
        await deliverer.drain(shutdown.left(WEBHOOK_PATIENCE))
        await asyncio.wait([task], timeout=shutdown.left(1.0))  # for the last round to be written
        if not task.done():
            # What could not be written is delivered again when its lease is over.
            log.warning("not_stopped_in_time", part="webhooks")
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _close_database(database: Database, shutdown: Shutdown) -> None:
    # In this thread: those of the executor may hang by now, or be taken.
    if not database.close(shutdown.left(CLOSING_TIMEOUT)):
        log.warning("not_stopped_in_time", part="database")


@contextlib.asynccontextmanager
async def _collecting(dispatchers: Sequence[Dispatcher]) -> AsyncIterator[None]:
    """Garbage, collected while no call is running."""
    quiet = functools.partial(
        collect_when_quiet, lambda: not any(each.running for each in dispatchers)
    )
    async with background("garbage collector", quiet):
        yield


@contextlib.asynccontextmanager
async def _housekeeping(
    settings: Settings, database: Database, clock: SteadyClock
) -> AsyncIterator[None]:
    dialer_ids = [dialer.id for dialer in settings.dialers]
    housekeeper = Housekeeper(database, dialer_ids, clock, save_clock=clock.save)
    async with background("housekeeping", housekeeper.run):
        yield


@contextlib.asynccontextmanager
async def _notifying(
    settings: Settings,
    database: Database,
    clock: SteadyClock,
    dialers: Sequence[tuple[DialerWorker, SipTrunkDialer]],
    role: Role,
) -> AsyncIterator[None]:
    """Notifications to the operator, where the settings say how they are sent."""
    chosen = settings.notifications
    if not chosen.url and not chosen.command:
        yield
        return
    sender = NotificationSender(chosen, lambda: clock.date(clock()))

    def conditions_of(worker: DialerWorker, trunk: SipTrunkDialer) -> Sequence[Condition]:
        if worker.in_standby:
            return ()
        return of_dialer(worker.dialer_id, trunk.trunks(), trunk.paused_reason)

    watcher = ConditionWatcher(
        database,
        [functools.partial(conditions_of, worker, trunk) for worker, trunk in dialers],
        [settings.data_dir],
        chosen.disk_megabytes,
        # One process is enough: that with the API.
        None if role == "dialer" else chosen.low_balance,
        settings.currency,
        sender.put,
    )
    async with (
        background("sending notifications", sender.run),
        background("looking for conditions", watcher.run),
    ):
        yield


@contextlib.asynccontextmanager
async def _dialing(
    worker: DialerWorker, stop: asyncio.Event, take_over: bool
) -> AsyncIterator[None]:
    """A dialer at work, or in standby; `stop` is set if it can't go on."""
    await worker.start(take_over, stop)
    task = asyncio.create_task(worker.run())
    task.add_done_callback(lambda _: stop.set())
    try:
        yield
    finally:
        await worker.stop(task)


@contextlib.asynccontextmanager
async def _http(
    app: FastAPI,
    http: HttpSettings,
    place: tuple[str, int],
    setting: str,
    shutdown: Shutdown,
    stop: asyncio.Event,
) -> AsyncIterator[tuple[str, int]]:
    """An application, answering HTTP at `place`, which `setting` names; its address.

    `stop` is set if it ends by itself: a service that answers nothing must not go on.
    """
    host, port = place
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(place)
    except OSError as fault:
        listener.close()
        raise BitelError(
            f"HTTP can't be answered at {host}:{port}: {fault.strerror}; choose another {setting}"
        ) from fault
    server = _Server(http_server.config(app, http, timeout_graceful_shutdown=HTTP_PATIENCE))
    task = asyncio.create_task(server.serve([listener]))
    task.add_done_callback(lambda _: stop.set())
    try:
        accepting = asyncio.create_task(server.accepting.wait())
        await asyncio.wait({task, accepting}, return_when=asyncio.FIRST_COMPLETED)
        accepting.cancel()
        if task.done():
            task.result()
            raise BitelError(f"HTTP at {host}:{port} ended when it began; see the log")
        yield listener.getsockname()[:2]
    finally:
        patience = shutdown.left(HTTP_PATIENCE)
        server.config.timeout_graceful_shutdown = max(1, int(patience))
        server.should_exit = True
        # What requests do once they are cancelled takes its time too.
        await asyncio.wait([task], timeout=shutdown.left(patience + 1))
        if not task.done():
            log.warning("not_stopped_in_time", part="HTTP")
            task.cancel()
            await asyncio.wait([task], timeout=0.5)
        else:
            task.result()


class _Server(uvicorn.Server):
    """A server that leaves the signals to the service around it, and says when it is up."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.accepting = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.accepting.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _private_folder(settings: Settings) -> None:
    try:
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as fault:
        raise BitelError(f"data_dir {settings.data_dir} can't be made: {fault.strerror}") from fault


def _notes(pressure: StoragePressure, keep: RetentionSettings) -> dict[str, Any]:
    """What `/readyz` says beside whether the service is ready."""
    kept = f"{keep.calls:g} days" if keep.calls else "ever"
    return {
        "warnings": list(pressure.warnings),
        "storage": f"calls are kept for {kept}, and each takes 650 B to 1.5 kB of the database",
    }


def _places(service: Running, settings: Settings) -> dict[str, str]:
    places = {"dialers": ",".join(dialer.id for dialer in settings.dialers) or "none"}
    if waiting := [worker.dialer_id for worker in service.workers if worker.in_standby]:
        places["standby"] = ",".join(waiting)
    if service.http_address:
        host, port = service.http_address
        places["http"] = f"http://{host}:{port}"
    if service.metrics_address:
        host, port = service.metrics_address
        places["metrics"] = f"http://{host}:{port}/metrics"
    return places
