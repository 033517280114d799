"""Batches concurrent writes: items that come while one write runs share the next."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

import structlog

from bitel.errors import UnavailableError

Item = TypeVar("Item")
Waiting = tuple[Item, asyncio.Future[bool]]

log = structlog.get_logger(__name__)

LARGEST: Final = 500
"""Items in one write; more wait for the next."""

AT_ONCE: Final = 25
"""Items whose results are set in one turn of the event loop: each resumes a call."""

_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 0.25
"""Seconds from one try to write a batch to the next, doubled each time. So soon after the database
is back it is written to again."""

_LOG_EVERY: Final = 5.0
"""Seconds from one line in the log about such tries to the next."""


class Batcher(Generic[Item]):
    """Hands items to `flush` in batches, in order, one batch at a time.

    After each batch it rests for `rest` seconds, unless more wait than go into one: where many
    come, they share a write, and one that comes alone does not wait. `flush` returns for each item
    of the batch whether it took effect. While it raises UnavailableError, the batch is tried again,
    without the items whose futures are done by then. Any other exception is attributed to a single
    item: the halves of the batch are written separately, down to the item that fails alone.
    """

    def __init__(
        self, flush: Callable[[Sequence[Item]], Awaitable[Sequence[bool]]], rest: float = 0.0
    ) -> None:
        self._flush = flush
        self._rest = rest
        self._waiting: list[Waiting[Item]] = []
        self._running: asyncio.Task[None] | None = None

    def put(self, item: Item) -> asyncio.Future[bool]:
        """Whether `item` took effect, once that is durable; or what the flush raised for it alone.

        A caller that no longer waits cancels the future, or sets its result.
        """
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return future

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:LARGEST], self._waiting[LARGEST:]
                await self._write(batch)
                if len(self._waiting) < LARGEST and self._rest:
                    await asyncio.sleep(self._rest)
        finally:
            self._running = None

    async def _write(self, batch: list[Waiting[Item]]) -> None:
        loop = asyncio.get_running_loop()
        pause, logged_at = _FIRST_PAUSE, -math.inf
        while batch := [each for each in batch if not each[1].done()]:
            try:
                results = await self._flush([item for item, _ in batch])
                decided = list(zip(batch, results, strict=True))
            except UnavailableError as fault:
                if loop.time() >= logged_at + _LOG_EVERY:
                    logged_at = loop.time()
                    log.warning("write_retried", items=len(batch), fault=str(fault))
            except Exception as fault:
                await self._write_apart(batch, fault)
                return
            else:
                _resolve(decided)
                return
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)

    async def _write_apart(self, batch: list[Waiting[Item]], fault: Exception) -> None:
        if len(batch) > 1:
            half = len(batch) // 2
            await self._write(batch[:half])
            await self._write(batch[half:])
            return
        [(_, future)] = batch
        if not future.done():
            future.set_exception(fault)


def _resolve(decided: list[tuple[Waiting[Item], bool]]) -> None:
    """Set the results, a few in each turn of the loop."""
    for (_, future), result in decided[:AT_ONCE]:
        if not future.done():
            future.set_result(result)
    if len(decided) > AT_ONCE:
        asyncio.get_running_loop().call_soon(_resolve, decided[AT_ONCE:])
