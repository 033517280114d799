"""The time limit of a shutdown: each step gets its share, and nothing outlasts the whole."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Final

import structlog

log = structlog.get_logger(__name__)

CLOSING_TIMEOUT: Final = 5.0
"""Seconds that a part may take to stop."""

SHUTDOWN_MARGIN: Final = 40.0
"""Seconds beyond `drain_timeout` within which the process ends, whatever hangs."""

EX_SOFTWARE: Final = 70
"""The exit status where something hangs that has no time limit of its own."""


class Shutdown:
    """The time that is left to stop in, from the moment when `begin` was called."""

    def __init__(self, drain_timeout: float) -> None:
        self._within = drain_timeout + SHUTDOWN_MARGIN
        self._end: float | None = None

    def begin(self) -> None:
        """Start the clock, once. Should anything hang, the process ends when the time is over.

        That includes the interpreter's own exit, which waits for threads; it can't be called off.
        """
        if self._end is None:
            self._end = time.monotonic() + self._within
            watchdog = threading.Timer(self._within - 0.5, _exit_now)
            watchdog.daemon = True
            watchdog.start()

    @property
    def has_begun(self) -> bool:
        """Whether `begin` was called."""
        return self._end is not None

    def left(self, most: float) -> float:
        """Seconds that a step of it may take: `most`, less when time is short, but never none."""
        if self._end is None:
            return most
        return max(0.5, min(most, self._end - time.monotonic() - 2.0))

    async def step(self, part: str, close: Callable[[], Coroutine[None, None, None]]) -> None:
        """Stop a part, in the time that there is; what it leaves behind ends with the process."""
        task = asyncio.create_task(close())
        await asyncio.wait([task], timeout=self.left(CLOSING_TIMEOUT))
        if task.done():
            task.result()
            return
        log.warning("not_stopped_in_time", part=part)
        task.cancel()


def _exit_now() -> None:
    log.critical("shutdown_overdue", status=EX_SOFTWARE)
    os._exit(EX_SOFTWARE)
