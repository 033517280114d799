"""A trunk's address as the settings write it, and numbers in the form that its carrier wants."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sipmessage import URI

from bitel.calls.numbers import national

NumberFormat = Literal["e164", "digits", "national"]

SIP_PORT = 5060


@dataclass(frozen=True, slots=True)
class Trunk:
    """One address of a carrier, `sip:HOST[:PORT]` with its parameters."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Trunk:
        """The trunk that `text`, a SIP URI without a user, names. Raises ValueError."""
        uri = URI.parse(text)
        return cls(uri.host.removeprefix("[").removesuffix("]"), uri.port or SIP_PORT)

    def uri_for(self, number: str) -> str:
        """The Request-URI of a call to `number`, as the carrier writes it."""
        port = "" if self.port == SIP_PORT else f":{self.port}"
        return f"sip:{number}@{bracketed(self.host)}{port}"


def bracketed(host: str) -> str:
    """A host as URIs write it: an IPv6 address in brackets, all else as it is."""
    return f"[{host}]" if ":" in host else host


def as_dialled(e164: str, form: NumberFormat) -> str:
    """`+98912…` in the form a carrier wants: as it is, its digits only, or national (`0912…`)."""
    if form == "e164":
        return e164
    if form == "digits":
        return e164.removeprefix("+")
    return national(e164)


class Resolver:
    """Turns host names into addresses, and remembers each for a minute.

    `clock` is in seconds and never goes back.
    """

    KEPT = 60.0

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._known: dict[Trunk, tuple[float, tuple[str, int]]] = {}

    async def resolve(self, trunk: Trunk) -> tuple[str, int]:
        """An address of `trunk`. Raises OSError when its name has none."""
        now = self._clock()
        known = self._known.get(trunk)
        if known and now - known[0] < self.KEPT:
            return known[1]
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(trunk.host, trunk.port, type=socket.SOCK_DGRAM)
        address = found[0][4][0], trunk.port
        self._known[trunk] = now, (str(address[0]), address[1])
        return self._known[trunk][1]


def address_toward(destination: tuple[str, int]) -> str:
    """The local address that packets to `destination` leave from; nothing is sent to find out."""
    family = socket.AF_INET6 if ":" in destination[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(destination)
        return str(probe.getsockname()[0])
