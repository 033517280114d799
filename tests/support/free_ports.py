"""Ranges of loopback ports that are free at the moment of asking."""

from __future__ import annotations

import contextlib
import random
import socket

LOWEST, HIGHEST = 12_000, 32_000
"""Below the ports that Linux gives to sockets without a port of their own (from 32768), which any
socket of another test could get between the question and the use."""


def free_range(pairs: int, host: str = "127.0.0.1") -> range:
    """Neighbouring UDP ports, beginning with an even one; all could be bound a moment ago.

    Args:
        pairs: how many pairs of an even port and the odd port above it; 1 to 1000.
        host: an IPv4 or IPv6 address of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        start = random.randrange(LOWEST, HIGHEST - 2 * pairs, 2)
        ports = range(start, start + 2 * pairs)
        with contextlib.suppress(OSError), contextlib.ExitStack() as probes:
            for port in ports:
                probe = probes.enter_context(socket.socket(family, socket.SOCK_DGRAM))
                probe.bind((host, port))
            return ports
