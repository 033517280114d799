"""The time limit of a shutdown, as a whole and of each step."""

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
"""Seconds beyond `drain_timeout` within which the process ends in any case."""

EX_SOFTWARE: Final = 70
"""Exit status if the process had to be ended by the time limit."""


class Shutdown:
    """The time that is left for the shutdown, counted from `begin`."""

    def __init__(self, drain_timeout: float) -> None:
        self._within = drain_timeout + SHUTDOWN_MARGIN
        self._end: float | None = None

    def begin(self) -> None:
        """Start the time limit, once. If anything hangs, the process ends when the time is over.

        That includes the interpreter's own exit, which waits for threads. It can't be cancelled.
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
        """Seconds that a step may take: `most`, or less when time is short; at least 0.5."""
        if self._end is None:
            return most
        return max(0.5, min(most, self._end - time.monotonic() - 2.0))

    async def step(self, part: str, close: Callable[[], Coroutine[None, None, None]]) -> None:
        """Stop a part within the time that is left; after that, cancel and log it."""
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
