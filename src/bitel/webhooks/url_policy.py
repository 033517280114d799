"""Which URLs and addresses webhooks may be sent to, and the resolver that finds the addresses.

Clients choose the URLs of webhooks, so the service must not be made to send requests into its own
network (SSRF). Addresses are checked in any notation: by `check` when a URL is set, and by
`why_blocked` for each connection.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import ipaddress
import re
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

import httpx

from bitel.errors import InvalidRequestError
from bitel.ip_addresses import IPAddress, embedded_ipv4, special_purpose

Resolve = Callable[[str], Awaitable[Sequence[IPAddress]]]
"""Returns the addresses of a host name, or of an address in any notation. Raises OSError."""

LONGEST_URL: Final = 2048
"""Characters."""
MAX_LOOKUPS: Final = 32
"""Maximum concurrent lookups."""

_NAME: Final = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*\.?")
_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Target:
    """A parsed URL that events may be posted to."""

    scheme: str
    host: str
    """A name in ASCII (internationalised ones in their `xn--` form) or an address."""
    port: int
    path: str
    """With its query; at least `/`."""

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port: what URLs on one connection share."""
        return self.scheme, self.host, self.port

    @property
    def host_header(self) -> str:
        """Value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def parse(url: str) -> Target:
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
    return Target(parts.scheme, host, port, parts.raw_path.decode("ascii"))


def check(url: str, *, allow_private: bool) -> None:
    """Raise InvalidRequestError for a URL that webhooks can't be sent to.

    A host name is not resolved here: its addresses are checked for each connection.
    """
    address = _written_address(parse(url).host)
    why = None if address is None or allow_private else why_blocked(address)
    if why is not None:
        raise InvalidRequestError(
            f"the webhook URL names an address that is not public: {why}; "
            "webhook_allow_private = true in the settings allows it"
        )


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


class Resolver:
    """Resolves names with the system's resolver; concurrent requests for a name share one lookup.

    Each lookup has its own daemon thread: a name server that never answers blocks neither the event
    loop's thread pool nor the end of the process.
    """

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(MAX_LOOKUPS)
        self._lookups: dict[str, asyncio.Task[Sequence[IPAddress]]] = {}

    async def __call__(self, host: str) -> Sequence[IPAddress]:
        """The addresses of `host`, in the system's order of preference. Raises OSError."""
        lookup = self._lookups.get(host)
        if lookup is None:
            lookup = self._lookups[host] = asyncio.create_task(self._look_up(host))
            lookup.add_done_callback(lambda done: self._forget(host, done))
        return await asyncio.shield(lookup)

    def _forget(self, host: str, done: asyncio.Task[Sequence[IPAddress]]) -> None:
        del self._lookups[host]
        if not done.cancelled():
            done.exception()  # marks it as retrieved, in case all callers were cancelled

    async def _look_up(self, host: str) -> Sequence[IPAddress]:
        async with self._free:
            found: concurrent.futures.Future[Sequence[IPAddress]] = concurrent.futures.Future()
            found.set_running_or_notify_cancel()  # the thread alone ends it
            threading.Thread(
                target=_getaddrinfo, args=(host, found), name="webhook-lookup", daemon=True
            ).start()
            return await asyncio.wrap_future(found)


def _getaddrinfo(host: str, found: concurrent.futures.Future[Sequence[IPAddress]]) -> None:
    try:
        rows = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        found.set_result([ipaddress.ip_address(row[4][0]) for row in rows])
    except (OSError, ValueError) as fault:  # ValueError: a label too long or empty, an odd address
        found.set_exception(fault if isinstance(fault, OSError) else OSError(str(fault)))
