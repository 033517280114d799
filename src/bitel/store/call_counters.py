"""How many calls were placed and ended, counted where it happens, and taken over by the commit.

A count is worth something only when its transaction is: what is undone, or runs again, must not be
counted twice. So counts wait on the writer's thread, which does one unit of work at a time, until
that unit is done for good.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import Literal

Tally = Counter[tuple[Literal["placed", "ended"], str]]
"""Calls placed, by lane, and ended, by status; both by their names."""


class _Waiting(threading.local):
    def __init__(self) -> None:
        self.tally: Tally = Counter()


_waiting = _Waiting()


def count(what: Literal["placed", "ended"], which: str, calls: int = 1) -> None:
    """Count calls in the present unit of work."""
    _waiting.tally[what, which] += calls


def take() -> Tally:
    """What this thread has counted since the last time; it is counted no more."""
    taken = _waiting.tally
    if taken:
        _waiting.tally = Counter()
    return taken
