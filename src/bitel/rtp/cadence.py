"""The streams of one packet time, spread over it: which batch each is in, and when that is up."""

from __future__ import annotations

import socket

from bitel.rtp.batch import Batch
from bitel.rtp.packet import PTIMES, SAMPLES_PER_MS
from bitel.rtp.sendmmsg import Transmit

# Ticks lie this far apart: batches of 2 ms worth of streams smooth the load, and each has a fixed
# cost. Every packet time is a whole number of them.
TICK_MS = 2
TICK_SECONDS = TICK_MS / 1000
MOST_SLOTS = max(PTIMES) // TICK_MS
assert all(ptime % TICK_MS == 0 for ptime in PTIMES)

# So many streams make one more slot worth its wake-ups; few calls then cost few of them.
WORTH_A_SLOT = 250

# A socket's streams are put into one slot, to share its sendmmsg, while that slot is no fuller
# than the emptiest by this many streams and this part.
CROWDED = 8
CROWDED_PART = 8


class Cadence:
    """One batch for each tick of the packet time (`ptime`, in ms)."""

    def __init__(self, ptime: int, family: socket.AddressFamily, transmit: Transmit) -> None:
        slots = ptime // TICK_MS
        samples = ptime * SAMPLES_PER_MS
        self.samples = samples
        self.batches = [Batch(family, transmit, samples) for _ in range(slots)]
        self._order = _far_apart(slots)
        self._home: dict[int, int] = {}  # port -> the slot that its last stream was put into

    def batch_at(self, index: int) -> Batch:
        """The batch whose turn it is at tick number `index`."""
        return self.batches[index % len(self.batches)]

    def choose(self, port: int) -> Batch:
        """The batch for one more stream of this port."""
        loads = [len(batch) for batch in self.batches]
        used = self._order[: 1 + sum(loads) // WORTH_A_SLOT]
        slot = min(used, key=loads.__getitem__)
        home = self._home.get(port)
        crowded = loads[slot] + CROWDED + loads[slot] // CROWDED_PART
        if home in used and loads[home] <= crowded:
            slot = home
        self._home[port] = slot
        return self.batches[slot]


def _far_apart(slots: int) -> list[int]:
    """All slots of a circle, each as far as can be from those before it."""
    order = [0]
    while len(order) < slots:
        rest = (slot for slot in range(slots) if slot not in order)
        order.append(max(rest, key=lambda slot: min(_distance(slot, o, slots) for o in order)))
    return order


def _distance(one: int, other: int, slots: int) -> int:
    apart = abs(one - other)
    return min(apart, slots - apart)
