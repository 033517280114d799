"""Event loop lag: its measurement, and control of the garbage collector to avoid it.

Objects of calls and requests are not in reference cycles, so the collector finds nothing, but it
traverses all live objects: with CPython's thresholds and tens of thousands of calls that takes
0.1 s and more. So automatic collection is disabled, and the collector runs while no call is active.
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
"""Seconds between measurements."""
LAG_RECENT: Final = 1.0
"""Seconds over which the mean is computed: a single pause is no overload."""
LAG_BOUNDS: Final = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
PAUSE_BOUNDS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Upper bounds of the histograms' buckets, in seconds."""

CHECK_INTERVAL: Final = 60.0
"""Seconds between checks whether the collector is due."""
IDLE_INTERVAL: Final = 600.0
"""Seconds between runs of the collector while no call is active."""
LONGEST_INTERVAL: Final = 24 * 3600.0
"""Seconds between runs in any case."""
MOST_OBJECTS: Final = 1_000_000
"""New objects, minus those freed, from which the collector runs at once: some hundred megabytes.
10,000 calls have 300,000."""

log = structlog.get_logger(__name__)


class Histogram:
    """A histogram of durations, as in Prometheus.

    `bounds` are the ascending upper bounds of the buckets in seconds; one more bucket has none.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        """Durations per bucket, not cumulative."""
        self.total = 0.0
        """Sum in seconds."""

    def add(self, seconds: float) -> None:
        """Count a duration."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds


class LoopLag(Histogram):
    """Histogram of the lateness of timers."""

    def __init__(self) -> None:
        super().__init__(LAG_BOUNDS)
        self._recent: deque[tuple[float, float]] = deque()

    def record(self, late: float, now: float) -> None:
        """Count a timer that was `late` seconds late, at the loop's time `now`."""
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
    """Measure the lag during the block."""
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
    """Histogram of the durations of collector runs, which block everything."""

    def __init__(self) -> None:
        super().__init__(PAUSE_BOUNDS)
        self._began = 0.0

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        """Callback of `gc.callbacks`; `phase` is "start" or "stop"."""
        if phase == "start":
            self._began = time.perf_counter()
        elif self._began:
            self.add(time.perf_counter() - self._began)


@contextlib.contextmanager
def measuring_pauses() -> Iterator[Pauses]:
    """Measure the pauses during the block."""
    pauses = Pauses()
    gc.callbacks.append(pauses)
    try:
        yield pauses
    finally:
        gc.callbacks.remove(pauses)


def disable_collector() -> None:
    """Disable automatic collection, and exempt current objects from later collections."""
    gc.collect()
    gc.freeze()
    gc.disable()


def is_due(since: float, new: int, *, quiet: bool) -> bool:
    """Whether to run the collector `since` seconds after its last run, with `new` new objects."""
    return new >= MOST_OBJECTS or since >= (IDLE_INTERVAL if quiet else LONGEST_INTERVAL)


async def collect_when_quiet(is_quiet: Callable[[], bool]) -> None:
    """Run the collector whenever it is due, until cancelled."""
    loop = asyncio.get_running_loop()
    ran_at = loop.time()
    while True:
        await asyncio.sleep(CHECK_INTERVAL)
        new, quiet = gc.get_count()[0], is_quiet()
        if is_due(loop.time() - ran_at, new, quiet=quiet):
            found = gc.collect()
            ran_at = loop.time()
            log.debug("garbage_collected", new=new, found=found, quiet=quiet)
