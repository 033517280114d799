"""Classifies IP addresses: public, private, link-local or loopback.

The blocks are those of IANA's special-purpose registries (RFC 6890 and its updates), plus
multicast. Python's `ipaddress` lacks some of them before 3.13.
"""

from __future__ import annotations

import ipaddress
from enum import IntEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, NamedTuple

IPAddress = IPv4Address | IPv6Address


class Nearness(IntEnum):
    """How near to this machine an address is; nearer hosts are more likely to trust it."""

    PUBLIC = 0
    PRIVATE = 1
    LINK_LOCAL = 2
    LOOPBACK = 3


class Block(NamedTuple):
    """A special-purpose block, its kind as used in messages, and its nearness."""

    network: IPv4Network | IPv6Network
    kind: str
    nearness: Nearness


_PUBLIC, _PRIVATE = Nearness.PUBLIC, Nearness.PRIVATE
_LINK_LOCAL, _LOOPBACK = Nearness.LINK_LOCAL, Nearness.LOOPBACK

# The first matching block counts. Documentation blocks are not routed, so they count as public;
# 0.0.0.0/8 and :: reach the machine itself on Linux.
_BLOCKS: Final = tuple(
    Block(ipaddress.ip_network(network), kind, nearness)
    for network, kind, nearness in (
        ("0.0.0.0/32", "the unspecified", _LOOPBACK),  # RFC 1122 §3.2.1.3
        ("0.0.0.0/8", "a private", _LOOPBACK),
        ("10.0.0.0/8", "a private", _PRIVATE),  # RFC 1918
        ("100.64.0.0/10", "a private", _PRIVATE),  # RFC 6598, carrier-grade NAT
        ("127.0.0.0/8", "a loopback", _LOOPBACK),  # RFC 1122 §3.2.1.3
        ("169.254.0.0/16", "a link-local", _LINK_LOCAL),  # RFC 3927
        ("172.16.0.0/12", "a private", _PRIVATE),  # RFC 1918
        ("192.0.0.0/24", "a reserved", _PRIVATE),  # RFC 6890 §2.1
        ("192.0.2.0/24", "a documentation", _PUBLIC),  # RFC 5737
        ("192.31.196.0/24", "a reserved", _PUBLIC),  # RFC 7535, AS112
        ("192.52.193.0/24", "a reserved", _PUBLIC),  # RFC 7450, AMT
        ("192.88.99.0/24", "a reserved", _PUBLIC),  # RFC 7526, former 6to4 relays
        ("192.168.0.0/16", "a private", _PRIVATE),  # RFC 1918
        ("192.175.48.0/24", "a reserved", _PUBLIC),  # RFC 7534, AS112
        ("198.18.0.0/15", "a private", _PRIVATE),  # RFC 2544, benchmarks
        ("198.51.100.0/24", "a documentation", _PUBLIC),  # RFC 5737
        ("203.0.113.0/24", "a documentation", _PUBLIC),  # RFC 5737
        ("224.0.0.0/4", "a multicast", _PRIVATE),  # RFC 5771
        ("240.0.0.0/4", "a reserved", _PRIVATE),  # RFC 1112 §4, broadcast included
        ("::/128", "the unspecified", _LOOPBACK),  # RFC 4291 §2.5.2
        ("::1/128", "a loopback", _LOOPBACK),  # RFC 4291 §2.5.3
        ("64:ff9b:1::/48", "a private", _PRIVATE),  # RFC 8215, local NAT64
        ("100::/64", "a reserved", _PRIVATE),  # RFC 6666, discarded
        ("100:0:0:1::/64", "a reserved", _PRIVATE),  # RFC 9780, dummy prefix
        ("2001:db8::/32", "a documentation", _PUBLIC),  # RFC 3849
        ("2001::/23", "a reserved", _PRIVATE),  # RFC 2928, Teredo and ORCHID included
        ("2620:4f:8000::/48", "a reserved", _PUBLIC),  # RFC 7534, AS112
        ("3fff::/20", "a documentation", _PUBLIC),  # RFC 9637
        ("5f00::/16", "a reserved", _PRIVATE),  # RFC 9602, segment routing
        ("fc00::/7", "a private", _PRIVATE),  # RFC 4193
        ("fe80::/10", "a link-local", _LINK_LOCAL),  # RFC 4291 §2.5.6
        ("fec0::/10", "a private", _PRIVATE),  # RFC 3879, former site-local
        ("ff00::/8", "a multicast", _PRIVATE),  # RFC 4291 §2.7
    )
)
# IANA's global unicast range; the rest of IPv6 is reserved by the IETF (RFC 4291 §2.4).
_GLOBAL_IPV6: Final = IPv6Network("2000::/3")
_UNASSIGNED: Final = Block(IPv6Network("::/0"), "a reserved", _PRIVATE)

_NAT64: Final = IPv6Network("64:ff9b::/96")  # RFC 6052 §2.1
_IPV4_COMPATIBLE: Final = IPv6Network("::/96")  # RFC 4291 §2.5.5.1


def embedded_ipv4(address: IPAddress) -> IPv4Address | None:
    """The IPv4 address embedded in an IPv6 one (mapped, compatible, 6to4, NAT64); else None."""
    if isinstance(address, IPv4Address):
        return None
    if address.ipv4_mapped or address.sixtofour:
        return address.ipv4_mapped or address.sixtofour
    inside = address in _NAT64 or (address in _IPV4_COMPATIBLE and int(address) > 0xFFFF)
    return IPv4Address(int(address) & 0xFFFF_FFFF) if inside else None


def special_purpose(address: IPAddress) -> Block | None:
    """The special-purpose block of `address`; None for a public unicast address.

    Of an IPv6 address with an embedded IPv4 one, the latter counts.
    """
    address = embedded_ipv4(address) or address
    for block in _BLOCKS:
        if block.network.version == address.version and address in block.network:
            return block
    return _UNASSIGNED if address.version == 6 and address not in _GLOBAL_IPV6 else None


@lru_cache(maxsize=4096)
def nearness(host: str) -> Nearness:
    """The nearness of `host`, an IP address. Raises ValueError for a name."""
    block = special_purpose(ipaddress.ip_address(host))
    return Nearness.PUBLIC if block is None else block.nearness


def leads_nearer(origin: str, host: str) -> bool:
    """Whether `host` is nearer to this machine than `origin`, which named it; both IP addresses.

    A public remote host must not make the service send to a private, link-local or loopback
    address, nor a private one to the latter two. Raises ValueError for a name.
    """
    return nearness(host) > nearness(origin)
