"""Scheduling of the sender process: a packet that leaves late can be heard, other work can wait."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
from typing import Final

NICE: Final = -10

SLICE: Final = 100_000
"""Nanoseconds, the least there is: a process with short slices is run sooner, which is what a tick
needs. It gets no larger part of the core, so that calls are still set up where senders have much
to do; with real-time scheduling (`SCHED_RR`) they were not."""

_SCHED_SETATTR: Final = {"x86_64": 314, "aarch64": 274, "riscv64": 274}
"""The system call's number by machine; the C library has no name for it."""
_ATTRIBUTES: Final = struct.Struct("=IIQiIQQQ")
"""`struct sched_attr` in its first version: size, policy, flags, nice, priority, and runtime (the
slice), deadline and period, of which ordinary processes have only the runtime. See sched(7)."""


def core_for(number: int, senders: int) -> int | None:
    """The core for the number-th of so many senders, from 0; None: let the system choose.

    If there are as many senders as cores, each has its own: two that share one, full as they are,
    are late.
    """
    cores = sorted(os.sched_getaffinity(0))
    return cores[number % len(cores)] if senders >= len(cores) else None


def claim_a_core(core: int | None = None) -> None:
    """Takes precedence over other processes as far as the system allows it.

    With `core` this process runs there and nowhere else.
    """
    if core is not None:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, {core})
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    # Where Linux groups processes by session, niceness counts only within the session.
    with contextlib.suppress(OSError), open("/proc/self/autogroup", "w") as autogroup:
        autogroup.write(str(NICE))
    set_time_slice(os.getpriority(os.PRIO_PROCESS, 0))


def set_time_slice(nice: int) -> bool:
    """Sets the time slice (Linux 6.12 or later); whether the system has taken it."""
    number = _SCHED_SETATTR.get(platform.machine())
    if number is None:
        return False
    attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, 0, nice, 0, SLICE, 0, 0)
    return bool(ctypes.CDLL(None).syscall(number, 0, attributes, 0) == 0)
