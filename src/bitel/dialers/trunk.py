"""A trunk's address as the settings write it."""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

from sipmessage import URI

from bitel.sip.grammar import Address

SIP_PORT = 5060
ONLY_UDP = "only UDP is spoken so far"


@dataclass(frozen=True, slots=True)
class Trunk:
    """One carrier, `sip:HOST[:PORT]`. Without a port, SRV records may name one (RFC 3263 §4.2)."""

    host: str
    port: int | None = None

    @classmethod
    def parse(cls, text: str) -> Trunk:
        """The trunk that `text`, a SIP URI without a user, names.

        Raises ValueError for what is no such URI, and for one that asks for another transport
        than UDP.
        """
        uri = URI.parse(text)
        transport = {name.lower(): value for name, value in uri.parameters.items()}.get("transport")
        if uri.scheme != "sip" or (transport or "udp").lower() != "udp":
            raise ValueError(f"{text!r} can't be a trunk: {ONLY_UDP}")
        return cls(uri.host.removeprefix("[").removesuffix("]"), uri.port)

    @property
    def numeric(self) -> bool:
        """Whether the host is an IP address."""
        try:
            ipaddress.ip_address(self.host)
        except ValueError:
            return False
        return True

    @property
    def authority(self) -> str:
        """Host and port as URIs write them."""
        port = "" if self.port in {None, SIP_PORT} else f":{self.port}"
        return f"{bracketed(self.host)}{port}"

    def uri_for(self, number: str) -> str:
        """The Request-URI of a call to `number`, as the carrier writes it."""
        return f"sip:{number}@{self.authority}"

    @property
    def uri(self) -> str:
        """The carrier itself, as REGISTER and OPTIONS name it."""
        return f"sip:{self.authority}"


def bracketed(host: str) -> str:
    """A host as URIs write it: an IPv6 address in brackets, all else as it is."""
    return f"[{host}]" if ":" in host else host


def shown(address: Address) -> str:
    """`HOST:PORT`, as people read it."""
    return f"{bracketed(address[0])}:{address[1]}"


def address_toward(destination: Address) -> str:
    """The local address that packets to `destination` leave from; nothing is sent to find out."""
    family = socket.AF_INET6 if ":" in destination[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(destination)
        return str(probe.getsockname()[0])
