"""Connections to receivers: the address that was judged is the one that is connected to.

A name is looked up once for each connection; every address it stands for is judged, and the
connection goes to one that passed, by its number. So a name that changes between a check and its
use (DNS rebinding) has no such moment to use. TLS and the Host header still go by the name.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from bitel.webhooks import url_policy
from bitel.webhooks.exchange import Connection
from bitel.webhooks.url_policy import Target

Address = IPv4Address | IPv6Address
Resolve = Callable[[str], Awaitable[Sequence[Address]]]
"""From a name, or an address in whatever notation, to its addresses. Raises OSError."""

MOST_ADDRESSES: Final = 4
"""Addresses of one name that are tried, one after the other, within the time to connect."""
MOST_LOOKUPS: Final = 32
"""Names that are looked up at once."""


class ConnectFault(Exception):
    """No connection, for a reason that is said in a few words."""


class Resolver:
    """Looks names up with the system's resolver, each in a thread of its own.

    Not in the loop's thread pool: a name whose servers never answer holds a thread for long, and
    there it would hold up everything else. Those who ask for one name at one time share a lookup.
    """

    def __init__(self) -> None:
        self._free = asyncio.Semaphore(MOST_LOOKUPS)
        self._asked: dict[str, asyncio.Task[Sequence[Address]]] = {}

    async def __call__(self, host: str) -> Sequence[Address]:
        """The addresses of `host`, in the system's order of preference. Raises OSError."""
        asked = self._asked.get(host)
        if asked is None:
            asked = self._asked[host] = asyncio.create_task(self._ask(host))
            asked.add_done_callback(lambda done: self._forget(host, done))
        return await asyncio.shield(asked)

    def _forget(self, host: str, done: asyncio.Task[Sequence[Address]]) -> None:
        del self._asked[host]
        if not done.cancelled():
            done.exception()  # whoever asked may have stopped waiting for it

    async def _ask(self, host: str) -> Sequence[Address]:
        async with self._free:
            loop = asyncio.get_running_loop()
            found: asyncio.Future[Sequence[Address]] = loop.create_future()
            # A daemon, so that a lookup that hangs doesn't keep the process from ending.
            threading.Thread(
                target=_look_up, args=(host, loop, found), name="webhook-lookup", daemon=True
            ).start()
            return await found


def _look_up(
    host: str, loop: asyncio.AbstractEventLoop, found: asyncio.Future[Sequence[Address]]
) -> None:
    addresses: Sequence[Address] = ()
    fault: OSError | None = None
    try:
        rows = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        addresses = [ipaddress.ip_address(row[4][0]) for row in rows]
    except OSError as error:
        fault = error
    except ValueError as error:  # a label too long or empty (UnicodeError), an odd address
        fault = OSError(str(error))

    def tell() -> None:
        if found.done():
            return
        if fault is None:
            found.set_result(addresses)
        else:
            found.set_exception(fault)

    if not loop.is_closed():
        loop.call_soon_threadsafe(tell)


async def connect(
    target: Target,
    timeout: float,
    *,
    resolve: Resolve,
    tls: ssl.SSLContext,
    allow_private: bool,
) -> Connection:
    """A connection to `target` within `timeout` seconds, lookup and TLS included.

    It goes to public addresses only, unless `allow_private`. Raises ConnectFault or OSError.
    """
    try:
        async with asyncio.timeout(timeout):
            addresses = await _allowed(target.host, resolve, allow_private=allow_private)
            return await _first_open(addresses, target, tls, timeout)
    except TimeoutError:
        raise ConnectFault(f"no connection within {timeout:g} s") from None


async def _allowed(host: str, resolve: Resolve, *, allow_private: bool) -> Sequence[Address]:
    try:
        addresses = await resolve(host)
    except OSError as error:
        raise ConnectFault(f"the name {host} can't be resolved: {error.strerror}") from None
    refusals = {} if allow_private else {one: url_policy.refusal(one) for one in addresses}
    allowed = [one for one in addresses if not refusals.get(one)]
    if not allowed:
        first = next(iter(refusals.values()), None)
        raise ConnectFault(f"refused: {first}" if first else f"the name {host} has no address")
    return allowed[:MOST_ADDRESSES]


async def _first_open(
    addresses: Sequence[Address], target: Target, tls: ssl.SSLContext, timeout: float
) -> Connection:
    # Each address has its share of the time, so that a dead one leaves some for the others.
    share = timeout / len(addresses)
    for address in addresses[:-1]:
        try:
            async with asyncio.timeout(share):
                return await _open(address, target, tls)
        except OSError:  # a TimeoutError is one
            continue
    return await _open(addresses[-1], target, tls)


async def _open(address: Address, target: Target, tls: ssl.SSLContext) -> Connection:
    secure = target.scheme == "https"
    _, connection = await asyncio.get_running_loop().create_connection(
        Connection,
        str(address),
        target.port,
        ssl=tls if secure else None,
        server_hostname=target.host if secure else None,
    )
    return connection
