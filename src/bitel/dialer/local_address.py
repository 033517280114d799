"""Our own IP address in Via, Contact and SDP, and a warning where NAT changes it on the way."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

from bitel.sip import RequestDone
from bitel.sip.grammar import Address, GrammarError, host_in_uri, parameter, split_list

log = structlog.get_logger(__name__)

EVERYWHERE: Final = frozenset(("0.0.0.0", "::"))
"""Wildcard addresses, which bind every address of this machine."""
CHECK_INTERVAL: Final = 30.0
"""Seconds between two checks of our own address."""


class LocalAddress:
    """Our address is `public`, else the one that is `bound`; if that is a wildcard, the address
    that packets to the carrier leave from. `toward` gives an address of the carrier."""

    def __init__(self, bound: str, public: str, toward: Callable[[], Awaitable[Address]]) -> None:
        self._fixed = public or (bound if bound not in EVERYWHERE else "")
        self._public = bool(public)
        self._toward = toward
        self._hinted = False
        self.address = self._fixed
        """The IP address found last; "" before the first `find`."""

    async def find(self) -> str:
        """Our address now. Raises OSError if no carrier has an address or a network route."""
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
                continue  # no network for the moment, so no new address either
            if now != before:
                log.info("address_changed", before=before, now=now)
                moved(now)

    def compare(self, done: RequestDone) -> None:
        """Warn once if the carrier sees another address than Via says: NAT (RFC 3581)."""
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
    """The local address that packets to `destination` leave from; nothing is sent to find out."""
    family = socket.AF_INET6 if ":" in destination[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(destination[:2])
        return str(probe.getsockname()[0])


def where_seen(done: RequestDone) -> tuple[str, str]:
    """The sent-by of our Via, and `received` and `rport` of the answer; "" twice without these.

    The port of a TCP or TLS connection is not ours to be called at, and is left out.
    """
    try:
        via = split_list(next(value for name, value in done.headers if name == "via"))[0]
    except (StopIteration, IndexError, GrammarError):
        return "", ""
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
