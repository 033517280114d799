"""Shares of several workers in a limit that holds for all of them together.

A limit is a number of places, such as channels or calls that may begin in a second. Each worker
holds some, and uses no more. What they hold never adds up to more than the limit: a worker takes
only places that none holds, and gives up none that it uses. What it uses beyond its fair share it
does not use again, so that it can be given up. What each should have is computed by every worker
from the same rows: `fair_shares` gives the places to those that want them, as equally as possible
(max-min fairness), so that none lies idle while one is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Demand(NamedTuple):
    """What one worker needs of a limit."""

    used: int
    """Places in use. They can't be taken away, but need not be used again."""
    wanted: int
    """Places that it could use now, with those in use."""
    is_able: bool = True
    """It could use more later, so it may hold places that none wants now."""


def fair_shares(places: int, demands: Sequence[Demand]) -> list[int]:
    """How many of the places each worker should have.

    First what is used or wanted, as equally as possible; then the rest, in the same way, among
    those that are able to use it.
    """
    wanted = [max(each.used, each.wanted) for each in demands]
    shares = _fill(places, [0] * len(demands), wanted)
    most = [places if each.is_able else share for each, share in zip(demands, shares, strict=True)]
    return _fill(places, shares, most)


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
