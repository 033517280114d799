"""Python's collector of cyclic garbage, kept from stalling the event loop.

What calls and requests leave behind is freed as its last reference goes, so the collector finds
nothing. But it looks through what lives, again and again: with CPython's thresholds, and tens of
thousands of calls, for a tenth of a second and more each time. So it does not run by itself here.
It is run when no call is there to be kept waiting, for whatever has made a cycle after all.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from typing import Final

import structlog

from bitel.observability.histogram import Histogram

BOUNDS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Upper bounds of the counts of pauses, in seconds."""

LOOK: Final = 60.0
"""Seconds between two looks at whether it is to run."""

OFTEN: Final = 600.0
"""Seconds from one run to the next, if it is quiet then."""

SELDOM: Final = 24 * 3600.0
"""Seconds from one run to the next, quiet or not."""

MOST: Final = 1_000_000
"""New objects, less those freed, that are taken for garbage without waiting for quiet: some
hundred megabytes. 10,000 running calls are 300,000."""

log = structlog.get_logger(__name__)


class Pauses(Histogram):
    """How long the collector kept everything else waiting."""

    def __init__(self) -> None:
        super().__init__(BOUNDS)
        self._began = 0.0

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        """What `gc.callbacks` calls, with "start" and "stop"."""
        if phase == "start":
            self._began = time.perf_counter()
        elif self._began:
            self.add(time.perf_counter() - self._began)


@contextlib.contextmanager
def measuring_pauses() -> Iterator[Pauses]:
    """Measures inside the block."""
    pauses = Pauses()
    gc.callbacks.append(pauses)
    try:
        yield pauses
    finally:
        gc.callbacks.remove(pauses)


def run_only_when_told() -> None:
    """From now on, and in the whole process, no allocation makes the collector run."""
    gc.collect()
    gc.freeze()
    gc.disable()


def is_due(since: float, new: int, *, quiet: bool) -> bool:
    """Whether to run it, where it ran `since` seconds ago and so many objects are new."""
    return new >= MOST or since >= (OFTEN if quiet else SELDOM)


async def collect_when_quiet(is_quiet: Callable[[], bool]) -> None:
    """Run it whenever it is due; ends when it is cancelled."""
    loop = asyncio.get_running_loop()
    ran_at = loop.time()
    while True:
        await asyncio.sleep(LOOK)
        new, quiet = gc.get_count()[0], is_quiet()
        if is_due(loop.time() - ran_at, new, quiet=quiet):
            found = gc.collect()
            ran_at = loop.time()
            log.debug("garbage_collected", new=new, found=found, quiet=quiet)
