"""When each tick is due, and how late they were. Time is the caller's, in seconds."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LATE = 0.005  # seconds; a tick later than this counts as late
LOST = 0.2  # seconds; later than this the schedule starts anew instead of catching up
TURN = 0.25  # seconds for which ticks are collected before they are reported
REMEMBERED = 40  # turns
NOW = 2  # turns; what is late at present shows in them


class Schedule:
    """Ticks at exact multiples of an interval from a beginning: they never drift.

    A late tick is sent at once and the following ones keep their times. After `LOST` seconds (the
    machine slept, or can't keep up) the missed ticks are not made up for in one burst; everything
    moves by the delay.
    """

    def __init__(self, interval: float, now: float) -> None:
        self._interval = interval
        self.restart(now)

    def restart(self, now: float) -> None:
        """The next tick is due now; `index` goes on counting from 0."""
        self._beginning = now
        self._base = 0
        self.index = 0

    @property
    def due(self) -> float:
        """When tick number `index` is to be sent."""
        return self._beginning + (self.index - self._base) * self._interval

    def skip(self) -> None:
        """Tick `index` has nothing to send."""
        self.index += 1

    def advance(self, now: float) -> None:
        """Tick `index` was sent; the next one is up."""
        self.index += 1
        if now - self.due > LOST:
            self._beginning, self._base = now, self.index


@dataclass(frozen=True, slots=True)
class Lateness:
    """Of the ticks of the last 10 s, in milliseconds; `ticks` and `late` since the beginning.

    A tenth of the ticks of the last half second were later than `tenth_ms`.
    """

    ticks: int
    late: int
    worst_ms: float
    p99_ms: float
    tenth_ms: float


class TickLateness:
    """Collects how late ticks were; `turn` is called every `TURN` seconds."""

    def __init__(self) -> None:
        self._ticks = 0
        self._late = 0
        self._turn: list[float] = []
        # As arrays: all of them are looked at in each turn, between two ticks.
        self._turns: deque[NDArray[np.float64]] = deque(maxlen=REMEMBERED)

    def record(self, lateness: float) -> None:
        """A tick whose last packet left `lateness` seconds after it was due."""
        self._ticks += 1
        self._late += lateness > LATE
        self._turn.append(lateness)

    def turn(self) -> Lateness:
        """What is known now; a new turn begins."""
        self._turns.append(np.array(self._turn))
        self._turn = []
        turns = list(self._turns)
        recent = np.concatenate(turns) * 1000
        last = np.concatenate(turns[-NOW:]) * 1000
        return Lateness(
            self._ticks,
            self._late,
            worst_ms=float(recent.max(initial=0.0)),
            p99_ms=float(np.percentile(recent, 99)) if len(recent) else 0.0,
            tenth_ms=float(np.percentile(last, 90)) if len(last) else 0.0,
        )
