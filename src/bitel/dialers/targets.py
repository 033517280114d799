"""Where a trunk's requests go (RFC 3263 §4): NAPTR, SRV, then addresses; what was found is kept.

An IP address is itself. A host with a port is looked up as it is. Any other is asked for NAPTR
records, whose `SIP+D2U` ones name SRV records; without them for `_sip._udp` SRV records; without
those for its address, at port 5060.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import dns.asyncresolver
import dns.exception
import dns.resolver
import structlog

from bitel.dialers.trunk import SIP_PORT, Trunk, shown
from bitel.sip.grammar import Address

log = structlog.get_logger(__name__)

SHORTEST_KEPT: Final = 5.0
LONGEST_KEPT: Final = 300.0
"""Seconds for which an answer is kept, whatever its TTL says."""
KEPT_AFTER_FAILURE: Final = 15.0
"""Seconds after which DNS is asked again that did not answer, while old addresses serve on."""
PATIENCE: Final = 3.0
"""Seconds that DNS may take for one question."""
MOST_RECORDS: Final = 16
"""Records of one answer that are looked at: each costs questions, and each address an INVITE."""


@dataclass(frozen=True, slots=True)
class Server:
    """An SRV record with its target's addresses; the lowest priority is tried first (RFC 2782)."""

    priority: int
    weight: int
    addresses: tuple[Address, ...]


@dataclass(frozen=True, slots=True)
class _Known:
    servers: tuple[Server, ...]
    """Empty where DNS has never named any; `fault` then says why."""
    until: float
    fault: OSError | None = None


SystemLookup = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses that this machine's own files know for a host, in an address family."""


class Targets:
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

    async def find(self, trunk: Trunk) -> list[Address]:
        """The addresses of `trunk`, best first; the draw among equals is made anew each time.

        Raises OSError where it has none, and never had.
        """
        if trunk.numeric:
            return [(trunk.host, trunk.port or SIP_PORT)]
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
        return list(dict.fromkeys(in_order(known.servers, self._rng)))

    def known(self, trunk: Trunk) -> list[Address] | None:
        """The addresses found last, without asking anybody; None before the first `find`."""
        if trunk.numeric:
            return [(trunk.host, trunk.port or SIP_PORT)]
        known = self._known.get(trunk)
        if known is None:
            return None
        return [each for server in known.servers for each in server.addresses]

    async def _refresh(self, trunk: Trunk) -> None:
        try:
            servers, ttl = await self._ask(trunk)
        except OSError as fault:
            log.warning("dns_failed", host=trunk.host, fault=str(fault))
            old = self._known.get(trunk)
            if old is not None and old.servers:
                self._known[trunk] = _Known(old.servers, self._clock() + KEPT_AFTER_FAILURE)
            else:
                self._known[trunk] = _Known((), self._clock() + SHORTEST_KEPT, fault)
            return
        kept = min(max(ttl, SHORTEST_KEPT), LONGEST_KEPT)
        self._known[trunk] = _Known(servers, self._clock() + kept)
        found = [shown(each) for server in servers for each in server.addresses]
        log.debug("dns_found", host=trunk.host, addresses=found)

    async def _ask(self, trunk: Trunk) -> tuple[tuple[Server, ...], float]:
        """What DNS says now, and for how many seconds. Raises OSError where it says nothing."""
        if trunk.port is None:
            name, ttl = await self._service_name(trunk.host)
            records, srv_ttl = await self._records(name, "SRV")
            if records:
                servers, host_ttl = await self._servers(trunk.host, records)
                return servers, min(ttl, srv_ttl, host_ttl)
        addresses, ttl = await self._addresses(trunk.host)
        port = trunk.port or SIP_PORT
        return (Server(0, 0, tuple((address, port) for address in addresses)),), ttl

    async def _service_name(self, host: str) -> tuple[str, float]:
        """The name of the SRV records for SIP over UDP."""
        records, ttl = await self._records(host, "NAPTR")
        usable = [
            record
            for record in records
            if record.service.lower() == b"sip+d2u" and record.flags.lower() == b"s"
        ]
        if not usable:
            return f"_sip._udp.{host}", ttl
        best = min(usable, key=lambda record: (record.order, record.preference))
        return best.replacement.to_text(omit_final_dot=True), ttl

    async def _servers(self, host: str, records: list[Any]) -> tuple[tuple[Server, ...], float]:
        records = sorted(records, key=lambda record: record.priority)[:MOST_RECORDS]
        names = [record.target.to_text(omit_final_dot=True) for record in records]
        answers = await asyncio.gather(
            *(self._addresses(name) for name in names), return_exceptions=True
        )
        servers, least = [], LONGEST_KEPT
        for record, answer in zip(records, answers, strict=True):
            if isinstance(answer, OSError):
                continue  # its neighbours may still have addresses
            if isinstance(answer, BaseException):
                raise answer
            addresses, ttl = answer
            least = min(least, ttl)
            places = tuple((address, int(record.port)) for address in addresses)
            servers.append(Server(record.priority, record.weight, places))
        if not servers:
            raise OSError(f"none of the servers that DNS names for {host} has an address")
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
        """The records of that name, none where there are none; OSError where nobody knows."""
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


async def look_up_locally(host: str, family: int) -> Sequence[str]:
    """What the system's own resolver knows; nothing where it knows nothing."""
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, None, family=family, type=socket.SOCK_DGRAM)
    except OSError:
        return []
    return list(dict.fromkeys(str(each[4][0]) for each in found))


def in_order(servers: Sequence[Server], rng: random.Random) -> list[Address]:
    """The addresses in the order in which RFC 2782 has them tried.

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
