"""A trunk as named in the settings, and the text forms of its addresses."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from dataclasses import dataclass, field

from bitel.sip.grammar import (
    DEFAULT_PORT,
    DEFAULT_PORTS,
    Address,
    GrammarError,
    Transport,
    host_in_uri,
    parse_uri,
    transport_parameter,
)

_PHONE = re.compile(r"\+?[0-9](?:[0-9.\-]*[0-9])?")


@dataclass(frozen=True, slots=True)
class Trunk:
    """One carrier: `sip:HOST[:PORT][;transport=udp|tcp|tls]`, or `sips:`, which means TLS.

    A missing port or transport is looked up in DNS (RFC 3263 §4). The Request-URI never has
    `sips:`, because the path behind the carrier is unknown.
    """

    host: str
    port: int | None = None
    transport: Transport | None = None
    address: Address | None = field(init=False, repr=False, compare=False)
    """Its address if the host is an IP address, else None."""
    authority: str = field(init=False, repr=False, compare=False)
    """Host and port as written in URIs."""

    def __post_init__(self) -> None:
        port = "" if self.port in {None, DEFAULT_PORT} else f":{self.port}"
        address = None
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(self.host)
            address = self.at(self.host)
        object.__setattr__(self, "address", address)
        object.__setattr__(self, "authority", f"{host_in_uri(self.host)}{port}")

    @classmethod
    def parse(cls, text: str) -> Trunk:
        """Parse a trunk or outbound proxy, a SIP URI without a user. Raises ValueError.

        Parameters other than `transport` are ignored; the settings refuse them.
        """
        try:
            uri = parse_uri(text)
        except GrammarError as fault:
            raise ValueError(f"{text!r} can't be a trunk: {fault}") from None
        named = {name.lower(): value for name, value in uri.parameters.items()}.get("transport")
        try:
            transport = None if named is None else Transport(named.upper())
        except ValueError:
            raise ValueError(f"{text!r} can't be a trunk: use transport=udp, tcp or tls") from None
        if uri.scheme == "sips":
            if transport is Transport.UDP:
                raise ValueError(f"{text!r} can't be a trunk: sips: is never spoken over UDP")
            transport = Transport.TLS
        elif uri.scheme != "sip":
            raise ValueError(f"{text!r} can't be a trunk: it is neither sip: nor sips:")
        host = uri.host.removeprefix("[").removesuffix("]")
        with contextlib.suppress(ValueError):
            host = str(ipaddress.ip_address(host))  # the canonical form
        return cls(host, uri.port, transport)

    def at(self, host: str, port: int | None = None, transport: Transport | None = None) -> Address:
        """An address of the carrier; port and transport default to those of the settings.

        The certificate of a TLS peer must match the host in the settings, because DNS may be forged
        (RFC 5922 §4).
        """
        transport = transport or self.transport or Transport.UDP
        domain = self.host if transport is Transport.TLS else ""
        return Address(host, port or self.port or DEFAULT_PORTS[transport], transport, domain)

    def uri_for(self, number: str, *, user_phone: bool = False) -> str:
        """The Request-URI of a call to `number`.

        With `user_phone`, `;user=phone` is added to a telephone number (RFC 3261 §19.1.1).
        """
        return f"sip:{number}@{self.authority}{phone_parameter(number, user_phone)}"

    @property
    def route(self) -> str:
        """The Route value for this host as a loose router (RFC 3261 §8.1.2)."""
        return f"<{self.text};lr>"

    @property
    def uri(self) -> str:
        """The URI of the carrier, for REGISTER."""
        return f"sip:{self.authority}"

    @property
    def text(self) -> str:
        """The trunk in the form of the settings."""
        return self.uri + (f";transport={self.transport.lower()}" if self.transport else "")


def phone_parameter(user: str, user_phone: bool) -> str:
    """`;user=phone` if `user_phone` and `user` is a telephone number, else ""."""
    return ";user=phone" if user_phone and _PHONE.fullmatch(user) else ""


def shown(address: Address) -> str:
    """`HOST:PORT` for logs; with the transport if it is not UDP: `HOST:PORT/TLS`."""
    place = f"{host_in_uri(address.host)}:{address.port}"
    return place if address.transport is Transport.UDP else f"{place}/{address.transport}"


def uri_of(address: Address) -> str:
    """The URI of an address, without a user."""
    parameter = transport_parameter(address.transport)
    return f"sip:{host_in_uri(address.host)}:{address.port}{parameter}"
