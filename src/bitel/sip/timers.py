"""The timers of an agent, cheap to start and stop while a hundred thousand run.

Nearly all of them run for one of the few waits that the configuration gives: T1 and its doubles,
64*T1, T4. Timers of one wait are due in the order in which they were started, so each wait has a
lane, a linked list that they join at its end and leave at once when stopped. Only timers that are
due at some other time lie in a heap, where stopping only marks them. A heap alone makes a call a
fifth dearer (`bench.sip_calls`).
"""

from __future__ import annotations

import heapq
import sys
from math import inf
from typing import Protocol

MAX_LANES = 32
"""Each lane is looked at to find the next timer. A configuration has about half as many waits."""


class TimerOwner(Protocol):
    """Gets the name of its timer when that is due."""

    def timer_fired(self, name: str, now: float) -> None:
        """Handle the timer of this name, which is due."""


class Timer:
    """A running timer; `owner` is None once it has fired or was stopped.

    `before` and `after` are its neighbours in its lane; out of lanes both are `_NOWHERE`.
    """

    # Without __init__, which would be called by way of C, making one takes half as long.
    __slots__ = ("after", "before", "name", "owner", "sequence", "when")

    when: float
    sequence: int
    owner: TimerOwner | None
    name: str
    before: Timer
    after: Timer


def is_due(timer: Timer | None, now: float) -> bool:
    """Whether a timer is running, and will fire by `now`."""
    return timer is not None and timer.owner is not None and timer.when <= now


def _new_end() -> Timer:
    """The end of an empty lane, which is due after every other timer."""
    end = Timer()
    end.when = inf
    end.sequence = sys.maxsize
    end.owner = None
    end.name = ""
    end.before = end.after = end
    return end


_NOWHERE = _new_end()


class Timers:
    """Starts, stops and fires timers. Times are seconds on the caller's clock.

    They fire in the order of their times, then in the order in which they were started.
    """

    def __init__(self) -> None:
        # A lane is a ring, closed by its end: first comes the timer after that.
        self._lanes: dict[float, Timer] = {}
        self._heap: list[tuple[float, int, Timer]] = []
        # The earliest of all, as long as that is known.
        self._first: Timer | None = None
        self._in_heap = self._running = self._sequence = 0

    def __len__(self) -> int:
        """How many timers are running."""
        return self._running

    def start(self, now: float, wait: float, owner: TimerOwner, name: str) -> Timer:
        """Have a timer fire `wait` seconds from `now`.

        Each wait gets a lane for good: use `start_at` for one that the far end chose.
        """
        end = self._lanes.get(wait)
        if end is None:
            if len(self._lanes) >= MAX_LANES:
                return self.start_at(now + wait, owner, name)
            end = self._lanes[wait] = _new_end()
        when = now + wait
        last = end.before
        if when < last.when and last is not end:
            return self.start_at(when, owner, name)  # `now` went back; lanes must stay in order
        timer = self._new(when, owner, name)
        timer.before = last
        timer.after = end
        last.after = end.before = timer
        return timer

    def start_at(self, when: float, owner: TimerOwner, name: str) -> Timer:
        """Have a timer fire at any time."""
        timer = self._new(when, owner, name)
        timer.before = timer.after = _NOWHERE
        self._in_heap += 1
        heapq.heappush(self._heap, (when, timer.sequence, timer))
        return timer

    def _new(self, when: float, owner: TimerOwner, name: str) -> Timer:
        self._running += 1
        self._sequence += 1
        timer = Timer()
        timer.when = when
        timer.sequence = self._sequence
        timer.owner = owner
        timer.name = name
        first = self._first
        if first is not None and when < first.when:
            self._first = timer
        return timer

    def stop(self, timer: Timer | None) -> None:
        """Have a timer fire no more. One that is not running may be stopped again."""
        if timer is None or timer.owner is None:
            return
        timer.owner = None
        self._running -= 1
        if timer is self._first:
            self._first = None
        before = timer.before
        if before is _NOWHERE:
            self._in_heap -= 1
            self._tidy_heap()
            return
        after = timer.after
        before.after = after
        after.before = before
        # Its owner may keep it, and must not keep its neighbours.
        timer.before = timer.after = _NOWHERE

    def next(self) -> float | None:
        """When the earliest running timer is due; None with none running."""
        timer = self._earliest()
        return None if timer is None else timer.when

    def fire(self, now: float) -> None:
        """Tell the owners of all timers that are due by `now`, earliest first.

        What they start or stop meanwhile counts at once.
        """
        while (timer := self._earliest()) is not None and timer.when <= now:
            owner = timer.owner
            self.stop(timer)
            if owner is not None:
                owner.timer_fired(timer.name, now)

    def _earliest(self) -> Timer | None:
        if self._first is None:
            self._first = self._find_earliest()
        return self._first

    def _find_earliest(self) -> Timer | None:
        heap = self._heap
        while heap and heap[0][2].owner is None:
            heapq.heappop(heap)
        earliest = heap[0][2] if heap else _NOWHERE
        when = earliest.when
        for end in self._lanes.values():
            first = end.after
            if first.when <= when and (first.when < when or first.sequence < earliest.sequence):
                earliest = first
                when = first.when
        return None if earliest.owner is None else earliest

    def _tidy_heap(self) -> None:
        """Stopped timers leave when they reach the top, or here once they are most of the heap."""
        if len(self._heap) > 64 and self._in_heap * 2 < len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].owner is not None]
            heapq.heapify(self._heap)
