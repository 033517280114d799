"""The order in which servers are tried that SRV records name (RFC 2782)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from bitel.sip.grammar import Address


@dataclass(frozen=True, slots=True)
class Server:
    """An SRV record with its target's addresses; the lowest priority is tried first."""

    priority: int
    weight: int
    addresses: tuple[Address, ...]


def in_order(servers: Sequence[Server], rng: random.Random) -> list[Address]:
    """The addresses in the order in which they are to be tried.

    By priority; among equals each is drawn with a chance that is its share of the weights, so
    that one of weight 0 comes first only by what chance is left.
    """
    ordered: list[Address] = []
    for priority in sorted({server.priority for server in servers}):
        equals = [server for server in servers if server.priority == priority]
        # RFC 2782 has those of weight 0 stand in front, for a draw of 0 to reach them.
        equals.sort(key=lambda server: server.weight > 0)
        while equals:
            left = rng.randint(0, sum(server.weight for server in equals))
            for server in equals:
                left -= server.weight
                if left <= 0:
                    break
            equals.remove(server)
            ordered += server.addresses
    return ordered
