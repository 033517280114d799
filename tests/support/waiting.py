"""Waits for a condition with a limit: for code in this process, and for other processes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

POLL = 0.005
"""Seconds between two looks at the condition."""


async def until(ready: Callable[[], object], timeout: float = 20.0) -> None:
    """Return once `ready` gives something true; TimeoutError after `timeout` seconds."""
    async with asyncio.timeout(timeout):
        while not ready():
            await asyncio.sleep(POLL)


def wait_until(
    ready: Callable[[], object],
    timeout: float = 20.0,
    explain: Callable[[], object] = lambda: "it takes too long",
) -> None:
    """As `until`, without an event loop: for what another thread or process does.

    Raises AssertionError with what `explain` says, as the end of a log.
    """
    end = time.monotonic() + timeout
    while not ready():
        assert time.monotonic() < end, explain()
        time.sleep(4 * POLL)
