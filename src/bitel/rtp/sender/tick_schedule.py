"""Schedule of ticks: when they are due, how late they were, and which streams each sends."""

from __future__ import annotations

import socket
from collections import deque

import numpy as np
from numpy.typing import NDArray

from bitel.rtp.ipc import StreamerStats
from bitel.rtp.packet import PTIMES, SAMPLES_PER_MS
from bitel.rtp.sender.packet_batch import Batch
from bitel.rtp.sender.sendmmsg import Transmit

LATE = 0.005  # seconds; a tick later than this counts as late
LOST = 0.2  # seconds; if later than this, the schedule restarts instead of catching up
REPORT_INTERVAL = 0.25  # seconds
REPORTS_KEPT = 40  # intervals
RECENT_REPORTS = 2  # intervals that the current lateness is computed from

# Short ticks spread the load evenly, but each has a fixed cost. Every packet time is a whole number
# of ticks.
TICK_MS = 2
TICK_SECONDS = TICK_MS / 1000
MOST_SLOTS = max(PTIMES) // TICK_MS
assert all(ptime % TICK_MS == 0 for ptime in PTIMES)

# Streams per slot in use: with few calls there are few wake-ups.
STREAMS_PER_SLOT = 500

# A slot with more than `CROWDED_TIMES` the average number of streams, plus `CROWDED`, gets no more.
CROWDED_TIMES = 2
CROWDED = 8


class Schedule:
    """Ticks at exact multiples of `TICK_SECONDS` after a start: they do not drift.

    After a late tick the following ones keep their times. If it is later than `LOST` (a suspended
    or overloaded machine), missed ticks are not sent in a burst: the schedule moves by the delay.
    Times are the caller's, in seconds.
    """

    def __init__(self, now: float) -> None:
        self.restart(now)

    def restart(self, now: float) -> None:
        """Makes the next tick due now; `index` restarts from 0."""
        self._beginning = now
        self._base = 0
        self.index = 0

    @property
    def due(self) -> float:
        """When tick number `index` is due."""
        return self._beginning + (self.index - self._base) * TICK_SECONDS

    def skip(self) -> None:
        """Skips tick `index`, which has nothing to send."""
        self.index += 1

    def advance(self, now: float) -> None:
        """Goes to the next tick, after tick `index` was sent."""
        self.index += 1
        if now - self.due > LOST:
            self._beginning, self._base = now, self.index


class TickLateness:
    """Statistics of the lateness of ticks; `report` is called every `REPORT_INTERVAL`."""

    def __init__(self) -> None:
        self._ticks = 0
        self._late = 0
        self._interval: list[float] = []
        # Arrays, because `report` must compute percentiles within a tick.
        self._intervals: deque[NDArray[np.float64]] = deque(maxlen=REPORTS_KEPT)

    def record(self, lateness: float) -> None:
        """Records a tick whose last packet was sent `lateness` seconds after it was due."""
        self._ticks += 1
        self._late += lateness > LATE
        self._interval.append(lateness)

    def report(self) -> StreamerStats:
        """Returns the statistics and begins a new interval."""
        self._intervals.append(np.array(self._interval))
        self._interval = []
        intervals = list(self._intervals)
        kept = np.concatenate(intervals) * 1000
        recent = np.concatenate(intervals[-RECENT_REPORTS:]) * 1000
        return StreamerStats(
            ticks=self._ticks,
            late_ticks=self._late,
            worst_ms=round(float(kept.max(initial=0.0)), 3),
            p99_ms=round(float(np.percentile(kept, 99)), 3) if len(kept) else 0.0,
            p90_ms=round(float(np.percentile(recent, 90)), 3) if len(recent) else 0.0,
        )


class SlotScheduler:
    """Spreads the streams of one packet time (`ptime`, in ms) over its ticks: one batch per slot.

    Streams of a port in the same slot share a sendmmsg, which is much cheaper. So ports are spread
    evenly over the slots; a port moves only when the number of used slots changes.
    """

    def __init__(self, ptime: int, family: socket.AddressFamily, transmit: Transmit) -> None:
        slots = ptime // TICK_MS
        self.batches = [Batch(family, transmit, ptime * SAMPLES_PER_MS) for _ in range(slots)]
        self._order = _far_apart(slots)
        self._used = 1  # number of slots in use, in that order
        self._home: dict[int, int] = {}  # port -> slot
        self._ports = [0] * slots  # number of ports per slot

    def batch_at(self, index: int) -> Batch:
        """The batch that tick number `index` sends."""
        return self.batches[index % len(self.batches)]

    def choose(self, port: int) -> Batch:
        """The batch for a new stream of this port."""
        loads = [len(batch) for batch in self.batches]
        total = sum(loads)
        wanted = min(1 + total // STREAMS_PER_SLOT, len(self.batches))
        # Hysteresis: ports stay in their slots when the number of streams varies.
        if wanted > self._used or 2 * total < STREAMS_PER_SLOT * (self._used - 1):
            self._used = wanted
        used = self._order[: self._used]
        if len(used) == 1:
            return self.batches[used[0]]
        slot = self._home_of(port, used)
        if loads[slot] > CROWDED_TIMES * total // len(used) + CROWDED:
            slot = min(used, key=loads.__getitem__)
        return self.batches[slot]

    def _home_of(self, port: int, used: list[int]) -> int:
        home = self._home.get(port)
        fewest = min(used, key=self._ports.__getitem__)
        if home in used and self._ports[home] <= self._ports[fewest] + 1:
            return home
        if home is not None:
            self._ports[home] -= 1
        self._ports[fewest] += 1
        self._home[port] = fewest
        return fewest


def _far_apart(slots: int) -> list[int]:
    """All slots of a circle, each as far as possible from those before it."""
    order = [0]

    def distance(slot: int) -> int:
        apart = [abs(slot - other) for other in order]
        return min(min(each, slots - each) for each in apart)

    while len(order) < slots:
        order.append(max((slot for slot in range(slots) if slot not in order), key=distance))
    return order
