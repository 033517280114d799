"""How late the event loop is for what is due, as a timer finds it ten times a second."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from functools import partial
from typing import Final

from bitel.observability.histogram import Histogram
from bitel.supervision import background

INTERVAL: Final = 0.1
RECENT: Final = 1.0
"""Seconds over which the mean is taken: one pause alone is no overload."""

BOUNDS: Final = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Upper bounds of the counts, in seconds; one more is without bound."""


class LoopLag(Histogram):
    """Collects how late the timer was."""

    def __init__(self) -> None:
        super().__init__(BOUNDS)
        self._recent: deque[tuple[float, float]] = deque()

    def record(self, late: float, now: float) -> None:
        """The timer was late by these seconds."""
        late = max(0.0, late)
        self.add(late)
        self._recent.append((now, late))
        while now - self._recent[0][0] > RECENT:
            self._recent.popleft()

    @property
    def mean(self) -> float:
        """Seconds that it was late by in the last second, on average."""
        if not self._recent:
            return 0.0
        return sum(late for _, late in self._recent) / len(self._recent)


@contextlib.asynccontextmanager
async def measuring() -> AsyncIterator[LoopLag]:
    """Measures inside the block."""
    lag = LoopLag()
    async with background("loop lag", partial(_measure, lag)):
        yield lag


async def _measure(lag: LoopLag) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + INTERVAL
        await asyncio.sleep(INTERVAL)
        now = loop.time()
        lag.record(now - due, now)
