"""Runs several dialer processes on one machine, and starts those again that end by themselves.

Each child is `bitel serve --only dialer` in a slot of its own. Signals are passed on: SIGTERM and
SIGINT let the calls of all children finish, SIGHUP makes them read their settings again. A child
that was asked to stop, as by `bitel drain`, ends with status 0 and is not started again. If this
process dies, its children get SIGTERM from the kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from bitel.settings.worker_slots import WorkerSlot

log = structlog.get_logger(__name__)

FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 30.0
"""First and longest pause before a child is started again, in seconds; doubled each time."""
STEADY: Final = 60.0
"""Seconds after which a child's end begins with the first pause again."""

_PR_SET_PDEATHSIG: Final = 1


@dataclass(slots=True)
class _Child:
    slot: WorkerSlot
    process: asyncio.subprocess.Process | None = None
    is_ready: bool = False


class Supervisor:
    """The children of one machine; `arguments` are further options of their `bitel serve`."""

    def __init__(self, workers: int, arguments: Sequence[str] = ()) -> None:
        self._arguments = arguments
        self._children = [_Child(WorkerSlot(n, workers)) for n in range(1, workers + 1)]
        self._stopping = asyncio.Event()
        self._is_announced = False

    async def run(self) -> int:
        """Run until all children have ended; returns the exit status, 0 if none failed."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._send, signal.SIGHUP)
        statuses = await asyncio.gather(*map(self._keep, self._children))
        return max(statuses)

    def _stop(self) -> None:
        self._stopping.set()
        self._send(signal.SIGTERM)

    def _send(self, number: signal.Signals) -> None:
        for child in self._children:
            if child.process is not None and child.process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    child.process.send_signal(number)

    async def _keep(self, child: _Child) -> int:
        """Run the child in its slot, again and again until it ends as asked; its exit status."""
        loop = asyncio.get_running_loop()
        pause = FIRST_PAUSE
        while True:
            begun = loop.time()
            status = await self._run(child)
            child.is_ready = False
            if status == 0 or self._stopping.is_set():
                log.info("worker_ended", slot=str(child.slot), status=status)
                return status
            pause = FIRST_PAUSE if loop.time() - begun >= STEADY else pause
            log.warning("worker_restarts", slot=str(child.slot), status=status, after=pause)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
            if self._stopping.is_set():
                return 1
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _run(self, child: _Child) -> int:
        """Run one process; 1 instead of a signal's number, or where it can't be started."""
        reader, writer = os.pipe()
        command = [
            sys.executable, "-m", "bitel.cli", "serve", "--only", "dialer",
            "--slot", str(child.slot), "--ready-fd", str(writer), *self._arguments,
        ]  # fmt: skip
        try:
            child.process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, pass_fds=[writer]
            )
        except OSError as fault:
            log.error("worker_not_started", slot=str(child.slot), fault=str(fault))
            os.close(reader)
            return 1
        finally:
            os.close(writer)
        if self._stopping.is_set():  # the signal came while it was started
            self._send(signal.SIGTERM)
        waiting = asyncio.create_task(self._wait_until_ready(child, reader))
        try:
            status = await child.process.wait()
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        return status if status >= 0 else 1

    async def _wait_until_ready(self, child: _Child, reader: int) -> None:
        """Note that the child has written to its pipe; log it once all have."""
        loop = asyncio.get_running_loop()
        written = asyncio.Event()
        loop.add_reader(reader, written.set)
        try:
            await written.wait()
            child.is_ready = bool(os.read(reader, 1))
        finally:
            loop.remove_reader(reader)
            os.close(reader)
        if all(each.is_ready for each in self._children) and not self._is_announced:
            self._is_announced = True
            log.info("ready", workers=len(self._children))


def end_with_parent() -> None:
    """Let the kernel send SIGTERM to this process when its parent dies (Linux, prctl(2))."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
