"""CPU priority of the sender process: late packets are audible, other work can wait."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
from typing import Final

NICE: Final = -10

SLICE: Final = 100_000
"""Time slice in nanoseconds, the minimum: a process with short slices is scheduled sooner, but gets
no larger share of the core. With real-time scheduling (`SCHED_RR`), busy senders kept the service
from setting up calls."""

_SCHED_SETATTR: Final = {"x86_64": 314, "aarch64": 274, "riscv64": 274}
"""Number of the system call by machine; the C library has no wrapper."""
_ATTRIBUTES: Final = struct.Struct("=IIQiIQQQ")
"""`struct sched_attr`, first version: size, policy, flags, nice, priority, runtime (the slice),
deadline, period. See sched(7)."""


def core_for(number: int, senders: int) -> int | None:
    """The core for sender `number` (from 0) of `senders`; None: let the system choose.

    If there are as many senders as cores, each has its own: two busy ones that share a core are
    late.
    """
    cores = sorted(os.sched_getaffinity(0))
    return cores[number % len(cores)] if senders >= len(cores) else None


def claim_a_core(core: int | None = None) -> None:
    """Raises the priority of this process as far as permitted, and binds it to `core` if given."""
    if core is not None:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, {core})
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    # With autogroup scheduling, niceness applies only within the session.
    with contextlib.suppress(OSError), open("/proc/self/autogroup", "w") as autogroup:
        autogroup.write(str(NICE))
    set_time_slice(os.getpriority(os.PRIO_PROCESS, 0))


def set_time_slice(nice: int) -> bool:
    """Sets the time slice (Linux 6.12 or later); returns whether that succeeded."""
    number = _SCHED_SETATTR.get(platform.machine())
    if number is None:
        return False
    attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, 0, nice, 0, SLICE, 0, 0)
    return bool(ctypes.CDLL(None).syscall(number, 0, attributes, 0) == 0)
