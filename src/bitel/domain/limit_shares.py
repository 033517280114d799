"""Shares of several workers in a limit that holds for all of them together.

A limit is a number of places, such as channels or calls that may begin in a second. Each worker
holds some, and uses no more. What they hold never adds up to more than the limit: a worker takes
only places that none holds, and gives up none that it uses. What it uses beyond its fair share it
does not use again, so that it can be given up. What each should have is computed by every worker
from the same rows: `fair_shares` gives the places to those that want them, as equally as possible
(max-min fairness), so that none lies idle while one is wanted. "Equally" is in proportion to their
weights, where these differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

_HALVINGS: Final = 60
"""More would not change a level of up to a million places by a whole one."""


class Demand(NamedTuple):
    """What one worker needs of a limit."""

    used: int
    """Places in use. They can't be taken away, but need not be used again."""
    wanted: int
    """Places that it could use now, with those in use."""
    is_able: bool = True
    """It could use more later, so it may hold places that none wants now."""
    weight: float = 1.0
    """Its part of the places, in proportion to that of others; above 0."""


def fair_shares(places: int, demands: Sequence[Demand]) -> list[int]:
    """How many of the places each worker should have.

    First what is used or wanted, as equally as possible; then the rest, in the same way, among
    those that are able to use it.
    """
    wanted = [max(each.used, each.wanted) for each in demands]
    weights = [each.weight for each in demands]
    shares = _fill(places, [0] * len(demands), wanted, weights)
    most = [places if each.is_able else share for each, share in zip(demands, shares, strict=True)]
    return _fill(places, shares, most, weights)


class Share(NamedTuple):
    """A worker's places."""

    held: int = 0
    """Places that others can't take."""
    usable: int = 0
    """Places that the worker may use for something new, at most `held`."""


def next_share(places: int, held: Sequence[int], demands: Sequence[Demand], mine: int) -> Share:
    """The share that a worker should have from now on.

    Args:
        places: the limit, without places that are taken by what no worker here knows of.
        held: what the workers hold now.
        demands: in the same order.
        mine: the worker's index.
    """
    fair, have = fair_shares(places, demands)[mine], held[mine]
    if fair > have:
        have += max(0, min(fair - have, places - sum(held)))
        return Share(have, have)
    return Share(max(fair, min(have, demands[mine].used)), fair)


def _fill(
    places: int, shares: Sequence[int], most: Sequence[int], weights: Sequence[float]
) -> list[int]:
    """Raise the shares that are lowest for their weight, up to `most` of each, until all places are
    taken."""

    def at(level: float) -> list[int]:
        return [
            max(share, min(limit, int(level * weight)))
            for share, limit, weight in zip(shares, most, weights, strict=True)
        ]

    # The highest level of places by weight, in halves of what is left between two bounds.
    low, high = 0.0, (places + 1) / min(weights, default=1.0)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(at(middle)) <= places else (low, middle)
    filled = at(low)
    for _ in range(places - sum(filled)):
        rising = [n for n, share in enumerate(filled) if share < most[n]]
        if not rising:
            break
        filled[min(rising, key=lambda n: ((filled[n] + 1) / weights[n], n))] += 1
    return filled
