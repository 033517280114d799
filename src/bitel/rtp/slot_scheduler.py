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
WORTH_A_SLOT = 500

# A slot that so many times the average of streams, and some more, are in takes no more of them.
CROWDED_TIMES = 2
CROWDED = 8


class Cadence:
    """One batch for each tick of the packet time (`ptime`, in ms)."""

    def __init__(self, ptime: int, family: socket.AddressFamily, transmit: Transmit) -> None:
        slots = ptime // TICK_MS
        samples = ptime * SAMPLES_PER_MS
        self.samples = samples
        self.batches = [Batch(family, transmit, samples) for _ in range(slots)]
        self._order = _far_apart(slots)
        self._used = 1  # slots, in that order
        self._home: dict[int, int] = {}  # port -> its slot
        self._ports = [0] * slots  # at home in each slot

    def batch_at(self, index: int) -> Batch:
        """The batch whose turn it is at tick number `index`."""
        return self.batches[index % len(self.batches)]

    def choose(self, port: int) -> Batch:
        """The batch for one more stream of this port.

        The streams of a port share a sendmmsg where they are in one slot, which makes each of them
        a good deal cheaper. So it is the ports that are spread evenly over the slots; one moves
        only when a slot begins or ceases to be used.
        """
        loads = [len(batch) for batch in self.batches]
        total = sum(loads)
        self._count_slots(total)
        if self._used == 1:
            return self.batches[self._order[0]]
        used = self._order[: self._used]
        slot = self._home_of(port, used)
        if loads[slot] > CROWDED_TIMES * total // len(used) + CROWDED:
            slot = min(used, key=loads.__getitem__)
        return self.batches[slot]

    def _count_slots(self, streams: int) -> None:
        wanted = min(1 + streams // WORTH_A_SLOT, len(self.batches))
        # One is given up late, lest ports move to and fro where the number of streams varies.
        if wanted > self._used or 2 * streams < WORTH_A_SLOT * (self._used - 1):
            self._used = wanted

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
    """All slots of a circle, each as far as can be from those before it."""
    order = [0]
    while len(order) < slots:
        rest = (slot for slot in range(slots) if slot not in order)
        order.append(max(rest, key=lambda slot: min(_distance(slot, o, slots) for o in order)))
    return order


def _distance(one: int, other: int, slots: int) -> int:
    apart = abs(one - other)
    return min(apart, slots - apart)
