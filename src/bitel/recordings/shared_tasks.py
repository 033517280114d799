"""Shares one asyncio task among concurrent callers that want the same result."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class SharedTasks(Generic[Result]):
    """Running tasks by key. A caller that is cancelled does not cancel the task of the others."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[Result]] = {}

    def __len__(self) -> int:
        """How many tasks are running."""
        return len(self._tasks)

    def __contains__(self, key: str) -> bool:
        return key in self._tasks

    async def get(self, key: str, make: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Return the result of `make`, or of a running task with the same `key`."""
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.create_task(make())
            task.add_done_callback(partial(self._ended, key))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Cancel the running tasks and wait until they have ended."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, key: str, task: asyncio.Task[Result]) -> None:
        del self._tasks[key]
        if not task.cancelled():
            # Retrieved here, since every caller may have been cancelled before it failed.
            task.exception()
