"""Runs one dialer: waits for its slot, then binds SIP, takes a lease, and dials."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

import structlog

from bitel.dialer.sip_dialer import SipTrunkDialer
from bitel.dialing.dispatcher import Dispatcher
from bitel.dialing.standby import POLL, Standby
from bitel.errors import BitelError, UnavailableError
from bitel.service.shutdown import Shutdown
from bitel.store.leases import LostLease
from bitel.store.recovery import FormerWorker

log = structlog.get_logger(__name__)

FORCE_TIMEOUT: Final = 30.0
"""Seconds within which the former worker must release its lock and port."""
_FORCE_PAUSE: Final = 0.25
_ACTIVATION_TIMEOUT: Final = 5.0
"""Seconds that a take-over in progress may take when the service stops."""
_RELEASE_TIMEOUT: Final = 3.0
"""Seconds that the database may take to release the lease."""


class DialerWorker:
    """One dialer of this process, active or in standby.

    Call `start`, then run `run` in a task until `stop`.
    """

    def __init__(
        self,
        dialer: SipTrunkDialer,
        dispatcher: Dispatcher,
        standby: Standby,
        drain_timeout: float,
        shutdown: Shutdown,
    ) -> None:
        self.dialer = dialer
        self.dispatcher = dispatcher
        self._standby = standby
        self._drain_timeout = drain_timeout
        self._shutdown = shutdown
        self._active = False
        self._activating = False
        self._stopping = asyncio.Event()
        self._fault = ""

    @property
    def dialer_id(self) -> str:
        """The id of the dialer."""
        return self.dispatcher.dialer_id

    @property
    def in_standby(self) -> bool:
        """Whether this worker waits for its slot."""
        return not self._active

    async def start(self, take_over: bool = False, cancel: asyncio.Event | None = None) -> None:
        """Become active, or a standby if another process has the slot.

        `take_over` takes the slot from a process that is alive, and waits until that has ended or
        `cancel` is set. Raises BitelError if the dialer can't be started although its slot is free,
        or if the other process does not end.
        """
        try:
            if take_over:
                await self._force(cancel or asyncio.Event())
            else:
                former = await self._standby.look()
                if former is not None:
                    await self._activate(former)
        except BaseException:
            self._standby.lock.release()
            raise
        if not self._active:
            log.warning(
                "standby",
                dialer=self.dialer_id,
                holder=self._standby.waits_for,
                hint="waits until that worker has ended; `bitel serve --take-over` forces it",
            )

    async def run(self) -> None:
        """Wait for the slot if necessary, then dial. Raises BitelError if the lease is lost."""
        while not self._active:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL):
                    await self._stopping.wait()
            if self._stopping.is_set():
                return
            await self._try_to_activate()
        if self._stopping.is_set():
            return
        try:
            await self.dispatcher.run()
        except LostLease as lost:
            raise BitelError(f"{lost}, so this one stops") from lost

    async def drain(self) -> None:
        """Start no more calls, and let running ones end; a standby stops waiting."""
        self._stopping.set()
        if self._active:
            await self.dispatcher.drain(self._drain_timeout)

    async def stop(self, running: asyncio.Task[None]) -> None:
        """Drain, release the lease and the SIP port; `running` is the task of `run`.

        Raises BitelError if the lease was lost, or if results of attempts could not be stored.
        """
        self._stopping.set()
        try:
            if not self._active:
                timeout = _ACTIVATION_TIMEOUT if self._activating else 0.0
                await asyncio.wait({running}, timeout=timeout)
                if not running.done():
                    running.cancel()
            elif not running.done():
                await self.dispatcher.drain(self._drain_timeout)
            with contextlib.suppress(asyncio.CancelledError):
                await running
            if self._active and (lost := self.dispatcher.lost):
                raise BitelError(
                    f"the ends of {lost} attempts of dialer {self.dialer_id} could be stored "
                    "neither in the database nor in data_dir; they are in the log"
                )
        finally:
            if self._active:
                await self._shutdown.step(f"dialer {self.dialer_id}", self.dialer.close)
                await self._release()
            self._standby.lock.release()

    async def _try_to_activate(self) -> None:
        fault = ""
        try:
            former = await self._standby.look()
            if former is not None and await self._activate(former):
                log.info("active", dialer=self.dialer_id)
        except BitelError as error:
            # The database is unavailable, or the SIP port is in use: tried again later.
            fault = str(error)
        if fault and fault != self._fault:
            log.warning("standby_waits", dialer=self.dialer_id, fault=fault)
        self._fault = fault

    async def _activate(self, former: FormerWorker) -> bool:
        """Bind and take a lease; False if another process took over at the same time."""
        self._activating = True
        try:
            await self._bind()
            return await self._take_over(former)
        finally:
            self._activating = False

    async def _bind(self) -> None:
        try:
            await self.dialer.start()
        except BaseException:
            await self.dialer.close()
            raise

    async def _take_over(self, former: FormerWorker) -> bool:
        try:
            recovered = await self.dispatcher.take_over(
                self._standby.slot, former, self.dialer.address
            )
        except BaseException as fault:
            self._standby.reset()
            await self.dialer.close()
            if isinstance(fault, LostLease):
                return False
            raise
        self._active = True
        if recovered.redialled or recovered.unknown:
            log.warning(
                "recovered",
                dialer=self.dialer_id,
                unanswered=recovered.redialled,
                unknown=recovered.unknown,
            )
        return True

    async def _force(self, cancel: asyncio.Event) -> None:
        former = await self._standby.fence()
        log.warning("taking_over", dialer=self.dialer_id, holder=self._standby.waits_for)
        loop = asyncio.get_running_loop()
        until = loop.time() + FORCE_TIMEOUT
        while not cancel.is_set():
            fault = f"its worker {self._standby.waits_for} does not end; end it with kill -9"
            if self._standby.lock.acquire():
                try:
                    await self._bind()
                    break
                except BitelError as error:
                    fault = str(error)
            if loop.time() > until:
                raise BitelError(
                    f"the dialer {self.dialer_id!r} can't be taken over: {fault}, "
                    "and then start this one again"
                )
            await asyncio.sleep(_FORCE_PAUSE)
        else:
            return
        if not await self._take_over(former):
            raise BitelError(
                f"the dialer {self.dialer_id!r} can't be taken over: another worker was faster"
            )

    async def _release(self) -> None:
        try:
            async with asyncio.timeout(_RELEASE_TIMEOUT):
                await self.dispatcher.release()
        except (UnavailableError, TimeoutError) as fault:
            # Another installation then waits for the heartbeat's time-out.
            log.warning("lease_not_released", dialer=self.dialer_id, fault=str(fault) or "late")
