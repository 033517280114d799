"""A system clock that a test sets for one process alone, by a library that is loaded before libc.

It shifts CLOCK_REALTIME by nanoseconds that it reads from a file, and leaves CLOCK_MONOTONIC and
CLOCK_BOOTTIME as they are, as settimeofday(2) does.
"""

from __future__ import annotations

import mmap
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Final

from tests.support.prerequisites import need

SHIFT_FILE: Final = "TEST_CLOCK_SHIFT"
"""The environment variable that names the file."""

_SOURCE: Final = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define BILLION 1000000000LL

static volatile int64_t *shift;

__attribute__((constructor)) static void map_shift(void) {
    const char *path = getenv("TEST_CLOCK_SHIFT");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *mapped = mmap(NULL, sizeof *shift, PROT_READ, MAP_SHARED, file, 0);
    if (mapped != MAP_FAILED)
        shift = mapped;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *at) {
    long failed = syscall(SYS_clock_gettime, clock, at);
    if (!failed && shift && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t all = at->tv_sec * BILLION + at->tv_nsec + *shift;
        at->tv_sec = all / BILLION;
        at->tv_nsec = all % BILLION;
    }
    return (int)failed;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at)
        *at = now.tv_sec;
    return now.tv_sec;
}
"""


class SettableClock:
    """The library, and the shift that the processes started with `environment` see."""

    def __init__(self, folder: Path) -> None:
        need(shutil.which("cc") is not None, "cc is not installed, which compiles C (Debian: gcc)")
        source, self._library = folder / "settable_clock.c", folder / "settable_clock.so"
        source.write_text(_SOURCE)
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o", self._library, source],
            check=True,
        )
        self._file = folder / "shift"
        self.shift = 0.0
        self._write(0.0)

    @property
    def environment(self) -> dict[str, str]:
        """What a process must be started with."""
        return {"LD_PRELOAD": str(self._library), SHIFT_FILE: str(self._file)}

    def step(self, seconds: float) -> None:
        """Set the clock forward, or back where `seconds` is negative."""
        self.shift += seconds
        self._write(self.shift)

    def _write(self, seconds: float) -> None:
        data = struct.pack("=q", round(seconds * 1e9))
        if not self._file.exists():
            self._file.write_bytes(data)
            return
        with self._file.open("r+b") as file, mmap.mmap(file.fileno(), 8) as mapped:
            mapped[:] = data
