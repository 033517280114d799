"""Batches concurrent requests: the first runs at once, later ones share the next batch.

Each sees what was true after it was submitted. Twice as many calls are placed a second as with a
unit of work for each request, and three times as many statuses read: the statements cost more than
their rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

from bitel.errors import BitelError

Item = TypeVar("Item")
Result = TypeVar("Result")

LARGEST: Final = 256
"""Items in one batch; more wait for the next."""


class MicroBatcher(Generic[Item, Result]):
    """Hands items to `work` in batches, one at a time, in order.

    `work` returns for each item its result, or the error that this item alone is to raise. Where it
    raises instead, every item of the batch is tried again by itself, so that a bad one fails alone.
    """

    def __init__(
        self, work: Callable[[Sequence[Item]], Awaitable[Sequence[Result | BitelError]]]
    ) -> None:
        self._work = work
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._running: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Result:
        """The result for `item`. Raises what the work raised for it."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:LARGEST], self._waiting[LARGEST:]
                await self._run_batch(batch)
        finally:
            self._running = None

    async def _run_batch(self, batch: Sequence[tuple[Item, asyncio.Future[Result]]]) -> None:
        try:
            results = await self._work([item for item, _ in batch])
        except Exception as fault:
            if len(batch) == 1:
                _settle(batch[0][1], fault)
                return
            for one in batch:
                await self._run_batch([one])
            return
        for (_, future), result in zip(batch, results, strict=True):
            _settle(future, result)


def _settle(future: asyncio.Future[Result], result: Result | Exception) -> None:
    if future.done():
        return  # The caller was cancelled.
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
