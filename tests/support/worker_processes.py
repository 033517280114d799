"""The worker processes of this process that run now, and kill -9 for them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path


def running(module: str) -> list[int]:
    """Children of this process that are `python -m module`."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            with contextlib.suppress(OSError):
                words = (process / "cmdline").read_bytes().decode().split("\0")
                status = (process / "stat").read_text().rpartition(")")[2].split()
                if module in words and int(status[1]) == os.getpid():
                    found.append(int(process.name))
    return found


@asynccontextmanager
async def killing(module: str, times: int = 1000) -> AsyncIterator[set[int]]:
    """Kill -9 the first `times` workers that appear; yields the set of those killed so far."""
    killed: set[int] = set()

    async def kill() -> None:
        while len(killed) < times:
            for pid in set(running(module)) - killed:
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
