"""The sender's claim to a core: a packet that leaves late is heard, and what else runs can wait."""

from __future__ import annotations

import contextlib
import os
import sys

NICE = -10
LEVEL = 2  # of real time, from 1 to 99
FULL = 0.9  # of a core; a process that uses more leaves others too little to go before them all
PATIENCE = 5  # reviews in a row that say so, or that say the opposite


class Priority:
    """Goes before other processes, as far as the system lets us; where it doesn't, so be it.

    Real time (`SCHED_RR`) is what keeps ticks punctual beside a busy service: a process that is
    only nicer is woken when the running one's turn is over. It is claimed as long as the core is
    not full: beyond that, calls would be set up and ended by nobody. A moment in which late ticks
    are caught up does not count.
    """

    def __init__(self) -> None:
        self.real_time = False
        self._doubts = 0  # reviews in a row that were for a change

    def take(self) -> None:
        """At the start."""
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, NICE)
        # Where Linux groups processes by session, niceness counts only within the session.
        with contextlib.suppress(OSError), open("/proc/self/autogroup", "w") as autogroup:
            autogroup.write(str(NICE))
        self._set(real_time=True)

    def review(self, used: float) -> None:
        """Once a second. `used` is the part of a core that this process took since the last one."""
        self._doubts = self._doubts + 1 if (used > FULL) == self.real_time else 0
        if self._doubts == PATIENCE:
            self._doubts = 0
            self._set(real_time=not self.real_time)

    def _set(self, *, real_time: bool) -> None:
        if sys.platform != "linux":
            return
        policy, level = (os.SCHED_RR, LEVEL) if real_time else (os.SCHED_OTHER, 0)
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, policy | os.SCHED_RESET_ON_FORK, os.sched_param(level))
            self.real_time = real_time
