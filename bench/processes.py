"""Resource usage of a process and its children, from /proc."""

from __future__ import annotations

import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_STOLEN = 7


def tree(pid: int) -> list[int]:
    """Returns `pid` and all its descendants."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid] + [below for child in children for below in tree(int(child))]


def cpu_seconds(pid: int) -> float:
    """User and system time of a running process, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def machine_seconds() -> tuple[float, float]:
    """CPU seconds of all cores since boot: busy ones, and all."""
    ticks = _machine_ticks()
    idle = ticks[3] + ticks[4]  # and waiting for a disk
    return (sum(ticks) - idle - ticks[_STOLEN]) / _TICKS, sum(ticks) / _TICKS


def stolen_seconds() -> float:
    """Steal time of all cores since boot, in seconds."""
    return _machine_ticks()[_STOLEN] / _TICKS


def thread_seconds(pid: int) -> dict[str, float]:
    """User and system time of a process's threads by name, in seconds; the first is `main`."""
    used: dict[str, float] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        begin, end = (task / "stat").read_text().rsplit(")", 1)
        name = "main" if task.name == str(pid) else begin.partition("(")[2]
        fields = end.split()
        used[name] = used.get(name, 0.0) + (int(fields[11]) + int(fields[12])) / _TICKS
    return used


def resident(pid: int) -> int:
    """Resident memory of a process in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _machine_ticks() -> list[int]:
    first = Path("/proc/stat").read_text().split("\n", 1)[0]
    return [int(field) for field in first.split()[1:9]]
