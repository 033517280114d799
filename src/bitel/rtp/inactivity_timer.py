"""Which callees have fallen silent. Time is the caller's, in seconds of one steady clock."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

LOOK_EVERY = 10.0  # seconds at most, so that streams that are over are soon out of the heap


@dataclass(slots=True)
class _Callee:
    patience: float
    received_at: float | None = None


class Silence:
    """A callee that never sent anything is not silent: it may never have meant to.

    Nothing is done per packet but to note the time; each callee is looked at once in its patience.
    """

    def __init__(self) -> None:
        self._callees: dict[int, _Callee] = {}
        self._due: list[tuple[float, int]] = []  # a heap
        self.unread_until = float("-inf")
        """Silence before this time is ours, as nothing was read, and counts for no callee."""

    def watch(self, stream: int, patience: float, now: float) -> None:
        """`fallen` names this stream when nothing has come for `patience` seconds."""
        self._callees[stream] = _Callee(patience)
        self._plan(stream, now + patience, now)

    def sign(self, stream: int, now: float) -> None:
        """Something has come from the stream's callee."""
        callee = self._callees.get(stream)
        if callee is not None:
            callee.received_at = now

    def note_read_pause(self, now: float) -> None:
        """Nothing was read until now, so that silence of callees counts from now on only."""
        self.unread_until = now

    def forget(self, stream: int) -> None:
        """The stream is over."""
        self._callees.pop(stream, None)

    def fallen(self, now: float) -> list[int]:
        """The streams whose callees are silent; each again and again while that lasts."""
        fallen = []
        while self._due and self._due[0][0] <= now:
            _, stream = heapq.heappop(self._due)
            callee = self._callees.get(stream)
            if callee is None:
                continue
            since = callee.received_at
            if since is not None:
                since = max(since, self.unread_until)
            if since is not None and now - since >= callee.patience:
                fallen.append(stream)
                since = None
            self._plan(stream, (now if since is None else since) + callee.patience, now)
        return fallen

    def _plan(self, stream: int, due: float, now: float) -> None:
        # Never now again: rounding may have it due before its patience is quite over.
        later = max(min(due, now + LOOK_EVERY), math.nextafter(now, math.inf))
        heapq.heappush(self._due, (later, stream))
