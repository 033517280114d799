"""Runs a module of ours in a process of its own, for what must not share a process with calls.

The module confines itself (`confinement.confine`); from here it gets a turn, a bare environment
and an end. At most one worker per core runs at a time.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import weakref
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

# What the interpreter needs to find the package and its libraries; the rest (secrets among it)
# is none of the worker's business.
INHERITED_ENVIRONMENT: Final = ("PYTHONPATH", "PATH", "LD_LIBRARY_PATH", "HOME", "LANG")
STDERR_BYTES: Final = 4096

CRASHES: Final = frozenset({-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGFPE, -signal.SIGBUS})
"""Exit statuses of a worker that was ended by a fault of its own."""

_slots: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
    weakref.WeakKeyDictionary()
)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a worker ended: `status` is its exit status, or minus the signal that ended it.

    `said` is the end of what it wrote to stderr.
    """

    status: int
    said: str


async def run(
    module: str, arguments: Sequence[str], wall_seconds: float, given: bytes = b""
) -> Ended:
    """Run `python -m module arguments…` with `given` on its stdin, and return how it ended.

    Waiting for a turn does not count against `wall_seconds`; TimeoutError is raised when they
    are over. The process is gone when this returns or raises, also when it is cancelled.
    """
    async with _slot():
        process = await asyncio.create_subprocess_exec(
            # Neither the working folder nor the user's own packages may lend it modules.
            *(sys.executable, "-P", "-s", "-m", module, *arguments),
            stdin=PIPE if given else DEVNULL,
            stdout=DEVNULL,
            stderr=PIPE,
            env=_environment(),
            # A Ctrl-C at the terminal is the service's to handle.
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(wall_seconds):
                said, _ = await asyncio.gather(_last_words(process), _feed(process, given))
                status = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await asyncio.shield(process.wait())
    return Ended(status, said)


def _slot() -> asyncio.Semaphore:
    """The turns of the running loop: a semaphore can't be shared between loops."""
    loop = asyncio.get_running_loop()
    if loop not in _slots:
        _slots[loop] = asyncio.Semaphore(os.cpu_count() or 1)
    return _slots[loop]


def _environment() -> dict[str, str]:
    inherited = {name: os.environ[name] for name in INHERITED_ENVIRONMENT if name in os.environ}
    # Each BLAS thread maps tens of MiB at import, and none of them is used.
    return inherited | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


async def _last_words(process: Process) -> str:
    """Read what the worker writes to stderr until it ends, and keep the end of it."""
    assert process.stderr is not None
    kept = b""
    while chunk := await process.stderr.read(STDERR_BYTES):
        kept = (kept + chunk)[-STDERR_BYTES:]
    return kept.decode(errors="replace").strip()


async def _feed(process: Process, given: bytes) -> None:
    if process.stdin is None:
        return
    # A worker that ends before it has read everything says why by its status.
    with suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(given)
        await process.stdin.drain()
        process.stdin.close()
        await process.stdin.wait_closed()
