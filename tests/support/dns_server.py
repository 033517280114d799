"""A tiny DNS server on a free UDP port of 127.0.0.1, for resolvers under test."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import dns.asyncresolver
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

HOST = "127.0.0.1"


@dataclass
class Zone:
    """The records that are served, and what was asked for. `dumb`: questions stay unanswered."""

    ttl: int = 60
    records: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    dumb: bool = False
    broken: bool = False
    """Every question is answered with SERVFAIL."""
    port: int = 0

    def add(self, name: str, kind: str, *values: str) -> None:
        """Serve these records, in master file form, instead of any of that name and kind."""
        self.records[name, kind] = list(values)

    def resolver(self) -> dns.asyncresolver.Resolver:
        """One that asks this server and nobody else."""
        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.nameservers = [HOST]
        resolver.port = self.port
        resolver.timeout = 0.2
        return resolver

    def answer(self, data: bytes) -> bytes | None:
        """The answer to a question, None where there shall be none."""
        query = dns.message.from_wire(data)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True)
        kind = dns.rdatatype.to_text(question.rdtype)
        self.asked[name, kind] += 1
        if self.dumb:
            return None
        response = dns.message.make_response(query, recursion_available=True)
        values = self.records.get((name, kind), [])
        if self.broken:
            response.set_rcode(dns.rcode.SERVFAIL)
        elif values:
            response.answer.append(
                dns.rrset.from_text(question.name, self.ttl, "IN", kind, *values)
            )
        elif not any(known == name for known, _ in self.records):
            response.set_rcode(dns.rcode.NXDOMAIN)
        return response.to_wire()


class _Server(asyncio.DatagramProtocol):
    def __init__(self, zone: Zone) -> None:
        self._zone = zone
        self._transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        try:
            answer = self._zone.answer(data)
        except dns.exception.DNSException:
            return  # no question
        if answer is not None:
            self._transport.sendto(answer, addr)


@asynccontextmanager
async def dns_server() -> AsyncIterator[Zone]:
    """An empty zone, served inside the block."""
    zone = Zone()
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: _Server(zone), local_addr=(HOST, 0)
    )
    zone.port = transport.get_extra_info("sockname")[1]
    try:
        yield zone
    finally:
        transport.close()
