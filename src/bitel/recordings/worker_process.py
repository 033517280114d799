"""Runs a module of ours in a process of its own, for what must not share a process with calls.

The module confines itself (`confinement.confine`, `sandbox`); from here it gets a turn, a bare
environment and an end. At most one worker per core runs at a time, for one project half of them.
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

import structlog

from bitel.errors import UnavailableError
from bitel.recordings import sandbox
from bitel.recordings.turns import SERVICE, Turns

log = structlog.get_logger(__name__)

# What the interpreter needs to find the package and its libraries; the rest (secrets among it)
# is none of the worker's business.
INHERITED_ENVIRONMENT: Final = ("PYTHONPATH", "PATH", "LD_LIBRARY_PATH", "HOME", "LANG")
STDERR_BYTES: Final = 4096

CRASHES: Final = frozenset(
    {
        -number
        for number in (
            signal.SIGSEGV,
            signal.SIGABRT,
            signal.SIGFPE,
            signal.SIGBUS,
            signal.SIGILL,
            signal.SIGTRAP,
            signal.SIGSYS,
        )
    }
)
"""Exit statuses of a worker that was ended by a fault of its own."""

LIMITS_MET: Final = frozenset({-signal.SIGXCPU, -signal.SIGXFSZ, -signal.SIGPIPE})
"""Exit statuses of a worker that met a limit, or whose parent did not listen."""

TRIES: Final = 2
"""Runs of a worker that is killed from outside, for lack of memory or by an operator."""

_turns: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Turns] = weakref.WeakKeyDictionary()


@dataclass(frozen=True, slots=True)
class Ended:
    """How a worker ended: `status` is its exit status, or minus the signal that ended it.

    `said` is the end of what it wrote to stderr.
    """

    status: int
    said: str


def log_confinement() -> None:
    """Log which layers confine the workers here, and which this kernel or this user lacks."""
    present, missing = sandbox.layers()
    # Each of these is enough to keep a worker from the service's files and processes.
    is_enough = "seccomp" in present or {"Landlock", "another user"} <= set(present)
    level = log.info if is_enough else log.warning
    level("workers_confined", by=", ".join(present), missing=", ".join(missing) or "nothing")


async def run(
    module: str,
    arguments: Sequence[str],
    wall_seconds: float,
    given: bytes = b"",
    descriptors: Sequence[int] = (),
    owner: str = SERVICE,
) -> Ended:
    """Run `python -m module arguments…` with `given` on its stdin, and return how it ended.

    It has `descriptors` under the same numbers, and none of ours besides. `owner` is the project
    whose turn it takes.

    Waiting for a turn does not count against `wall_seconds`; TimeoutError is raised when they
    are over. A worker that is killed from outside is run once more. Raises UnavailableError where
    it is killed again, and where it can't be started. The process is gone when this returns or
    raises, also when it is cancelled.
    """
    for _ in range(TRIES):
        async with _turns_of_loop().turn(owner):
            ended = await _run(module, arguments, wall_seconds, given, descriptors)
        if ended.status == -signal.SIGALRM:
            # It gave itself up after its time, where this process was too late to do it.
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
    given: bytes,
    descriptors: Sequence[int],
) -> Ended:
    try:
        process = await asyncio.create_subprocess_exec(
            # Neither the working folder nor the user's own packages may lend it modules.
            *(sys.executable, "-P", "-s", "-m", module, *arguments),
            stdin=PIPE if given else DEVNULL,
            stdout=DEVNULL,
            stderr=PIPE,
            env=_environment(),
            pass_fds=descriptors,
            # A Ctrl-C at the terminal is the service's to handle.
            start_new_session=True,
        )
    except OSError as error:
        # No memory or process left, or the interpreter is gone, as in an upgrade.
        raise UnavailableError("A process for this work can't be started now.") from error
    try:
        async with asyncio.timeout(wall_seconds):
            said, _ = await asyncio.gather(_last_words(process), _feed(process, given))
            status = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await asyncio.shield(process.wait())
    return Ended(status, said)


class WorkerError(Exception):
    """A worker's status and last words: for the log, not for the client."""

    def __init__(self, ended: Ended) -> None:
        super().__init__(f"exit status {ended.status}: {ended.said}")


def _turns_of_loop() -> Turns:
    """The turns of the running loop: they can't be shared between loops."""
    loop = asyncio.get_running_loop()
    if loop not in _turns:
        _turns[loop] = Turns(os.cpu_count() or 1)
    return _turns[loop]


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
        try:
            process.stdin.write(given)
            await process.stdin.drain()
        except RuntimeError:
            # So does uvloop where the pipe was closed before anything was written.
            if not process.stdin.is_closing():
                raise
        process.stdin.close()
        await process.stdin.wait_closed()
