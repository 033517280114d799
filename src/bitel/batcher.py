"""Batches concurrent items: the first is processed at once, later ones share the next batch.

Compared with one unit of work per request, twice as many calls are placed per second, and three
times as many statuses are read: a statement costs more than its rows.
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
"""Maximum items in one batch."""

AT_ONCE: Final = 25
"""Items whose results are set in one turn of the event loop: each resumes a task."""

_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 0.25
"""Seconds between two tries of a batch, doubled each time; short, to resume soon after an outage.
"""

_LOG_EVERY: Final = 5.0
"""Minimum seconds between two log lines about retries."""


class Batcher(Generic[Item, Result]):
    """Hands items to `process` in batches, in order, one batch at a time.

    `process` returns for each item its result, or the exception that this item raises. If `process`
    itself raises, the halves of the batch are processed separately, down to the item that fails.

    Args:
        process: processes one batch.
        rest: seconds between two batches, unless a full one is waiting.
        retries: whether a batch is retried while `process` raises UnavailableError, without items
            whose futures are done. If not, all of its items raise that error.
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
        """Process `item` and return its result. Raises the exception of `process` for it."""
        return await self.put(item)

    def put(self, item: Item) -> asyncio.Future[Result]:
        """As `submit`, but returns a future, which the caller may cancel or set."""
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
    """Set results, `AT_ONCE` per turn of the event loop."""
    for (_, future), result in resolved[:AT_ONCE]:
        if future.done():
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
    if len(resolved) > AT_ONCE:
        asyncio.get_running_loop().call_soon(_resolve, resolved[AT_ONCE:])
