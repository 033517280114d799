"""Asyncio tasks: background tasks that are restarted after errors, and tasks that callers share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Any, Final, Generic, TypeVar

import structlog

log = structlog.get_logger(__name__)

Result = TypeVar("Result")

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


class SharedTasks(Generic[Result]):
    """Running tasks by key, whose result is shared by all callers that ask for it meanwhile.

    A caller that is cancelled does not cancel the task.
    """

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[Result]] = {}

    def __len__(self) -> int:
        """The number of running tasks."""
        return len(self._tasks)

    def __contains__(self, key: str) -> bool:
        return key in self._tasks

    async def get(self, key: str, make: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Return the result of `make`, or of the running task with the same `key`."""
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.create_task(make())
            task.add_done_callback(partial(self._ended, key))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Cancel all tasks and wait until they have ended."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, key: str, task: asyncio.Task[Result]) -> None:
        del self._tasks[key]
        if not task.cancelled():
            # Retrieved here, or asyncio logs it if all callers were cancelled.
            task.exception()
