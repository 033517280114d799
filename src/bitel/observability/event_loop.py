"""Delays of the event loop: measures its lag, and keeps the garbage collector from causing it.

Objects of calls and requests are freed with their last reference, so the collector of cyclic
garbage finds nothing, but traverses all live objects each time: with CPython's thresholds and tens
of thousands of calls that takes 0.1 s and more. So automatic collection is disabled, and the
collector runs while no call is active, for cycles that were made after all.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from bisect import bisect_left
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from typing import Final

import structlog

from bitel.supervision import background

LAG_INTERVAL: Final = 0.1
"""Seconds between two timers whose lateness is measured."""
LAG_RECENT: Final = 1.0
"""Seconds over which the mean is taken: one pause alone is no overload."""
LAG_BOUNDS: Final = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
PAUSE_BOUNDS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Upper bounds of the histograms' classes, in seconds."""

LOOK: Final = 60.0
"""Seconds between two checks whether the collector is due."""
OFTEN: Final = 600.0
"""Seconds from one run of the collector to the next, if no call is running then."""
SELDOM: Final = 24 * 3600.0
"""Seconds from one run to the next, with calls running or not."""
MOST: Final = 1_000_000
"""New objects, less those freed, from which the collector runs at once: they are some hundred
megabytes. 10,000 running calls are 300,000."""

log = structlog.get_logger(__name__)


class Histogram:
    """Durations counted by classes, as Prometheus wants them."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds` are the classes' upper bounds in seconds, ascending; one more has none."""
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        """How many were up to each of `bounds`, and above the bound before; the last, longer."""
        self.total = 0.0
        """Seconds, all together."""

    def add(self, seconds: float) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds


class LoopLag(Histogram):
    """How late timers were."""

    def __init__(self) -> None:
        super().__init__(LAG_BOUNDS)
        self._recent: deque[tuple[float, float]] = deque()

    def record(self, late: float, now: float) -> None:
        """Count a timer that was `late` by these seconds, at the loop's time `now`."""
        late = max(0.0, late)
        self.add(late)
        self._recent.append((now, late))
        while now - self._recent[0][0] > LAG_RECENT:
            self._recent.popleft()

    @property
    def mean(self) -> float:
        """Mean lateness in the last second, in seconds."""
        if not self._recent:
            return 0.0
        return sum(late for _, late in self._recent) / len(self._recent)


@contextlib.asynccontextmanager
async def measuring_lag() -> AsyncIterator[LoopLag]:
    """Measures the lag inside the block."""
    lag = LoopLag()
    async with background("loop lag", partial(_measure, lag)):
        yield lag


async def _measure(lag: LoopLag) -> None:
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + LAG_INTERVAL
        await asyncio.sleep(LAG_INTERVAL)
        now = loop.time()
        lag.record(now - due, now)


class Pauses(Histogram):
    """How long runs of the collector took, all else waiting."""

    def __init__(self) -> None:
        super().__init__(PAUSE_BOUNDS)
        self._began = 0.0

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        """What `gc.callbacks` calls, with "start" and "stop"."""
        if phase == "start":
            self._began = time.perf_counter()
        elif self._began:
            self.add(time.perf_counter() - self._began)


@contextlib.contextmanager
def measuring_pauses() -> Iterator[Pauses]:
    """Measures the pauses inside the block."""
    pauses = Pauses()
    gc.callbacks.append(pauses)
    try:
        yield pauses
    finally:
        gc.callbacks.remove(pauses)


def disable_collector() -> None:
    """From now on, no allocation in this process makes the collector run."""
    gc.collect()
    gc.freeze()
    gc.disable()


def is_due(since: float, new: int, *, quiet: bool) -> bool:
    """Whether to run the collector, `since` seconds after its last run, with `new` new objects."""
    return new >= MOST or since >= (OFTEN if quiet else SELDOM)


async def collect_when_quiet(is_quiet: Callable[[], bool]) -> None:
    """Run the collector whenever it is due, until cancelled."""
    loop = asyncio.get_running_loop()
    ran_at = loop.time()
    while True:
        await asyncio.sleep(LOOK)
        new, quiet = gc.get_count()[0], is_quiet()
        if is_due(loop.time() - ran_at, new, quiet=quiet):
            found = gc.collect()
            ran_at = loop.time()
            log.debug("garbage_collected", new=new, found=found, quiet=quiet)
