"""Many small writes as few large ones: what comes while one write runs goes with the next."""

from __future__ import annotations

import asyncio
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
"""Items that are told in one turn of the event loop: each has a call that then goes on."""

_FIRST_PAUSE: Final = 0.1
_LONGEST_PAUSE: Final = 5.0
"""Seconds from one try to write a batch to the next, doubled each time."""


class Batcher(Generic[Item]):
    """Hands items to `flush` in batches, in order, one batch at a time.

    After each batch it rests for `rest` seconds, unless more wait than go into one: where many
    come, they share a write, and one that comes alone does not wait. `flush` returns for each item
    of the batch whether it took effect. While it raises UnavailableError, the batch is tried again,
    without the items that nobody waits for any more.
    """

    def __init__(
        self, flush: Callable[[Sequence[Item]], Awaitable[Sequence[bool]]], rest: float = 0.0
    ) -> None:
        self._flush = flush
        self._rest = rest
        self._waiting: list[Waiting[Item]] = []
        self._running: asyncio.Task[None] | None = None

    def put(self, item: Item) -> asyncio.Future[bool]:
        """Whether `item` took effect, once that is durable; or what else the flush raised.

        Whoever waits no longer says so by cancelling the future, or by giving it a result.
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
        pause = _FIRST_PAUSE
        while batch := [each for each in batch if not each[1].done()]:
            try:
                results = await self._flush([item for item, _ in batch])
            except UnavailableError as fault:
                log.warning("write_retried", items=len(batch), fault=str(fault), again_in=pause)
            except Exception as fault:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(fault)
                return
            else:
                _tell(list(zip(batch, results, strict=True)))
                return
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)


def _tell(told: list[tuple[Waiting[Item], bool]]) -> None:
    """A few at a time, lest all of their calls go on in one turn of the loop."""
    for (_, future), result in told[:AT_ONCE]:
        if not future.done():
            future.set_result(result)
    if len(told) > AT_ONCE:
        asyncio.get_running_loop().call_soon(_tell, told[AT_ONCE:])
