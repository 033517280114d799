"""Webhooks: the types of events, and the URLs that events may be sent to.

Clients choose the URLs of webhooks, so the service must not be made to send requests into its own
network (SSRF). Addresses are checked in any notation: by `check_url` when a URL is set, and by
`why_blocked` for each connection.
"""

from __future__ import annotations

import functools
import hashlib
import ipaddress
import re
import socket
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

import httpx

from bitel.errors import InvalidRequestError
from bitel.ip_addresses import IPAddress, embedded_ipv4, special_purpose

CALL_INITIATED: Final = "call.initiated"
"""An attempt of the call begins."""
CALL_RINGING: Final = "call.ringing"
CALL_ANSWERED: Final = "call.answered"
CALL_COMPLETED: Final = "call.completed"
"""An attempt of the call is over; there may be another one."""
CAMPAIGN_FINISHED: Final = "campaign.finished"
"""The last call of the campaign is over."""
EVENT_TYPES: Final = (
    CALL_INITIATED,
    CALL_RINGING,
    CALL_ANSWERED,
    CALL_COMPLETED,
    CAMPAIGN_FINISHED,
)
"""The types of events that are sent where they are asked for."""

LONGEST_URL: Final = 2048
"""Characters."""

_NAME: Final = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?")
_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class RequestWebhook:
    """A webhook that a request names for its calls, in place of that of their project."""

    id: str
    """Made of the other fields, so that requests that name the same one share it."""
    project_id: str
    url: str
    events: tuple[str, ...]
    """Types of events besides the one at the end of each call."""


def request_webhook(project_id: str, url: str, events: Collection[str]) -> RequestWebhook:
    """The webhook with these fields; the order of the events does not matter."""
    types = tuple(sorted(set(events)))
    text = "\n".join((project_id, *types, url))
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return RequestWebhook(digest[:32], project_id, url, types)


def check_events(events: Collection[str], field: str) -> tuple[str, ...]:
    """The types of events, each once. Raises InvalidRequestError, naming `field`."""
    for each in events:
        if each not in EVENT_TYPES:
            raise InvalidRequestError(
                f"{field} names no type of event: {each[:64]!r}; the types are "
                + ", ".join(EVENT_TYPES)
            )
    return tuple(each for each in EVENT_TYPES if each in events)


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed URL that events may be posted to."""

    scheme: str
    host: str
    """A name in ASCII (internationalised ones in their `xn--` form) or an address."""
    port: int
    path: str
    """With its query; at least `/`."""
    origin: tuple[str, str, int]
    """Scheme, host and port: what URLs on one connection share."""
    host_header: str
    """Value of the Host header."""


@functools.lru_cache(maxsize=1024)
def parse_url(url: str) -> Target:
    """Parse a webhook URL. Raises InvalidRequestError."""
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
    if not (":" in host or _NAME.fullmatch(host)) or "%" in host or len(host) > 253:
        raise _wrong("must name a host, as in https://example.com/calls")
    port = _PORTS[parts.scheme] if parts.port is None else parts.port
    if not 0 < port < 65_536:
        raise _wrong("names a port that is not within 1 and 65535")
    written = f"[{host}]" if ":" in host else host
    return Target(
        parts.scheme,
        host,
        port,
        parts.raw_path.decode("ascii"),
        origin=(parts.scheme, host, port),
        host_header=written if port == _PORTS[parts.scheme] else f"{written}:{port}",
    )


def check_url(url: str, *, allow_private: bool) -> None:
    """Raise InvalidRequestError for a URL that webhooks can't be sent to.

    A host name is not resolved here: its addresses are checked for each connection.
    """
    address = _written_address(parse_url(url).host)
    why = None if address is None or allow_private else why_blocked(address)
    if why is not None:
        raise InvalidRequestError(
            f"the webhook URL names an address that is not public: {why}; "
            "webhook_allow_private = true in the settings allows it"
        )


@functools.lru_cache(maxsize=1024)
def why_blocked(address: IPAddress) -> str | None:
    """Why nothing may be sent to `address`, in a few words; None for a public address.

    Of an IPv6 address with an embedded IPv4 address (mapped, 6to4, NAT64), the latter is checked.
    """
    block = special_purpose(address)
    if block is None:
        return None
    inner = embedded_ipv4(address)
    return f"{address} is {block.kind} address" + (f" ({inner})" if inner else "")


def _written_address(host: str) -> IPAddress | None:
    if host in ("localhost", "localhost."):
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
