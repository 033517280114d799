"""Waits for a condition with a limit: for code in this process, and for other processes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

POLL = 0.005
"""Seconds between two looks at the condition."""


async def until(ready: Callable[[], object], timeout: float = 20.0) -> None:
    """Return once `ready` gives something true; TimeoutError after `timeout` seconds."""
    async with asyncio.timeout(timeout):
        while not ready():
            await asyncio.sleep(POLL)


async def until_found(look: Callable[[], Awaitable[T | None]], timeout: float = 20.0) -> T:
    """The first result of `look` that is true; TimeoutError after `timeout` seconds."""
    async with asyncio.timeout(timeout):
        while not (found := await look()):
            await asyncio.sleep(4 * POLL)
        return found


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


def wait_for_port(
    port: int, process: subprocess.Popen[bytes], log: Path, host: str = "127.0.0.1"
) -> None:
    """Return once a server takes connections at a port of this machine.

    Raises AssertionError with its log where it ends before, or takes longer than 20 s.
    """

    def said() -> str:
        return log.read_text() if log.exists() else ""

    def listens() -> bool:
        assert process.poll() is None, said()
        with contextlib.suppress(OSError), socket.create_connection((host, port)):
            return True
        return False

    wait_until(listens, explain=said)
