"""Clocks that tests move: one to pass to the code under test, and those of a whole machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bitel.steady_clock import SteadyClock

STEPS: Final = (3600.0, -3600.0, 30.0, -30.0)
"""Seconds by which tests set the system clock."""


@dataclass
class FakeClock:
    """A clock that stands at `now`, in seconds, until a test moves it."""

    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> float:
        """Move the clock on; the new time."""
        self.now += seconds
        return self.now


@dataclass
class Machine:
    """A system clock that may be set, and a boot clock that may not."""

    folder: Path
    system_time: float = 1_700_000_000.0
    boot_time: float = 100.0
    boot: str = "first"
    read_system: Callable[[], None] = field(default=lambda: None)

    def system(self) -> float:
        self.read_system()
        return self.system_time

    def open(self) -> SteadyClock:
        return SteadyClock.open(
            self.folder, system=self.system, boot_time=lambda: self.boot_time, boot=self.boot
        )

    def passes(self, seconds: float) -> None:
        self.system_time += seconds
        self.boot_time += seconds

    def restart(self, down: float, boot: str = "second") -> None:
        """Stop the machine, and start it `down` seconds later."""
        self.system_time += down
        self.boot_time, self.boot = 5.0, boot
