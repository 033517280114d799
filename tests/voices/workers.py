"""The worker processes that run now, found by their command lines, and kill -9 for them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path


def running(module: str, argument: str) -> list[int]:
    """Processes of `python -m module` with `argument` within one of their arguments."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with contextlib.suppress(OSError):
                words = (process / "cmdline").read_bytes().decode().split("\0")
                if module in words and any(argument in word for word in words):
                    found.append(int(process.name))
    return found


@asynccontextmanager
async def killing(module: str, argument: str, times: int = 1000) -> AsyncIterator[set[int]]:
    """Kill -9 the first `times` workers that appear; yields the set of those killed so far."""
    killed: set[int] = set()

    async def kill() -> None:
        while len(killed) < times:
            for pid in set(running(module, argument)) - killed:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            await asyncio.sleep(0.002)

    task = asyncio.create_task(kill())
    try:
        yield killed
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
