"""Groups of dialers: which of several dialers takes a call that each of them could.

A call of a group waits in one queue, from which every dialer of the group claims. A dialer that is
down, paused or full claims nothing, so the others dial in its place. While several could, the order
of the group decides, or its weights: each dialer counts the calls that it took divided by its
weight, and one that is ahead of another waits for it (weighted fair queueing).

The first attempt of a call decides its caller id. Further attempts are made only by dialers that
may show it; while none of these can, the call waits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

MOST: Final = 1_000_000_000
"""An allowance without a limit."""
MEMORY: Final = 10.0
"""Calls per weight by which a dialer may lag behind the others: one that was down for an hour must
not take all calls of the next."""


@dataclass(frozen=True, slots=True)
class DialerGroup:
    """Dialers that share a queue."""

    id: str
    dialers: tuple[str, ...]
    """Their ids, in the order of preference."""
    weights: tuple[float, ...] = ()
    """The part of the calls that each takes, in the same order; empty: the order decides."""

    def weight(self, dialer_id: str) -> float:
        """The weight of one of its dialers, at least 1."""
        if not self.weights:
            return 1.0
        return self.weights[self.dialers.index(dialer_id)] / min(self.weights)


@dataclass(frozen=True, slots=True)
class Membership:
    """A dialer as one of a group."""

    group: DialerGroup
    dialer_id: str
    caller_ids: frozenset[str]
    """Those that the dialer may show; the empty string means that none is shown."""
    choose_caller_id: Callable[[str, str], str]
    """Gives the caller id of a new call, by the number called (E.164) and the call's id."""


def allowance(
    of: Membership, free: Collection[str], taken: Mapping[str, float]
) -> tuple[int, float]:
    """How many new calls a dialer may take now, and the count of those it took from which it does.

    Args:
        of: the dialer and its group.
        free: the dialers that could take a call now.
        taken: the calls that each dialer took, divided by its weight.
    """
    group, mine = of.group, of.dialer_id
    if not group.weights:
        before = group.dialers[: group.dialers.index(mine)]
        return (0 if any(each in free for each in before) else MOST), 0.0
    others = [taken.get(each, 0.0) for each in group.dialers if each in free and each != mine]
    count = taken.get(mine, 0.0)
    if not others:
        return MOST, count
    count = max(count, min(others) - MEMORY)
    # Each may be ahead by one call of the dialer with the lowest weight, so that one always may.
    ahead = count - min(others)
    return max(0, int((1.0 - ahead) * group.weight(mine) + 1e-9)), count
