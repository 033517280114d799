"""Shares of several workers in a limit that holds for all of them together.

A limit is a number of places, such as channels or calls that may begin in a second. Each worker has
a grant, and uses no more. The grants never add up to more than the limit: a worker's grant grows
only by places that no grant has, and shrinks no further than what the worker uses. What each should
have is computed by every worker from the same rows: `fair_shares` gives the places to those that
want them, as equally as possible (max-min fairness), so that none lies idle while one is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Demand(NamedTuple):
    """What one worker needs of a limit."""

    used: int
    """Places in use; they can't be taken away."""
    wanted: int
    """Places that it could use now, with those in use."""
    is_able: bool = True
    """It could use more later, so it may hold places that none wants now."""


def fair_shares(places: int, demands: Sequence[Demand]) -> list[int]:
    """How many of the places each worker should have.

    Those in use first, even beyond `places`; then what is wanted, as equally as possible; then the
    rest, in the same way, among those that are able to use it.
    """
    shares = [each.used for each in demands]
    shares = _fill(places, shares, [max(each.used, each.wanted) for each in demands])
    most = [max(places, each.used) if each.is_able else share
            for each, share in zip(demands, shares, strict=True)]  # fmt: skip
    return _fill(places, shares, most)


def next_grant(places: int, granted: Sequence[int], demands: Sequence[Demand], mine: int) -> int:
    """The grant that a worker should take now.

    Args:
        places: the limit, without places that are taken by what no worker here knows of.
        granted: the grants of the workers now.
        demands: in the same order.
        mine: the worker's index.
    """
    fair, have = fair_shares(places, demands)[mine], granted[mine]
    if fair > have:
        return have + max(0, min(fair - have, places - sum(granted)))
    return max(fair, min(have, demands[mine].used))


def _fill(places: int, shares: Sequence[int], most: Sequence[int]) -> list[int]:
    """Raise the lowest shares first, up to `most` of each, until all places are taken."""
    shares = list(shares)
    left = places - sum(shares)
    while left > 0:
        rising = [n for n, share in enumerate(shares) if share < most[n]]
        if not rising:
            break
        lowest = min(shares[n] for n in rising)
        level = [n for n in rising if shares[n] == lowest]
        # Up to the next share above, or to where the first of them has enough.
        above = [shares[n] for n in rising if shares[n] > lowest] + [most[n] for n in level]
        step = min(min(above) - lowest, max(1, left // len(level)))
        for n in level[:left]:
            shares[n] += step
            left -= step
    return shares
