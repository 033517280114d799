"""Many small asks of the database as few large ones, without making any of them wait for company.

An ask that finds nobody at work begins a round at once. Those that come meanwhile share the next
one: they all see what was true after they came, and the busier it is, the less each one costs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

from bitel.errors import BitelError

Asked = TypeVar("Asked")
Answered = TypeVar("Answered")

LARGEST: Final = 256
"""Asks in one round; more wait for the next."""


class MicroBatcher(Generic[Asked, Answered]):
    """Hands what is asked to `work` in rounds, one at a time, in order.

    `work` returns for each ask its answer, or the error that this ask alone is to raise. Where it
    raises instead, every ask of the round is worked on again by itself, so that one that breaks
    things breaks them for nobody else.
    """

    def __init__(
        self, work: Callable[[Sequence[Asked]], Awaitable[Sequence[Answered | BitelError]]]
    ) -> None:
        self._work = work
        self._waiting: list[tuple[Asked, asyncio.Future[Answered]]] = []
        self._running: asyncio.Task[None] | None = None

    async def ask(self, what: Asked) -> Answered:
        """The answer to `what`. Raises what the work raised for it."""
        future: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        self._waiting.append((what, future))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch, self._waiting = self._waiting[:LARGEST], self._waiting[LARGEST:]
                await self._round(batch)
        finally:
            self._running = None

    async def _round(self, batch: Sequence[tuple[Asked, asyncio.Future[Answered]]]) -> None:
        try:
            answers = await self._work([what for what, _ in batch])
        except Exception as fault:
            if len(batch) == 1:
                _settle(batch[0][1], fault)
                return
            for one in batch:
                await self._round([one])
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            _settle(future, answer)


def _settle(future: asyncio.Future[Answered], answer: Answered | Exception) -> None:
    if future.done():
        return  # Whoever asked was cancelled.
    if isinstance(answer, Exception):
        future.set_exception(answer)
    else:
        future.set_result(answer)
