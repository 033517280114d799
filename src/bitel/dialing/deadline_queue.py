"""Ends waits that last too long, all of them by one timer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class DeadlineQueue(Generic[Item]):
    """Calls `run_out` with the item of each future that is not done within `seconds`."""

    def __init__(
        self, seconds: float, run_out: Callable[[Item, asyncio.Future[bool]], None]
    ) -> None:
        self._seconds = seconds
        self._run_out = run_out
        # All are waited for equally long, so that the first is always the first due.
        self._waits: deque[tuple[float, Item, asyncio.Future[bool]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, item: Item, future: asyncio.Future[bool]) -> None:
        """Wait for `future` from now on."""
        waits = self._waits
        while waits and waits[0][2].done():
            waits.popleft()
        loop = asyncio.get_running_loop()
        waits.append((loop.time() + self._seconds, item, future))
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._look)

    def _look(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        waits, now = self._waits, loop.time()
        while waits and (waits[0][0] <= now or waits[0][2].done()):
            _, item, future = waits.popleft()
            if not future.done():
                self._run_out(item, future)
        if waits:
            self._timer = loop.call_later(waits[0][0] - now, self._look)
