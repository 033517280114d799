"""Where events may be sent: which URLs, and which addresses behind their names.

A webhook makes this service send a request where somebody else says. So that this can't reach what
only this machine or its network can, the address itself is judged, whatever name or notation
led to it; `connecting` does so for the very address that it connects to.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

import httpx

from bitel.errors import InvalidRequestError
from bitel.ip_addresses import embedded_ipv4, special_purpose

LONGEST_URL: Final = 2048
"""Characters."""

_LONGEST_NAME: Final = 253
_NAME: Final = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?")
_LOCAL_NAMES: Final = ("localhost", "localhost.")
_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that events may be posted to, taken apart."""

    scheme: str
    host: str
    """A name in ASCII (internationalised ones in their `xn--` form) or an address."""
    port: int
    path: str
    """With its query; at least `/`."""

    @property
    def host_header(self) -> str:
        """What the Host header says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def parse(url: str) -> Target:
    """The target that `url` names. Raises InvalidRequestError for one that can't be."""
    try:
        if len(url) > LONGEST_URL:
            raise _wrong(f"has at most {LONGEST_URL} characters")
        parts = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        raise _wrong("can't be read; write it as in https://example.com/calls") from None
    if parts.scheme not in _PORTS:
        raise _wrong("must begin with http:// or https://")
    if parts.userinfo:
        raise _wrong("holds a user name or password; receivers check the signature instead")
    host = parts.raw_host.decode("ascii")
    if not (":" in host or _NAME.fullmatch(host)) or "%" in host or len(host) > _LONGEST_NAME:
        raise _wrong("must name a host, as in https://example.com/calls")
    port = _PORTS[parts.scheme] if parts.port is None else parts.port
    if not 0 < port < 65_536:
        raise _wrong("names a port that is not within 1 and 65535")
    return Target(parts.scheme, host, port, parts.raw_path.decode("ascii"))


def check(url: str, *, allow_private: bool) -> None:
    """Raise InvalidRequestError for a URL that surely can't be delivered to.

    What a name stands for is judged when it is connected to, not here.
    """
    address = _written_address(parse(url).host)
    why = None if address is None or allow_private else refusal(address)
    if why is not None:
        raise InvalidRequestError(
            f"the webhook URL names an address that is not public: {why}; "
            "webhook_allow_private = true in the settings allows it"
        )


def refusal(address: IPv4Address | IPv6Address) -> str | None:
    """Why nothing may be sent to `address`, in a few words; None if it is a public one.

    An IPv4 address inside an IPv6 one (mapped, 6to4, NAT64) is what counts.
    """
    block = special_purpose(address)
    if block is None:
        return None
    inner = embedded_ipv4(address)
    return f"{address} is {block.kind} address" + (f" ({inner})" if inner else "")


def _written_address(host: str) -> IPv4Address | IPv6Address | None:
    if host in _LOCAL_NAMES:
        return IPv4Address("127.0.0.1")
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        pass
    try:
        return IPv4Address(socket.inet_aton(host))  # 127.1, 2130706433, 0x7f.1
    except OSError:
        return None


def _wrong(why: str) -> InvalidRequestError:
    return InvalidRequestError(f"the webhook URL {why}")
