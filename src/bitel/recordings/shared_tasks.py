"""One piece of work for all who want its result meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class SharedTasks(Generic[Result]):
    """Work under way, by key. A caller that gives up does not take it from the others."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[Result]] = {}

    def __len__(self) -> int:
        """How many pieces of work are under way."""
        return len(self._tasks)

    def __contains__(self, key: str) -> bool:
        return key in self._tasks

    async def get(self, key: str, make: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
        """Return the result of `make`, or of a call with the same `key` that is still under way."""
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.create_task(make())
            task.add_done_callback(partial(self._ended, key))
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Cancel what is under way and wait until it has ended."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _ended(self, key: str, task: asyncio.Task[Result]) -> None:
        del self._tasks[key]
        if not task.cancelled():
            # Looked at here, since every caller may have given up before it failed.
            task.exception()
