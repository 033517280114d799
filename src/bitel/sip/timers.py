"""Timers of an agent: start and stop in constant time, for 100,000 running timers.

Nearly all of them have one of a few durations: T1 and its doubles, 64*T1, T4. Timers of one
duration expire in the order of their start, so each duration has a lane: a linked list with O(1)
append and removal. Other timers are in a heap, where stopped ones are only marked. With a heap
alone a call costs a fifth more CPU (`bench.sip_calls`).
"""

from __future__ import annotations

import heapq
import sys
from math import inf
from typing import Protocol

MAX_LANES = 32
"""All lanes are searched for the next timer; a configuration needs about half as many."""


class TimerOwner(Protocol):
    """Called with the name of its timer when that expires."""

    def timer_fired(self, name: str, now: float) -> None:
        """Handle the timer of this name, which is due."""


class Timer:
    """A timer; `owner` is None once it has fired or was stopped.

    `before` and `after` are its neighbours in its lane; both are `_NOWHERE` outside of lanes.
    """

    # Without __init__ creation takes half the time.
    __slots__ = ("after", "before", "name", "owner", "sequence", "when")

    when: float
    sequence: int
    owner: TimerOwner | None
    name: str
    before: Timer
    after: Timer


def is_due(timer: Timer | None, now: float) -> bool:
    """Whether a timer is running and due by `now`."""
    return timer is not None and timer.owner is not None and timer.when <= now


def _new_end() -> Timer:
    """The sentinel of an empty lane, due after every timer."""
    end = Timer()
    end.when = inf
    end.sequence = sys.maxsize
    end.owner = None
    end.name = ""
    end.before = end.after = end
    return end


_NOWHERE = _new_end()


class Timers:
    """The timers of an agent. Times are seconds of the caller's clock.

    They fire by time, then in the order of their start.
    """

    def __init__(self) -> None:
        # By duration: the sentinel of a ring, after which the first timer comes.
        self._lanes: dict[float, Timer] = {}
        self._heap: list[tuple[float, int, Timer]] = []
        # The earliest timer, if known.
        self._first: Timer | None = None
        self._in_heap = self._running = self._sequence = 0

    def __len__(self) -> int:
        """The number of running timers."""
        return self._running

    def start(self, now: float, wait: float, owner: TimerOwner, name: str) -> Timer:
        """Start a timer that fires `wait` seconds from `now`.

        Each `wait` gets a permanent lane: use `start_at` for one that the remote chose.
        """
        end = self._lanes.get(wait)
        if end is None:
            if len(self._lanes) >= MAX_LANES:
                return self.start_at(now + wait, owner, name)
            end = self._lanes[wait] = _new_end()
        when = now + wait
        last = end.before
        if when < last.when and last is not end:
            return self.start_at(when, owner, name)  # `now` went back; lanes must stay sorted
        timer = self._new(when, owner, name)
        timer.before = last
        timer.after = end
        last.after = end.before = timer
        return timer

    def start_at(self, when: float, owner: TimerOwner, name: str) -> Timer:
        """Start a timer that fires at `when`."""
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
        """Stop a timer; no effect if it is not running."""
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
        # Its owner may keep a reference, which must not keep the neighbours alive.
        timer.before = timer.after = _NOWHERE

    def next(self) -> float | None:
        """When the earliest timer is due; None without timers."""
        timer = self._earliest()
        return None if timer is None else timer.when

    def fire(self, now: float) -> None:
        """Fire all timers that are due by `now`, earliest first.

        Timers that owners start or stop meanwhile are taken into account.
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
        """Remove stopped timers once they are most of the heap."""
        if len(self._heap) > 64 and self._in_heap * 2 < len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].owner is not None]
            heapq.heapify(self._heap)
