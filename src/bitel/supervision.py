"""Keeps background tasks running: logs unexpected errors, and restarts the task."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Final

import structlog

log = structlog.get_logger(__name__)

FIRST_PAUSE: Final = 1.0
"""Seconds until a task is restarted; doubled after each further error."""
LONGEST_PAUSE: Final = 60.0
SETTLED: Final = 300.0
"""Seconds without an error after which the pause is reset."""


async def keep_running(
    name: str,
    work: Callable[[], Coroutine[None, None, None]],
    first_pause: float = FIRST_PAUSE,
    longest_pause: float = LONGEST_PAUSE,
) -> None:
    """Run `work` until it returns or is cancelled; restart it after an unexpected error."""
    loop = asyncio.get_running_loop()
    pause = first_pause
    while True:
        begun = loop.time()
        try:
            return await work()
        except Exception:
            if loop.time() - begun >= SETTLED:
                pause = first_pause
            log.exception("task_failed", task=name, again_in=pause)
        await asyncio.sleep(pause)
        pause = min(2 * pause, longest_pause)


@contextlib.asynccontextmanager
async def background(
    name: str, work: Callable[[], Coroutine[None, None, None]]
) -> AsyncIterator[asyncio.Task[None]]:
    """Keep `work` running in a task inside the block, and cancel it at the end."""
    task = asyncio.create_task(keep_running(name, work), name=name)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
