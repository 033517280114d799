"""Grammar of addresses, lists, tags and URIs (RFC 3261 §25.1), parsed in linear time.

Values that are sent back (tags, routes, request URIs) stay text, because serialising a parsed form
could change them. `sipmessage` parses host, port and parameters of a URI.
"""

from __future__ import annotations

import ipaddress
import re
from enum import StrEnum
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote

from sipmessage import URI

HostPort = tuple[str, int]
"""An IP address and a port."""


class Transport(StrEnum):
    """The transport protocol, as written in Via (RFC 3261 §20.42)."""

    UDP = "UDP"
    TCP = "TCP"
    TLS = "TLS"


DEFAULT_PORT = 5060
DEFAULT_PORTS = {Transport.UDP: DEFAULT_PORT, Transport.TCP: DEFAULT_PORT, Transport.TLS: 5061}


class Address(NamedTuple):
    """Source or destination of messages: IP address, port and transport.

    The certificate of a TLS peer must match `domain` (RFC 5922), or `host` if that is empty.
    """

    host: str
    port: int
    transport: Transport = Transport.UDP
    domain: str = ""


MAX_PORT = 65535
MAX_URI_LENGTH = 1024
_USER = re.compile(r"(?<=\Asip:)[A-Za-z0-9+._\-]{1,64}@(?=[^@]*\Z)", re.ASCII)
_TAG = re.compile(r";\s*tag\s*=\s*([^;,\s]+)", re.IGNORECASE)


class GrammarError(ValueError):
    """A syntax error in a header value."""


def split_list(value: str) -> list[str]:
    """Split a header value at commas outside of quotes and angle brackets."""
    if "," not in value:
        return [value.strip()] if value.strip() else []
    if '"' not in value and "<" not in value:
        return [item for part in value.split(",") if (item := part.strip())]
    items: list[str] = []
    start = 0
    quoted = bracketed = escaped = False
    for position, char in enumerate(value):
        if escaped:
            escaped = False
        elif quoted:
            escaped = char == "\\"
            quoted = char != '"'
        elif char == '"':
            quoted = True
        elif char == "<":
            bracketed = True
        elif char == ">":
            bracketed = False
        elif char == "," and not bracketed:
            items.append(value[start:position].strip())
            start = position + 1
    items.append(value[start:].strip())
    return [item for item in items if item]


def split_address(value: str) -> tuple[str, str]:
    """The URI of a From, To, Contact or Route value, and the `;…` parameters after it."""
    start = _end_of_quoted(value) if '"' in value and value.lstrip().startswith('"') else 0
    left = value.find("<", start)
    if left < 0:
        uri, semicolon, parameters = value.strip().partition(";")
        return uri.strip(), semicolon + parameters
    right = value.find(">", left)
    if right < 0:
        raise GrammarError("an address opens with < and never closes")
    return value[left + 1 : right].strip(), value[right + 1 :]


def _end_of_quoted(value: str) -> int:
    """The position after the quoted string that `value` starts with."""
    position = value.index('"') + 1
    while position < len(value):
        if value[position] == "\\":
            position += 1
        elif value[position] == '"':
            return position + 1
        position += 1
    raise GrammarError("a quoted string never closes")


def quoted(text: str) -> str:
    """Text as a quoted string."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def parameter(parameters: str, name: str) -> str | None:
    """A `;name=value` parameter; "" if it has no value, None if it is missing."""
    for part in parameters.split(";"):
        key, _, value = part.partition("=")
        if key.strip().lower() == name:
            return value.strip()
    return None


def tag_of(value: str) -> str:
    """The tag of a From or To header, "" without one (RFC 3261 §19.3)."""
    before, _, last = value.rpartition(">;tag=")
    # Fast path for the usual form.
    if last.isalnum() and "<" in before and ">" not in before and '"' not in before:
        return last
    left = value.find("<")
    right = value.find(">", left)
    if 0 <= left < right and '"' not in value:
        tag = _TAG.search(value, right)
    else:
        tag = _TAG.search(split_address(value)[1])
    return tag[1] if tag else ""


def scheme_of(uri: str) -> str:
    """A URI's scheme in lower case, "" without one."""
    scheme, colon, _ = uri.partition(":")
    return scheme.strip().lower() if colon else ""


def user_of(uri: str) -> str:
    """The unescaped user part of a SIP URI or number of a `tel:` URI; "" without one."""
    rest = uri.partition(":")[2]
    if scheme_of(uri) == "tel":
        return unquote(rest.partition(";")[0])
    userinfo, at, _ = rest.partition("@")
    return unquote(userinfo.partition(":")[0]) if at else ""


def parse_uri(text: str) -> URI:
    """Parse a URI; raises `GrammarError`. A parameter named `self` is dropped."""
    if len(text) > MAX_URI_LENGTH:
        raise GrammarError(f"a URI is longer than {MAX_URI_LENGTH} characters")
    scheme, _, rest = text.partition(":")
    try:
        try:
            return URI.parse(f"{scheme.lower()}:{rest}")
        except TypeError:
            # sipmessage passes parameters as keyword arguments, which can't be named `self`.
            return URI.parse(f"{scheme.lower()}:{_without_self(rest)}")
    except ValueError as error:
        raise GrammarError("a URI is not valid") from error


def _without_self(rest: str) -> str:
    """The text of a URI after its scheme, without parameters named `self`."""
    userinfo, at, place = rest.rpartition("@")
    host, *parameters = place.split(";")
    others = [each for each in parameters if unquote(each.partition("=")[0]).strip() != "self"]
    return userinfo + at + ";".join([host, *others])


def ip_address_of(uri: str, usual: Transport = Transport.UDP) -> Address | None:
    """The address of a URI with an IP address as host; None for a host name or an invalid URI.

    The transport is that of the URI, TLS for `sips`, else `usual`.
    """
    if "@" in uri:
        # Users differ, hosts repeat: the cache key is the URI without its user.
        uri = _USER.sub("", uri, 1)
    return _read_ip_address(uri, usual)


@lru_cache(maxsize=4096)
def _read_ip_address(uri: str, usual: Transport) -> Address | None:
    try:
        parsed = parse_uri(uri)
        host = ip_literal(parsed.host.strip("[]"))
        transport = transport_of(parsed, usual)
    except ValueError:
        return None
    port = DEFAULT_PORTS[transport] if parsed.port is None else parsed.port
    return Address(host, port, transport) if 0 < port <= MAX_PORT else None


def transport_of(uri: URI, usual: Transport) -> Transport:
    """The transport that a SIP URI names, else `usual`. Raises ValueError if unsupported."""
    if uri.scheme == "sips":
        return Transport.TLS
    for name, value in uri.parameters.items():
        if name.lower() == "transport":
            return Transport((value or "").upper())
    return usual


@lru_cache(maxsize=4096)
def ip_literal(text: str) -> str:
    """An IPv4 or IPv6 unicast address in canonical form; raises ValueError otherwise."""
    address = ipaddress.ip_address(text[:64])
    if address.is_multicast or getattr(address, "scope_id", None):
        raise ValueError("a multicast or scoped address can't be sent to")
    return str(address)


def source_network(host: str) -> str:
    """Key for limits per source: an IPv4 address, or the /64 network of an IPv6 address."""
    if ":" not in host:
        return host
    return str(ipaddress.IPv6Address(int(ipaddress.IPv6Address(host)) >> 64 << 64))


def is_loose_router(route_uri: str) -> bool:
    """Whether a route has the `lr` parameter (RFC 3261 §16.12); True if it can't be parsed."""
    parameters = route_uri.partition("?")[0].partition(";")[2]
    return not route_uri or parameter(f";{parameters}", "lr") is not None


def transport_parameter(transport: Transport) -> str:
    """The `;transport=` parameter of a URI, "" for UDP, the default."""
    return "" if transport is Transport.UDP else f";transport={transport.lower()}"


def host_in_uri(host: str) -> str:
    """A host as written in a URI or Via: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host
