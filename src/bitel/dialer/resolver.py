"""Resolves trunks to addresses (RFC 3263 §4) by NAPTR, SRV, then A or AAAA records, with a cache.

An IP address needs no query, and a host with a port only A or AAAA records. With a transport, its
SRV records are queried; otherwise NAPTR records, which name transports and SRV records, or without
them the SRV records of UDP, then TCP. Without any of these, the host's address is used with the
default port.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, NamedTuple

import dns.asyncresolver
import dns.exception
import dns.name
import dns.resolver
import structlog
from dns.rdtypes.util import weighted_processing_order

from bitel.dialer.trunk import Trunk, shown
from bitel.sip.grammar import Address, Transport
from bitel.supervision import SharedTasks

log = structlog.get_logger(__name__)

SHORTEST_KEPT: Final = 5.0
LONGEST_KEPT: Final = 300.0
"""Limits in seconds of the time that an answer is cached, whatever its TTL."""
KEPT_AFTER_FAILURE: Final = 15.0
"""Seconds for which old addresses stay in use after a failed query."""
QUERY_TIMEOUT: Final = 3.0
"""Timeout of a DNS query in seconds."""
MAX_HOSTS: Final = 1000
"""Limit of cached media hosts, and of their concurrent look-ups: remotes choose these names."""
TRUNK_FOR: Final = 24 * 3600.0
"""Seconds for which an address counts as a trunk's after its last DNS answer: its calls may still
run."""
MAX_SEEN: Final = 4096
MAX_SERVICES: Final = 4
MAX_RECORDS: Final = 16
"""Limits of records per answer: each costs queries, and each address an INVITE."""

_SRV: Final = {
    Transport.UDP: "_sip._udp",
    Transport.TCP: "_sip._tcp",
    Transport.TLS: "_sips._tcp",
}
_NAPTR: Final = {
    b"sip+d2u": Transport.UDP,
    b"sip+d2t": Transport.TCP,
    b"sips+d2t": Transport.TLS,
}
"""Supported services; SCTP and WebSocket are ignored."""


class Server(NamedTuple):
    """An SRV record with the addresses of its target."""

    priority: int
    weight: int
    addresses: tuple[Address, ...]

    # Read by `weighted_processing_order`.
    def _processing_priority(self) -> int:
        return self.priority

    def _processing_weight(self) -> int:
        return self.weight


def in_order(servers: Sequence[Server]) -> list[Address]:
    """The addresses by priority, then randomly by weight (RFC 2782)."""
    ordered: list[Server] = weighted_processing_order(servers)  # type: ignore[no-untyped-call]
    return [each for server in ordered for each in server.addresses]


Groups = tuple[tuple[Server, ...], ...]
"""Servers by transport, preferred first."""


class _Found(NamedTuple):
    groups: Groups
    ttl: float


class _CachedTrunk(NamedTuple):
    groups: Groups
    """Empty if DNS has never named any; `fault` is the reason."""
    until: float
    fault: OSError | None = None

    @property
    def addresses(self) -> list[Address]:
        return [each for group in self.groups for server in group for each in server.addresses]


class _CachedHost(NamedTuple):
    address: str
    until: float
    fault: OSError | None = None


SystemLookup = Callable[[str, int], Awaitable[Sequence[str]]]
"""Resolves a host in an address family without DNS, such as from /etc/hosts."""


class Resolver:
    """Resolves trunks and media hosts, in one address family.

    `clock` is in seconds and monotonic. `resolver` is the system's by default.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        ipv6: bool = False,
        resolver: dns.asyncresolver.Resolver | None = None,
        system_lookup: SystemLookup | None = None,
    ) -> None:
        self._clock = clock
        self._family = socket.AF_INET6 if ipv6 else socket.AF_INET
        self._resolver = resolver
        self._system_lookup = system_lookup or look_up_locally
        self._known: dict[Trunk, _CachedTrunk] = {}
        self._refreshing: SharedTasks[_CachedTrunk] = SharedTasks()
        self._hosts: dict[str, _CachedHost] = {}
        self._looking_up: SharedTasks[_CachedHost] = SharedTasks()
        self._seen: dict[str, float] = {}

    async def find(self, trunk: Trunk) -> list[Address]:
        """The addresses of `trunk`, best first; equal ones in a new random order each time.

        Raises OSError if it has none, and never had.
        """
        if trunk.address is not None:
            self._note([trunk.address])
            return [trunk.address]
        known = self._known.get(trunk)
        if known is None or self._clock() >= known.until:
            # Concurrent calls share one query. `Trunk.text` omits what decides about SRV.
            known = await self._refreshing.get(repr(trunk), lambda: self._refresh(trunk))
        if known.fault is not None:
            raise known.fault
        ordered = [each for group in known.groups for each in in_order(group)]
        return list(dict.fromkeys(ordered))

    async def find_host(self, host: str) -> str:
        """An IP address of a media host. Raises OSError without one, or after `QUERY_TIMEOUT`."""
        known = self._hosts.get(host)
        if known is None or self._clock() >= known.until:
            if host not in self._looking_up and len(self._looking_up) >= MAX_HOSTS:
                raise OSError("too many hosts are being looked up")
            known = await self._looking_up.get(host, lambda: self._look_up(host))
        if known.fault is not None:
            raise known.fault
        return known.address

    async def _look_up(self, host: str) -> _CachedHost:
        address, kept, fault = "", SHORTEST_KEPT, None
        try:
            async with asyncio.timeout(QUERY_TIMEOUT):
                found, ttl = await self._addresses(host)
            address, kept = _unicast(host, found), min(max(ttl, SHORTEST_KEPT), LONGEST_KEPT)
        except TimeoutError:
            fault = OSError(f"DNS does not say what {host} is within {QUERY_TIMEOUT:g} s")
        except OSError as failed:
            fault = failed
        if len(self._hosts) >= MAX_HOSTS:
            del self._hosts[next(iter(self._hosts))]
        known = self._hosts[host] = _CachedHost(address, self._clock() + kept, fault)
        return known

    def known(self, trunk: Trunk) -> list[Address] | None:
        """The cached addresses; None before the first `find`."""
        if trunk.address is not None:
            return [trunk.address]
        known = self._known.get(trunk)
        return None if known is None else known.addresses

    def is_of_trunk(self, host: str) -> bool:
        """Whether `host` was a result of `find` within `TRUNK_FOR` seconds, or is cached."""
        seen = self._seen.get(host)
        if seen is None:
            return False
        return self._clock() - seen < TRUNK_FOR or any(
            address.host == host for known in self._known.values() for address in known.addresses
        )

    def _note(self, addresses: Sequence[Address]) -> None:
        now = self._clock()
        for address in addresses:
            self._seen.pop(address.host, None)  # keep insertion order by time
            self._seen[address.host] = now
        while len(self._seen) > MAX_SEEN:
            del self._seen[next(iter(self._seen))]

    async def _refresh(self, trunk: Trunk) -> _CachedTrunk:
        old = self._known.get(trunk)
        try:
            found = await self._ask(trunk)
        except OSError as fault:
            log.warning("dns_failed", host=trunk.host, fault=str(fault))
            if old is not None and old.groups:
                known = _CachedTrunk(old.groups, self._clock() + KEPT_AFTER_FAILURE)
            else:
                known = _CachedTrunk((), self._clock() + SHORTEST_KEPT, fault)
            self._known[trunk] = known
            return known
        kept = min(max(found.ttl, SHORTEST_KEPT), LONGEST_KEPT)
        known = self._known[trunk] = _CachedTrunk(found.groups, self._clock() + kept)
        self._note(known.addresses)
        log.debug("dns_found", host=trunk.host, addresses=[shown(each) for each in known.addresses])
        return known

    async def _ask(self, trunk: Trunk) -> _Found:
        """Query DNS. Raises OSError."""
        if trunk.port is None:
            found = await self._by_service(trunk)
            if found is not None:
                return found
        addresses, ttl = await self._addresses(trunk.host)
        return _Found(((Server(0, 0, tuple(trunk.at(each) for each in addresses)),),), ttl)

    async def _by_service(self, trunk: Trunk) -> _Found | None:
        """The servers by SRV records, for each transport of NAPTR records; None without any."""
        services, ttl = ([], LONGEST_KEPT) if trunk.transport else await self._naptr(trunk.host)
        groups: list[tuple[Server, ...]] = []
        fault: OSError | None = None
        for name, transport in services:
            try:
                servers, srv_ttl = await self._servers(trunk, name, transport)
            except OSError as failed:
                fault = failed
                continue  # another transport may work
            ttl = min(ttl, srv_ttl)
            if servers:
                groups.append(servers)
        if groups:
            return _Found(tuple(groups), ttl)
        if fault is not None:
            raise fault
        # No NAPTR records (§4.1): the first transport with SRV records is used.
        for transport in [trunk.transport] if trunk.transport else [Transport.UDP, Transport.TCP]:
            name = f"{_SRV[transport]}.{trunk.host}"
            servers, srv_ttl = await self._servers(trunk, name, transport)
            if servers:
                return _Found((servers,), min(ttl, srv_ttl))
        return None

    async def _naptr(self, host: str) -> tuple[list[tuple[str, Transport]], float]:
        """The SRV names and transports of the host's NAPTR records, best first."""
        records, ttl = await self._records(host, "NAPTR")
        usable = [
            record
            for record in records
            if record.service.lower() in _NAPTR and record.flags.lower() == b"s"
        ]
        usable.sort(key=lambda record: (record.order, record.preference))
        return [
            (record.replacement.to_text(omit_final_dot=True), _NAPTR[record.service.lower()])
            for record in usable[:MAX_SERVICES]
        ], ttl

    async def _servers(
        self, trunk: Trunk, name: str, transport: Transport
    ) -> tuple[tuple[Server, ...], float]:
        """The servers of an SRV name; none without records."""
        records, least = await self._records(name, "SRV")
        # A target of "." means that there is no such service (RFC 2782).
        records = [record for record in records if record.target != dns.name.root]
        records = sorted(records, key=lambda record: record.priority)[:MAX_RECORDS]
        names = [record.target.to_text(omit_final_dot=True) for record in records]
        answers = await asyncio.gather(
            *(self._addresses(name) for name in names), return_exceptions=True
        )
        servers = []
        for record, answer in zip(records, answers, strict=True):
            if isinstance(answer, OSError):
                continue  # others may have addresses
            if isinstance(answer, BaseException):
                raise answer
            addresses, ttl = answer
            least = min(least, ttl)
            places = tuple(trunk.at(each, int(record.port), transport) for each in addresses)
            servers.append(Server(record.priority, record.weight, places))
        if records and not servers:
            raise OSError(f"none of the servers that DNS names for {trunk.host} has an address")
        return tuple(servers), least

    async def _addresses(self, host: str) -> tuple[list[str], float]:
        kind = "AAAA" if self._family == socket.AF_INET6 else "A"
        fault: OSError | None = None
        records: list[Any] = []
        ttl = LONGEST_KEPT
        try:
            records, ttl = await self._records(host, kind)
        except OSError as failed:
            fault = failed
        if records:
            return [record.address for record in records[:MAX_RECORDS]], ttl
        # Names such as localhost are in /etc/hosts, not in DNS.
        local = await self._system_lookup(host, self._family)
        if local:
            return list(local)[:MAX_RECORDS], 60.0
        raise fault or OSError(f"{host} has no {kind} record in DNS")

    async def _records(self, name: str, kind: str) -> tuple[list[Any], float]:
        """The records of a name, possibly none. Raises OSError if the query fails."""
        try:
            if self._resolver is None:
                self._resolver = dns.asyncresolver.Resolver()
            answer = await self._resolver.resolve(
                name, kind, lifetime=QUERY_TIMEOUT, raise_on_no_answer=False
            )
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return [], LONGEST_KEPT
        except dns.exception.DNSException as fault:
            raise OSError(f"DNS does not say what {name} is ({type(fault).__name__})") from fault
        if answer.rrset is None:
            return [], LONGEST_KEPT
        return list(answer.rrset), float(answer.rrset.ttl)


def _unicast(host: str, addresses: Sequence[str]) -> str:
    """The first address that media can be sent to. Raises OSError without one."""
    for each in addresses:
        found = ipaddress.ip_address(each)
        if not found.is_multicast and not found.is_unspecified:
            return each
    raise OSError(f"{host} has no address that can be sent to")


async def look_up_locally(host: str, family: int) -> Sequence[str]:
    """The result of the system's resolver; empty on failure."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, None, family=family, type=socket.SOCK_DGRAM)
    except OSError:
        return []
    return list(dict.fromkeys(str(each[4][0]) for each in found))
