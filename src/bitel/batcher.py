"""Batches concurrent items: the first is processed at once, later ones share the next batch.

Twice as many calls are placed a second as with a unit of work for each request, and three times as
many statuses are read: a statement costs more than its rows.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, TypeVar

import structlog

from bitel.errors import UnavailableError

Item = TypeVar("Item")
Result = TypeVar("Result")
Waiting = tuple[Item, asyncio.Future[Result]]

log = structlog.get_logger(__name__)

LARGEST: Final = 500
"""Items in one batch; more wait for the next."""

AT_ONCE: Final = 25
"""Items whose results are set in one turn of the event loop: each resumes a task."""

_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 0.25
"""Seconds from one try to process a batch to the next, doubled each time. So soon after the
database is back it is written to again."""

_LOG_EVERY: Final = 5.0
"""Seconds from one line in the log about such tries to the next."""


class Batcher(Generic[Item, Result]):
    """Hands items to `process` in batches, in order, one batch at a time.

    `process` returns for each item its result, or the exception that this item alone is to raise.
    An exception that it raises is attributed to a single item: the halves of the batch are
    processed separately, down to the item that fails alone.

    Args:
        process: processes one batch.
        rest: seconds from one batch to the next, unless more wait than go into one.
        retries: whether a batch is tried again while `process` raises UnavailableError, without the
            items whose futures are done by then. If not, all of its items raise that.
    """

    def __init__(
        self,
        process: Callable[[Sequence[Item]], Awaitable[Sequence[Result | Exception]]],
        *,
        rest: float = 0.0,
        retries: bool = False,
    ) -> None:
        self._process = process
        self._rest = rest
        self._retries = retries
        self._waiting: list[Waiting[Item, Result]] = []
        self._running: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Result:
        """The result of `item`. Raises what `process` raised for it."""
        return await self.put(item)

    def put(self, item: Item) -> asyncio.Future[Result]:
        """As `submit`, as a future.

        A caller that no longer waits cancels it, or sets its result.
        """
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return future

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:LARGEST], self._waiting[LARGEST:]
                await self._run_batch(batch)
                if len(self._waiting) < LARGEST and self._rest:
                    await asyncio.sleep(self._rest)
        finally:
            self._running = None

    async def _run_batch(self, batch: list[Waiting[Item, Result]]) -> None:
        loop = asyncio.get_running_loop()
        pause, logged_at = _FIRST_PAUSE, -math.inf
        while batch := [each for each in batch if not each[1].done()]:
            try:
                results = await self._process([item for item, _ in batch])
                resolved = list(zip(batch, results, strict=True))
            except UnavailableError as fault:
                if not self._retries:
                    _resolve([(each, fault) for each in batch])
                    return
                if loop.time() >= logged_at + _LOG_EVERY:
                    logged_at = loop.time()
                    log.warning("write_retried", items=len(batch), fault=str(fault))
            except Exception as fault:
                if len(batch) == 1:
                    _resolve([(batch[0], fault)])
                else:
                    half = len(batch) // 2
                    await self._run_batch(batch[:half])
                    await self._run_batch(batch[half:])
                return
            else:
                _resolve(resolved)
                return
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)


def _resolve(resolved: Sequence[tuple[Waiting[Any, Any], Any]]) -> None:
    """Set the results, a few in each turn of the loop."""
    for (_, future), result in resolved[:AT_ONCE]:
        if future.done():
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
    if len(resolved) > AT_ONCE:
        asyncio.get_running_loop().call_soon(_resolve, resolved[AT_ONCE:])
