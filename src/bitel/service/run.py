"""Starts the parts of the service in order, reloads settings, and stops the parts again."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Final, Literal

import structlog

from bitel.api.app import build_app
from bitel.api.context import ApiContext
from bitel.api.live_processes import LiveProcesses
from bitel.api.routes.metrics import build_listener
from bitel.dialer.config import sip_trunk_config
from bitel.dialer.sip_dialer import SipTrunkDialer
from bitel.dialer.sip_trace import Keep, TraceStore
from bitel.errors import BitelError, UnavailableError
from bitel.maintenance.housekeeping import Housekeeper
from bitel.maintenance.storage_pressure import StoragePressure
from bitel.metrics import Page, Sources
from bitel.notifications.sender import NotificationSender
from bitel.observability import logging
from bitel.observability.event_loop import (
    collect_when_quiet,
    disable_collector,
    measuring_lag,
    measuring_pauses,
)
from bitel.recordings.worker_process import log_confinement
from bitel.service import build
from bitel.service.dialer_worker import DialerWorker
from bitel.service.http_server import serving
from bitel.service.reloading import plan_reload
from bitel.service.shutdown import Shutdown
from bitel.service.trace_replies import TraceReplies
from bitel.settings import ONLY_WORKER, Settings, WorkerSlot, split_address
from bitel.store import engines, wakeups
from bitel.supervision import background
from bitel.webhooks.deliverer import Deliverer

log = structlog.get_logger(__name__)

LEAVE_TIMEOUT: Final = 1.0
"""Seconds that a process may take to tell the others that it stops."""

WEBHOOK_DRAIN_TIMEOUT: Final = 5.0
"""Seconds that webhook deliveries in progress may take at the end."""

SWITCH_INTERVAL: Final = 0.0005
"""Seconds for which a thread keeps the interpreter while another waits for it. Database threads
release it at every statement; at CPython's 5 ms, a few dozen of them would wait longer for a busy
event loop than for the disk."""

Role = Literal["all", "api", "dialer"]


@dataclass(slots=True)
class Running:
    """A service that is up."""

    resources: build.Resources
    workers: list[DialerWorker] = field(default_factory=list)
    api: ApiContext | None = None
    http_address: tuple[str, int] | None = None
    """Where HTTP is answered; None without the API."""
    metrics_address: tuple[str, int] | None = None
    """Where `/metrics` is answered without the API; None: on the API's address, or nowhere."""

    @property
    def dialers(self) -> list[SipTrunkDialer]:
        """The dialers of this process, active or in standby."""
        return [each.dialer for each in self.workers]

    async def reload(self, settings: Settings) -> None:
        """Use what `settings` change of those that need no restart: see `service.reloading`.

        Raises BitelError; then the settings in force stay as they are.
        """
        for worker in self.workers:
            worker.dialer.renew_certificate()  # first, since it may fail
        for worker in self.workers:
            dialer = settings.dialer(worker.dialer_id)
            assert dialer is not None
            worker.dialer.change(sip_trunk_config(dialer, settings.region))
            await worker.dispatcher.change(
                build.dispatch_limits(dialer),
                settings.price_list(),
                build.memberships(settings, dialer),
            )
        self.resources.settings = settings
        if self.api is not None:
            self.api.settings = settings


async def serve(
    settings: Settings,
    role: Role = "all",
    take_over: bool = False,
    read_again: Callable[[], Settings] | None = None,
    slot: WorkerSlot = ONLY_WORKER,
    ready_fd: int = -1,
) -> None:
    """Run the service until SIGTERM or SIGINT, then drain it.

    Draining takes at most `drain_timeout` + `SHUTDOWN_MARGIN` seconds, with or without a database.

    Args:
        take_over: take the dialers from workers that are alive, instead of waiting for their end.
        read_again: reads the settings on SIGHUP and may raise BitelError; None: SIGHUP is ignored.
        slot: the place of this process among the dialers of its machine.
        ready_fd: a pipe to which a byte is written once the service is ready; -1: none.

    Raises BitelError if the service can't start, if another worker took over one of its dialers, or
    if results of calls could not be stored.
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
    # Before the start, since SIGHUP ends a process by default.
    loop.add_signal_handler(signal.SIGHUP, reload.set)
    async with running(settings, role, stop, shutdown, take_over, slot) as service:
        if not settings.dialers:
            log.warning("no_dialers", hint="no call can be placed without a [[dialers]] section")
        log.info("ready", **_addresses(service, settings))
        if ready_fd >= 0:
            os.write(ready_fd, b".")
        disable_collector()
        sys.setswitchinterval(SWITCH_INTERVAL)
        reloading = asyncio.create_task(_reload(service, settings, read_again, reload))
        await stop.wait()
        reloading.cancel()
        shutdown.begin()
        log.info("draining", timeout=settings.drain_timeout)
        # HTTP goes on while calls end, so that clients can read their status.
        await asyncio.gather(*(worker.drain() for worker in service.workers))


async def _reload(
    service: Running,
    settings: Settings,
    read_again: Callable[[], Settings] | None,
    wanted: asyncio.Event,
) -> None:
    """Read the settings again whenever `wanted` is set; errors are logged."""
    while True:
        await wanted.wait()
        wanted.clear()
        if read_again is None:
            continue
        try:
            plan = plan_reload(settings, await asyncio.to_thread(read_again))
            await service.reload(plan.settings)
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
    slot: WorkerSlot = ONLY_WORKER,
) -> AsyncIterator[Running]:
    """Run the service inside the block, and drain it at the end; `stop` is set if it must end."""
    stop = stop or asyncio.Event()
    shutdown = shutdown or Shutdown(settings.drain_timeout)
    has_api = role != "dialer"
    async with contextlib.AsyncExitStack() as stack:
        start = stack.enter_async_context
        resources = await start(build.open_resources(settings, shutdown))
        database, clock = resources.database, resources.clock
        if has_api:
            # Before anything is dialled, since it may fail.
            signer, refresher = await build.open_signer(resources)
            processes = LiveProcesses(database, clock)
            await start(_counted(processes, shutdown))
        service = Running(resources)
        workers = service.workers
        dialer_ids = [each.id for each in settings.dialers]
        grouped_ids = {one for each in settings.dialer_groups for one in each.dialers}
        housekeeper = Housekeeper(
            database, settings.server_ids, clock, save_clock=clock.save, grouped_ids=grouped_ids
        )
        await start(background("housekeeping", housekeeper.run))
        lag = await start(measuring_lag())
        pauses = stack.enter_context(measuring_pauses())
        sources = Sources(database, dialer_ids, clock, lag, pauses, clock_gap=lambda: clock.gap)
        sources.group_ids = [each.id for each in settings.dialer_groups]
        log_confinement()
        if has_api:
            sources.api_processes = functools.partial(getattr, processes, "count")
            sources.deliverer = deliverer = Deliverer(
                database, clock, clock.date, allow_private=settings.webhook_allow_private
            )
            await start(_delivering(deliverer, shutdown))
        sources.storage = pressure = StoragePressure(
            database, settings.data_dir, lambda: resources.settings.notifications.disk_megabytes
        )
        await start(background("storage", pressure.run))
        wake_deliverer = deliverer.wake if has_api else lambda: None
        if database.is_shared:
            url = engines.parse_url(settings.effective_database_url)
            resources.wakeups = build.build_wakeups(url, workers, wake_deliverer)
            resources.wakeups.start()
            stack.callback(resources.wakeups.close)
        if role != "api":
            keep = settings.traces
            traces = TraceStore(
                settings.data_dir / f"traces{slot.suffix}",
                Keep(keep.calls, keep.errors, keep.megabytes * 1024 * 1024, keep.days),
            )
            if database.is_shared:
                replies = TraceReplies(
                    database, settings.data_dir / f"traces{slot.suffix}", resources.worker, clock
                )
                await start(background("replies for traces", replies.run))
            close_traces = functools.partial(asyncio.to_thread, traces.close)
            stack.push_async_callback(shutdown.step, "traces", close_traces)
            on_settled = wake_deliverer
            if resources.wakeups is not None:
                on_settled = functools.partial(_settled, resources.wakeups, wake_deliverer)
            for dialer in settings.dialers:
                worker = build.build_dialer(
                    dialer, slot, resources, traces, on_settled, lag, shutdown, stop.set
                )
                sources.dialers.append(build.dialer_source(worker))
                await start(_dialing(worker, stop, take_over))
                workers.append(worker)
        if settings.notifications.url or settings.notifications.command:
            sender = NotificationSender(settings.notifications, lambda: clock.date(clock()))
            watcher = build.build_condition_watcher(
                resources, workers, processes=processes if has_api else None, put=sender.put
            )
            await start(background("sending notifications", sender.run))
            await start(background("looking for conditions", watcher.run))
        page = Page(sources) if settings.metrics.enabled else None
        if has_api:
            renderer = build.build_renderer(resources, workers)
            await start(background("rendering texts", renderer.run))
            await start(background("refreshing keys", refresher.run))
            service.api = build.build_api(
                resources, workers, signer, refresher, processes, renderer, page, pressure, shutdown
            )
            address = (settings.http.host, settings.http.port)
            service.http_address = await start(
                serving(build_app(service.api), settings.http, address, "http.port", shutdown, stop)
            )
        elif page is not None and settings.metrics.bind:
            app = build_listener(page, lambda: resources.settings.metrics.token.get_secret_value())
            address = split_address(settings.metrics.bind)
            service.metrics_address = await start(
                serving(app, settings.http, address, "metrics.bind", shutdown, stop)
            )
        collect = functools.partial(
            collect_when_quiet, lambda: not any(each.dispatcher.running for each in workers)
        )
        await start(background("garbage collector", collect))
        if has_api:
            # Of several processes, only those with the API delete old data.
            retention = build.build_retention(resources, workers)
            await start(background("retention", retention.run))
        yield service


def _settled(others: wakeups.Wakeups, wake_deliverer: Callable[[], None]) -> None:
    """Wake the deliverers of events, in this process and in others."""
    wake_deliverer()
    others.send(wakeups.EVENTS)


@contextlib.asynccontextmanager
async def _delivering(deliverer: Deliverer, shutdown: Shutdown) -> AsyncIterator[None]:
    """Deliver webhooks inside the block, which ends after all dispatchers have stopped."""
    task = asyncio.create_task(deliverer.run())
    try:
        yield
    finally:
        await deliverer.drain(shutdown.left(WEBHOOK_DRAIN_TIMEOUT))
        await asyncio.wait([task], timeout=shutdown.left(1.0))  # writes its last round
        if not task.done():
            # Results that were not written are delivered again when their lease ends.
            log.warning("not_stopped_in_time", part="webhooks")
            task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def _counted(processes: LiveProcesses, shutdown: Shutdown) -> AsyncIterator[None]:
    """Share the rate limits with other processes inside the block."""
    await processes.beat()
    async with background("counting processes", processes.run):
        yield
    # Otherwise the others notice after a while.
    with contextlib.suppress(UnavailableError, TimeoutError):
        async with asyncio.timeout(shutdown.left(LEAVE_TIMEOUT)):
            await processes.leave()


@contextlib.asynccontextmanager
async def _dialing(
    worker: DialerWorker, stop: asyncio.Event, take_over: bool
) -> AsyncIterator[None]:
    """Run a dialer, active or in standby; `stop` is set if it ends by itself."""
    await worker.start(take_over, stop)
    task = asyncio.create_task(worker.run())
    task.add_done_callback(lambda _: stop.set())
    try:
        yield
    finally:
        await worker.stop(task)


def _addresses(service: Running, settings: Settings) -> dict[str, str]:
    addresses = {"dialers": ",".join(dialer.id for dialer in settings.dialers) or "none"}
    if waiting := [worker.dialer_id for worker in service.workers if worker.in_standby]:
        addresses["standby"] = ",".join(waiting)
    if service.http_address:
        host, port = service.http_address
        addresses["http"] = f"http://{host}:{port}"
    if service.metrics_address:
        host, port = service.metrics_address
        addresses["metrics"] = f"http://{host}:{port}/metrics"
    return addresses
