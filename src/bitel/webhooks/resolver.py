"""The resolver of webhooks' host names; `domain.webhooks` says which addresses are allowed."""

from __future__ import annotations

import asyncio
import concurrent.futures
import ipaddress
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from bitel.ip_addresses import IPAddress

Resolve = Callable[[str], Awaitable[Sequence[IPAddress]]]
"""Returns the addresses of a host name, or of an address in any notation. Raises OSError."""

MAX_LOOKUPS: Final = 32
"""Maximum concurrent lookups."""


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
