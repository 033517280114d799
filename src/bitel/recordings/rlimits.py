"""The limits that a worker process takes upon itself before it looks at what it was given."""

from __future__ import annotations

import os
import resource
import signal
from typing import Final

NICENESS: Final = 10


def confine(*, cpu_seconds: int, memory_bytes: int, wall_seconds: float, file_bytes: int) -> None:
    """Limit this process, for good and for whatever it starts or becomes by exec.

    `cpu_seconds` is processor time, after which SIGXCPU ends it; `memory_bytes` address space;
    `wall_seconds` the time until its parent gives it up; `file_bytes` the longest file that it
    may write.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    # Should the parent be gone, nobody else ends this process.
    signal.setitimer(signal.ITIMER_REAL, wall_seconds + 1)
    # Calls that are playing come before recordings that are being made.
    os.nice(NICENESS)
