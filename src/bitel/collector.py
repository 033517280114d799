"""Python's collector of cyclic garbage, kept from stalling the event loop.

What calls leave behind is freed as its last reference goes, so the collector has little to find.
But it looks through everything that lives, again and again: with CPython's thresholds, and tens of
thousands of calls, for a tenth of a second and more each time. Here it looks only at what is
young, and through the rest when no call is there to be kept waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from typing import Final

import structlog

from bitel.histogram import Histogram

BOUNDS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Upper bounds of the counts of pauses, in seconds."""

YOUNG: Final = 2_000
"""Objects made, less those freed, after which those that are new are looked through: 1 ms."""

NEVER: Final = 1_000_000_000

LOOK: Final = 60.0
"""Seconds between two looks at whether it is quiet."""

OFTEN: Final = 600.0
"""Seconds after which everything is looked through, if it is quiet then."""

SELDOM: Final = 24 * 3600.0
"""Seconds after which that is done, quiet or not."""

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


def spare_the_old() -> None:
    """From now on, look only through what is new. Holds for the whole process."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, NEVER, NEVER)


def is_due(since: float, *, quiet: bool) -> bool:
    """Whether to look through everything, where that was last done `since` seconds ago."""
    return since >= (OFTEN if quiet else SELDOM)


async def collect_when_quiet(is_quiet: Callable[[], bool]) -> None:
    """Free the cycles that outlived their youth when `is_quiet`; runs until it is cancelled."""
    loop = asyncio.get_running_loop()
    looked_at = loop.time()
    while True:
        await asyncio.sleep(LOOK)
        quiet = is_quiet()
        if is_due(loop.time() - looked_at, quiet=quiet):
            found = gc.collect()
            looked_at = loop.time()
            log.debug("garbage_collected", objects=found, quiet=quiet)
