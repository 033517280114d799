"""One heap for every timer of the agent. Stopping a timer is a mark on it, not a search."""

from __future__ import annotations

import heapq
from typing import Protocol


class TimerOwner(Protocol):
    """Whoever starts a timer hears of it by name."""

    def timer_fired(self, name: str, now: float) -> None: ...


class Timer:
    """A running timer; `owner` is None once it has fired or was stopped."""

    __slots__ = ("name", "owner")

    def __init__(self, owner: TimerOwner, name: str) -> None:
        self.owner: TimerOwner | None = owner
        self.name = name


class Timers:
    """Starts, stops and fires timers. Times are seconds on the caller's clock."""

    __slots__ = ("_heap", "_running", "_sequence")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._sequence = 0
        self._running = 0

    def __len__(self) -> int:
        """How many timers are running."""
        return self._running

    def start(self, when: float, owner: TimerOwner, name: str) -> Timer:
        timer = Timer(owner, name)
        # The sequence keeps timers of the same time in the order in which they were started.
        self._sequence += 1
        heapq.heappush(self._heap, (when, self._sequence, timer))
        self._running += 1
        return timer

    def stop(self, timer: Timer | None) -> None:
        if timer is None or timer.owner is None:
            return
        timer.owner = None
        self._running -= 1
        # Stopped timers leave when they reach the top, or here once they are most of the heap.
        if len(self._heap) > 64 and self._running * 2 < len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].owner is not None]
            heapq.heapify(self._heap)

    def next(self) -> float | None:
        """When the earliest running timer is due; None with none running."""
        heap = self._heap
        while heap and heap[0][2].owner is None:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    def fire(self, now: float) -> None:
        """Tell the owners of all timers that are due by `now`, earliest first."""
        while (when := self.next()) is not None and when <= now:
            timer = heapq.heappop(self._heap)[2]
            owner = timer.owner
            timer.owner = None
            self._running -= 1
            if owner is not None:
                owner.timer_fired(timer.name, now)
