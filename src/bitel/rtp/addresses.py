"""Far ends' hosts as a session description names them. Few carriers have many calls: remembered."""

from __future__ import annotations

import ipaddress
from functools import lru_cache

_BROADCAST = ipaddress.IPv4Address("255.255.255.255")


@lru_cache(maxsize=1024)
def normal(host: str) -> str:
    """An IP address the way that the system writes it; ValueError for anything else."""
    return str(ipaddress.ip_address(host))


@lru_cache(maxsize=1024)
def host_problem(host: str, version: int) -> str:
    """Why nothing can be sent there from IPv4 or IPv6, in a sentence; empty where it can."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"{host!r} is not an IP address to send RTP to"
    # The address comes from a stranger's SDP. 0.0.0.0 would reach this machine itself.
    many = address.is_multicast or address == _BROADCAST
    if address.is_unspecified or many or "%" in host:
        return f"{host} is not an address of one callee to send RTP to"
    if address.version != version:
        return f"RTP to {host} needs IPv{address.version}, and is sent from IPv{version}"
    return ""
