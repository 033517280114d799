"""Our IP address in Via, Contact and SDP, and detection of NAT."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from bitel.sip import RequestDone
from bitel.sip.grammar import Address, host_in_uri, parameter, split_list

log = structlog.get_logger(__name__)

EVERYWHERE: Final = frozenset(("0.0.0.0", "::"))
"""Wildcard addresses."""
CHECK_INTERVAL: Final = 30.0
"""Seconds between checks of our address."""


class LocalAddress:
    """Our address: `public`, else `bound`; if that is a wildcard, the source address of packets to
    the carrier. `toward` gives an address of the carrier."""

    def __init__(self, bound: str, public: str, toward: Callable[[], Awaitable[Address]]) -> None:
        self._fixed = public or (bound if bound not in EVERYWHERE else "")
        self._public = bool(public)
        self._toward = toward
        self._hinted = False
        self.address = self._fixed
        """The last result of `find`; "" before."""

    async def find(self) -> str:
        """Our current address. Raises OSError if no carrier has an address or a network route."""
        if not self._fixed:
            self.address = address_toward(await self._toward())
        return self.address

    async def follow(self, moved: Callable[[str], None]) -> None:
        """Call `moved` with each new address, until cancelled."""
        while not self._fixed:
            await asyncio.sleep(CHECK_INTERVAL)
            before = self.address
            try:
                now = await self.find()
            except OSError:
                continue  # no network at the moment
            if now != before:
                log.info("address_changed", before=before, now=now)
                moved(now)

    def compare(self, done: RequestDone) -> None:
        """Log a warning, once, if the carrier sees another address than that in Via (RFC 3581)."""
        if self._public or self._hinted:
            return
        says, sees = where_seen(done)
        if says and says != sees:
            self._hinted = True
            log.warning(
                "carrier_sees_another_address",
                we_say=says,
                carrier_sees=sees,
                why="there is NAT on the way; set public_address, or it may send us no audio",
            )


def address_toward(destination: Address) -> str:
    """The local source address of packets to `destination`; sends nothing."""
    family = socket.AF_INET6 if ":" in destination[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(destination[:2])
        return str(probe.getsockname()[0])


def where_seen(done: RequestDone) -> tuple[str, str]:
    """The sent-by of our Via, and `received` and `rport` of the response; both "" without these.

    The source port of a TCP or TLS connection is omitted.
    """
    via = (split_list(done.header("via")) or [""])[0]
    sent, _, parameters = via.partition(";")
    protocol, _, says = sent.rpartition(" ")
    received = parameter(f";{parameters}", "received")
    port = parameter(f";{parameters}", "rport")
    if not received and not port:
        return "", ""
    host, _, own_port = says.rpartition(":")
    seen_host = host_in_uri((received or host).strip("[]"))
    if not protocol.upper().endswith("UDP"):
        return host, seen_host
    return says, f"{seen_host}:{port or own_port}"
