"""Runs a module in a worker process, isolated from calls.

The module confines itself (`limits.confine`, `sandbox`). This side schedules it, passes a minimal
environment and enforces the time limit. At most one worker per core runs at a time, and half of
them for one project.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import weakref
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

import structlog

from bitel.errors import UnavailableError
from bitel.recordings import sandbox

log = structlog.get_logger(__name__)

# What the interpreter needs; other variables may hold secrets.
INHERITED_ENVIRONMENT: Final = ("PYTHONPATH", "PATH", "LD_LIBRARY_PATH", "HOME", "LANG")
STDERR_BYTES: Final = 4096

CRASHES: Final = frozenset(
    {
        *(-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGFPE, -signal.SIGBUS),
        *(-signal.SIGILL, -signal.SIGTRAP, -signal.SIGSYS),
    }
)
"""Exit statuses of a worker that crashed."""

LIMITS_MET: Final = frozenset({-signal.SIGXCPU, -signal.SIGXFSZ, -signal.SIGPIPE})
"""Exit statuses of a worker that exceeded a limit, or whose parent closed the pipe."""

TRIES: Final = 2
"""Attempts to run a worker that is killed, such as for lack of memory."""

SERVICE: Final = ""
"""Owner of work that calls wait for; its share is not limited."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of a worker: exit status (minus the number of a signal) and last output on stderr."""

    status: int
    stderr: str


class WorkerError(Exception):
    """Status and stderr of a worker, for the log, not for clients."""

    def __init__(self, ended: Ended) -> None:
        super().__init__(f"exit status {ended.status}: {ended.stderr}")


def log_confinement() -> None:
    """Log which layers of the sandbox are available and which are missing."""
    present, missing = sandbox.layers()
    # Each of these alone protects the service's files and processes from a worker.
    is_enough = "seccomp" in present or {"Landlock", "another user"} <= set(present)
    level = log.info if is_enough else log.warning
    level("workers_confined", by=", ".join(present), missing=", ".join(missing) or "nothing")


async def run(
    module: str,
    arguments: Sequence[str],
    wall_seconds: float,
    stdin: bytes = b"",
    descriptors: Sequence[int] = (),
    owner: str = SERVICE,
) -> Ended:
    """Run `python -m module arguments…` with `stdin`, and return how it ended.

    It inherits only `descriptors`, under the same numbers. It waits for a turn of the project
    `owner`, which does not count against `wall_seconds`.

    A worker that is killed is run once more. Raises TimeoutError after `wall_seconds`, and
    UnavailableError if it is killed again or can't be started. The process has ended when this
    returns or raises, also if cancelled.
    """
    loop = asyncio.get_running_loop()
    if loop not in _turns:
        _turns[loop] = Turns(os.cpu_count() or 1)
    for _ in range(TRIES):
        async with _turns[loop].turn(owner):
            ended = await _run(module, arguments, wall_seconds, stdin, descriptors)
        if ended.status == -signal.SIGALRM:
            # The worker's own timer fired, as this process was too late to end it.
            raise TimeoutError
        if ended.status >= 0 or ended.status in CRASHES or ended.status in LIMITS_MET:
            return ended
        log.warning("worker_killed", module=module, signal=-ended.status)
    raise UnavailableError(
        f"The process for this work was killed by signal {-ended.status} each time it was tried; "
        "try again later."
    )


async def _run(
    module: str,
    arguments: Sequence[str],
    wall_seconds: float,
    stdin: bytes,
    descriptors: Sequence[int],
) -> Ended:
    environment = {name: os.environ[name] for name in INHERITED_ENVIRONMENT if name in os.environ}
    try:
        process = await asyncio.create_subprocess_exec(
            # Without modules from the working directory and the user's packages.
            *(sys.executable, "-P", "-s", "-m", module, *arguments),
            stdin=PIPE if stdin else DEVNULL,
            stdout=DEVNULL,
            stderr=PIPE,
            # Unused BLAS threads would map tens of MiB each.
            env=environment | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            pass_fds=descriptors,
            # Ctrl-C at the terminal is handled by the service only.
            start_new_session=True,
        )
    except OSError as error:
        # No memory or process left, or the interpreter was removed by an upgrade.
        raise UnavailableError("A process for this work can't be started now.") from error
    try:
        async with asyncio.timeout(wall_seconds):
            stderr, _ = await asyncio.gather(_end_of_stderr(process), _feed(process, stdin))
            status = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.shield(process.wait())
    return Ended(status, stderr)


async def _end_of_stderr(process: Process) -> str:
    assert process.stderr is not None
    kept = b""
    while chunk := await process.stderr.read(STDERR_BYTES):
        kept = (kept + chunk)[-STDERR_BYTES:]
    return kept.decode(errors="replace").strip()


async def _feed(process: Process, stdin: bytes) -> None:
    if process.stdin is None:
        return
    # If a worker ends before it has read everything, its status says why.
    with suppress(BrokenPipeError, ConnectionResetError):
        try:
            process.stdin.write(stdin)
            await process.stdin.drain()
        except RuntimeError:
            # uvloop's error if the pipe was closed before the first write.
            if not process.stdin.is_closing():
                raise
        process.stdin.close()
        await process.stdin.wait_closed()


class Turns:
    """Fair semaphore of `slots` turns, of which one owner gets at most half.

    A free turn goes to the owner with the fewest turns, among equals to the one that has waited
    longest. So uploads of one project do not block those of others.
    """

    def __init__(self, slots: int) -> None:
        self._free = max(slots, 2)
        self._share = self._free // 2
        self._running = Counter[str]()
        # Ordered by how long the owners have waited.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def turn(self, owner: str = SERVICE) -> AsyncIterator[None]:
        """Wait for a turn of `owner` and hold it during the block."""
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(granted)
        self._grant()
        try:
            await granted
            yield
        finally:
            if granted.done() and not granted.cancelled():
                self._free += 1
                self._running[owner] -= 1
                self._grant()

    def _grant(self) -> None:
        while self._free and (owner := self._next_owner()) is not None:
            waiting = self._waiting.pop(owner)
            granted = waiting.popleft()
            if waiting:
                self._waiting[owner] = waiting  # behind the others
            if not granted.cancelled():
                self._free -= 1
                self._running[owner] += 1
                granted.set_result(None)

    def _next_owner(self) -> str | None:
        able = [
            owner
            for owner in self._waiting
            if owner == SERVICE or self._running[owner] < self._share
        ]
        return min(able, key=lambda owner: self._running[owner], default=None)


# Futures can't be shared between event loops.
_turns: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Turns] = weakref.WeakKeyDictionary()
