"""Many small writes as few large ones: what comes while one write runs goes with the next."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")

LARGEST = 500
"""Items in one write; more wait for the next."""


class Batcher(Generic[Item]):
    """Hands items to `flush` in batches, in order, one batch at a time.

    After each batch it rests for `rest` seconds, unless more wait than go into one: where many
    come, they share a write, and one that comes alone does not wait. `flush` returns for each item
    of the batch whether it took effect; that, or the exception that it raised, is what each `put`
    of that batch returns.
    """

    def __init__(
        self, flush: Callable[[Sequence[Item]], Awaitable[Sequence[bool]]], rest: float = 0.0
    ) -> None:
        self._flush = flush
        self._rest = rest
        self._waiting: list[tuple[Item, asyncio.Future[bool]]] = []
        self._running: asyncio.Task[None] | None = None

    async def put(self, item: Item) -> bool:
        """Whether `item` took effect, once that is durable. Raises what the flush raised."""
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:LARGEST], self._waiting[LARGEST:]
                await self._write(batch)
                if len(self._waiting) < LARGEST and self._rest:
                    await asyncio.sleep(self._rest)
        finally:
            self._running = None

    async def _write(self, batch: list[tuple[Item, asyncio.Future[bool]]]) -> None:
        try:
            results = await self._flush([item for item, _ in batch])
        except Exception as fault:
            for _, future in batch:
                if not future.done():
                    future.set_exception(fault)
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
