"""Where a trunk's requests go (RFC 3263 §4): NAPTR, SRV, then addresses; what was found is kept.

An IP address is itself. A host with a port is looked up as it is. One with a transport is asked
for the SRV records of that transport. Any other is asked for NAPTR records, which name transports
and their SRV records, the carrier's favourite first; without them for SRV records of UDP, then of
TCP. Where there are none of all these, the host's own address serves, at the usual port.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import dns.asyncresolver
import dns.exception
import dns.name
import dns.resolver
import structlog

from bitel.dialer.srv import Server, in_order
from bitel.dialer.trunk import Trunk, shown
from bitel.sip.grammar import Address, Transport

log = structlog.get_logger(__name__)

SHORTEST_KEPT: Final = 5.0
LONGEST_KEPT: Final = 300.0
"""Seconds for which an answer is kept, whatever its TTL says."""
KEPT_AFTER_FAILURE: Final = 15.0
"""Seconds after which DNS is asked again that did not answer, while old addresses serve on."""
PATIENCE: Final = 3.0
"""Seconds that DNS may take for one question."""
MOST_HOSTS: Final = 1000
"""Hosts of media in the cache, and concurrent look-ups of them, since far ends choose them."""
TRUNK_FOR: Final = 24 * 3600.0
"""Seconds for which an address counts as a trunk's after DNS has named it last: calls that it
carries may still run."""
MOST_SEEN: Final = 4096
MOST_SERVICES: Final = 4
MOST_RECORDS: Final = 16
"""Records of one answer that are looked at: each costs questions, and each address an INVITE."""

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
"""The services that we can speak; SCTP and WebSocket are passed over."""


@dataclass(frozen=True, slots=True)
class _Service:
    """Where SRV records stand for a transport."""

    name: str
    transport: Transport


@dataclass(frozen=True, slots=True)
class _Found:
    """Servers, those of the best transport first, and for how many seconds that may be kept."""

    groups: tuple[tuple[Server, ...], ...]
    ttl: float


@dataclass(frozen=True, slots=True)
class _Known:
    groups: tuple[tuple[Server, ...], ...]
    """Empty where DNS has never named any; `fault` then says why."""
    until: float
    fault: OSError | None = None

    @property
    def addresses(self) -> list[Address]:
        return [each for group in self.groups for server in group for each in server.addresses]


class _Host(NamedTuple):
    """A cached look-up of a host of media: its address, or the error."""

    address: str
    until: float
    fault: OSError | None = None


SystemLookup = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses that this machine's own files know for a host, in an address family."""


class Resolver:
    """Finds the addresses of trunks, of one family: what a socket can send to.

    `clock` is in seconds and never goes back. `resolver` is the system's by default; `rng` draws
    among SRV records by weight.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        ipv6: bool = False,
        resolver: dns.asyncresolver.Resolver | None = None,
        rng: random.Random | None = None,
        system_lookup: SystemLookup | None = None,
    ) -> None:
        self._clock = clock
        self._family = socket.AF_INET6 if ipv6 else socket.AF_INET
        self._resolver = resolver
        self._rng = rng or random.Random()
        self._system_lookup = system_lookup or look_up_locally
        self._known: dict[Trunk, _Known] = {}
        self._asking: dict[Trunk, asyncio.Task[None]] = {}
        self._hosts: dict[str, _Host] = {}
        self._seen: dict[str, float] = {}
        self._looking_up: dict[str, asyncio.Task[_Host]] = {}

    async def find(self, trunk: Trunk) -> list[Address]:
        """The addresses of `trunk`, best first; the draw among equals is made anew each time.

        Raises OSError where it has none, and never had.
        """
        if trunk.address is not None:
            self._note([trunk.address])
            return [trunk.address]
        known = self._known.get(trunk)
        if known is None or self._clock() >= known.until:
            # Calls that want the same name at once share one question.
            if trunk not in self._asking:
                self._asking[trunk] = asyncio.create_task(self._refresh(trunk))
                self._asking[trunk].add_done_callback(lambda _: self._asking.pop(trunk))
            await asyncio.shield(self._asking[trunk])
            known = self._known[trunk]
        if known.fault is not None:
            raise known.fault
        ordered = [each for group in known.groups for each in in_order(group, self._rng)]
        return list(dict.fromkeys(ordered))

    async def find_host(self, host: str) -> str:
        """An IP address of `host`, a domain name, for media.

        Raises OSError where it has none, or none is known after `PATIENCE`.
        """
        known = self._hosts.get(host)
        if known is None or self._clock() >= known.until:
            if host not in self._looking_up:
                if len(self._looking_up) >= MOST_HOSTS:
                    raise OSError("too many hosts are being looked up")
                self._looking_up[host] = asyncio.create_task(self._look_up(host))
                self._looking_up[host].add_done_callback(lambda _: self._looking_up.pop(host))
            known = await asyncio.shield(self._looking_up[host])
        if known.fault is not None:
            raise known.fault
        return known.address

    async def _look_up(self, host: str) -> _Host:
        address, kept, fault = "", SHORTEST_KEPT, None
        try:
            async with asyncio.timeout(PATIENCE):
                found, ttl = await self._addresses(host)
            address, kept = _unicast(host, found), min(max(ttl, SHORTEST_KEPT), LONGEST_KEPT)
        except TimeoutError:
            fault = OSError(f"DNS does not say what {host} is within {PATIENCE:g} s")
        except OSError as failed:
            fault = failed
        if len(self._hosts) >= MOST_HOSTS:
            del self._hosts[next(iter(self._hosts))]
        known = self._hosts[host] = _Host(address, self._clock() + kept, fault)
        return known

    def known(self, trunk: Trunk) -> list[Address] | None:
        """The addresses found last, without asking anybody; None before the first `find`."""
        if trunk.address is not None:
            return [trunk.address]
        known = self._known.get(trunk)
        return None if known is None else known.addresses

    def is_of_trunk(self, host: str) -> bool:
        """Whether `find` has given an address of `host` within the last `TRUNK_FOR` seconds, or it
        is among those that are known now."""
        seen = self._seen.get(host)
        if seen is None:
            return False
        return self._clock() - seen < TRUNK_FOR or any(
            address.host == host for known in self._known.values() for address in known.addresses
        )

    def _note(self, addresses: Sequence[Address]) -> None:
        now = self._clock()
        for address in addresses:
            self._seen.pop(address.host, None)  # so that the oldest comes first
            self._seen[address.host] = now
        while len(self._seen) > MOST_SEEN:
            del self._seen[next(iter(self._seen))]

    async def _refresh(self, trunk: Trunk) -> None:
        try:
            found = await self._ask(trunk)
        except OSError as fault:
            log.warning("dns_failed", host=trunk.host, fault=str(fault))
            old = self._known.get(trunk)
            if old is not None and old.groups:
                self._known[trunk] = _Known(old.groups, self._clock() + KEPT_AFTER_FAILURE)
            else:
                self._known[trunk] = _Known((), self._clock() + SHORTEST_KEPT, fault)
            return
        kept = min(max(found.ttl, SHORTEST_KEPT), LONGEST_KEPT)
        known = self._known[trunk] = _Known(found.groups, self._clock() + kept)
        self._note(known.addresses)
        log.debug("dns_found", host=trunk.host, addresses=[shown(each) for each in known.addresses])

    async def _ask(self, trunk: Trunk) -> _Found:
        """What DNS says now. Raises OSError where it says nothing."""
        if trunk.port is None:
            found = await self._by_service(trunk)
            if found is not None:
                return found
        addresses, ttl = await self._addresses(trunk.host)
        return _Found(((Server(0, 0, tuple(trunk.at(each) for each in addresses)),),), ttl)

    async def _by_service(self, trunk: Trunk) -> _Found | None:
        """The servers that SRV records name, by every transport that NAPTR records ask for."""
        if trunk.transport is not None:
            return await self._first(trunk, [_usual(trunk.host, trunk.transport)], LONGEST_KEPT)
        services, ttl = await self._naptr(trunk.host)
        groups: list[tuple[Server, ...]] = []
        fault: OSError | None = None
        for service in services:
            try:
                servers, srv_ttl = await self._servers(trunk, service)
            except OSError as failed:
                fault = failed
                continue  # another transport may be in better order
            ttl = min(ttl, srv_ttl)
            if servers:
                groups.append(servers)
        if groups:
            return _Found(tuple(groups), ttl)
        if fault is not None:
            raise fault
        either = [_usual(trunk.host, each) for each in (Transport.UDP, Transport.TCP)]
        return await self._first(trunk, either, ttl)

    async def _first(self, trunk: Trunk, services: list[_Service], ttl: float) -> _Found | None:
        """The servers of the first service that has any."""
        for service in services:
            servers, srv_ttl = await self._servers(trunk, service)
            if servers:
                return _Found((servers,), min(ttl, srv_ttl))
        return None

    async def _naptr(self, host: str) -> tuple[list[_Service], float]:
        """The services that the host's NAPTR records name and we can speak, best first."""
        records, ttl = await self._records(host, "NAPTR")
        usable = [
            record
            for record in records
            if record.service.lower() in _NAPTR and record.flags.lower() == b"s"
        ]
        usable.sort(key=lambda record: (record.order, record.preference))
        return [
            _Service(
                record.replacement.to_text(omit_final_dot=True), _NAPTR[record.service.lower()]
            )
            for record in usable[:MOST_SERVICES]
        ], ttl

    async def _servers(self, trunk: Trunk, service: _Service) -> tuple[tuple[Server, ...], float]:
        """The servers of a service; none where it has no SRV records."""
        records, least = await self._records(service.name, "SRV")
        # A target of "." says that there is no such service (RFC 2782).
        records = [record for record in records if record.target != dns.name.root]
        records = sorted(records, key=lambda record: record.priority)[:MOST_RECORDS]
        names = [record.target.to_text(omit_final_dot=True) for record in records]
        answers = await asyncio.gather(
            *(self._addresses(name) for name in names), return_exceptions=True
        )
        servers = []
        for record, answer in zip(records, answers, strict=True):
            if isinstance(answer, OSError):
                continue  # its neighbours may still have addresses
            if isinstance(answer, BaseException):
                raise answer
            addresses, ttl = answer
            least = min(least, ttl)
            places = tuple(
                trunk.at(address, int(record.port), service.transport) for address in addresses
            )
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
            return [record.address for record in records[:MOST_RECORDS]], ttl
        # Names such as localhost stand in a file of this machine, and not in DNS.
        local = await self._system_lookup(host, self._family)
        if local:
            return list(local)[:MOST_RECORDS], 60.0
        raise fault or OSError(f"{host} has no {kind} record in DNS")

    async def _records(self, name: str, kind: str) -> tuple[list[Any], float]:
        """The records of that name, possibly none; OSError if DNS can't be asked."""
        try:
            if self._resolver is None:
                self._resolver = dns.asyncresolver.Resolver()
            answer = await self._resolver.resolve(
                name, kind, lifetime=PATIENCE, raise_on_no_answer=False
            )
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return [], LONGEST_KEPT
        except dns.exception.DNSException as fault:
            raise OSError(f"DNS does not say what {name} is ({type(fault).__name__})") from fault
        if answer.rrset is None:
            return [], LONGEST_KEPT
        return list(answer.rrset), float(answer.rrset.ttl)


def _unicast(host: str, addresses: Sequence[str]) -> str:
    """The first of the addresses that media can be sent to."""
    for each in addresses:
        found = ipaddress.ip_address(each)
        if not found.is_multicast and not found.is_unspecified:
            return each
    raise OSError(f"{host} has no address that can be sent to")


async def look_up_locally(host: str, family: int) -> Sequence[str]:
    """What the system's own resolver knows; nothing where it knows nothing."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, None, family=family, type=socket.SOCK_DGRAM)
    except OSError:
        return []
    return list(dict.fromkeys(str(each[4][0]) for each in found))


def _usual(host: str, transport: Transport) -> _Service:
    """Where the SRV records of a transport stand unless NAPTR says otherwise (RFC 3263 §4.1)."""
    return _Service(f"{_SRV[transport]}.{host}", transport)
