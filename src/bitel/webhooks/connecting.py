"""Connections to receivers: the address that was judged is the one that is connected to.

A name is looked up once for each connection; every address it stands for is judged, and the
connection goes to one that passed, by its number. So a name that changes between a check and its
use (DNS rebinding) has no such moment to use. TLS and the Host header still go by the name.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import Final

import httpcore

from bitel.webhooks import targets

Address = IPv4Address | IPv6Address
Resolve = Callable[[str], Awaitable[Sequence[Address]]]
"""From a name, or an address in whatever notation, to its addresses. Raises OSError."""

MOST_ADDRESSES: Final = 4
"""Addresses of one name that are tried, one after the other, within the time to connect."""
MOST_LOOKUPS: Final = 32
"""Names that are looked up at once."""


class Refused(httpcore.ConnectError):
    """The name stands for no address that events may be sent to."""


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


class GuardedBackend(httpcore.AsyncNetworkBackend):
    """Opens connections for httpcore, to public addresses only unless `allow_private`."""

    def __init__(self, resolve: Resolve, *, allow_private: bool) -> None:
        self._resolve = resolve
        self._allow_private = allow_private
        self._network: httpcore.AsyncNetworkBackend = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection to `host`, within `timeout` seconds, the lookup included.

        Raises Refused, httpcore.ConnectError or httpcore.ConnectTimeout.
        """
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._allowed(host)
                return await self._first_open(addresses, port, timeout, socket_options)
        except TimeoutError:
            raise httpcore.ConnectTimeout(f"no connection within {timeout:g} s") from None

    async def _allowed(self, host: str) -> Sequence[Address]:
        try:
            addresses = await self._resolve(host)
        except OSError as error:
            raise httpcore.ConnectError(f"the name {host} can't be resolved: {error}") from None
        if self._allow_private:
            allowed = list(addresses)
        else:
            allowed = [one for one in addresses if targets.refusal(one) is None]
        if not allowed:
            reasons = [targets.refusal(one) for one in addresses[:1]]
            raise Refused(f"refused: {reasons[0]}" if reasons else f"{host} has no address")
        return allowed[:MOST_ADDRESSES]

    async def _first_open(
        self,
        addresses: Sequence[Address],
        port: int,
        timeout: float | None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None,
    ) -> httpcore.AsyncNetworkStream:
        # Each address has its share of the time, so that a dead one leaves some for the others.
        share = None if timeout is None else timeout / len(addresses)
        fault: Exception = httpcore.ConnectError("no address")
        for address in addresses:
            try:
                return await self._network.connect_tcp(
                    str(address), port, timeout=share, socket_options=socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                fault = error
        raise fault

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)
