"""OPTIONS at intervals to every address of the trunks (RFC 3261 §11): who is still there?"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Final

import structlog

from bitel.dialer.address_health import Health
from bitel.dialer.pending_requests import Ask
from bitel.dialer.trunk import shown
from bitel.sip import OutgoingRequest
from bitel.sip.grammar import Address

log = structlog.get_logger(__name__)

PATIENCE: Final = 5.0
"""Seconds after which a ping counts as unanswered: its repetitions leave at 0.5, 1.5 and 3.5 s."""
MOST_ADDRESSES: Final = 64
DOUBTED_PATIENCE: Final = 2.0
"""As `PATIENCE`, of a ping to an address that an ICMP error calls unreachable: its repetitions
leave at 0.5 and 1.5 s."""
UNPINGED: Final = 30.0
"""Seconds between look-ups of the addresses where no pings are sent."""


class Pinger:
    """Pings the addresses that `find` gives every `interval` seconds, and reports to `health`.

    With an interval of 0 it only looks the addresses up, so that they are known. `options_to` makes
    the OPTIONS for an address. `on_silence` is called with an address that was doubted and answers
    no ping, unless it never answers pings.
    """

    def __init__(
        self,
        ask: Ask,
        health: Health,
        find: Callable[[], Awaitable[Iterable[Address]]],
        interval: float,
        options_to: Callable[[Address], OutgoingRequest],
        on_silence: Callable[[Address], None],
        patience: float = PATIENCE,
        doubted_patience: float = DOUBTED_PATIENCE,
    ) -> None:
        self._ask = ask
        self._health = health
        self._find = find
        self._interval = interval
        self._options_to = options_to
        self._on_silence = on_silence
        self._patience = patience
        self._doubted_patience = doubted_patience
        self._doubted: set[Address] = set()
        self._deadlines: dict[Address, asyncio.Timeout] = {}
        self._under_way: dict[Address, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Ping until cancelled. The first round comes after one interval."""
        try:
            while True:
                addresses = await self._find()
                # Spread, so that many dialers don't ask in the same instant.
                await asyncio.sleep((self._interval or UNPINGED) * random.uniform(0.9, 1.0))
                for address in list(addresses)[:MOST_ADDRESSES]:
                    self.ping_soon(address)
        finally:
            for task in list(self._under_way.values()):
                task.cancel()

    def ping_soon(self, address: Address) -> None:
        """Ping now, unless a ping is under way to it, or the interval is 0."""
        if self._interval:
            self._begin(address)

    def doubt(self, address: Address) -> None:
        """Ping now, whatever the interval: an ICMP error calls `address` unreachable.

        A ping that is under way gets no more time than one that is sent now.
        """
        if address in self._under_way or len(self._under_way) < MOST_ADDRESSES:
            self._doubted.add(address)
            self._begin(address)
        deadline = self._deadlines.get(address)
        soon = asyncio.get_running_loop().time() + self._doubted_patience
        if deadline and not deadline.expired() and (deadline.when() or soon) > soon:
            deadline.reschedule(soon)

    def _begin(self, address: Address) -> None:
        if address not in self._under_way:
            task = asyncio.create_task(self.ping(address))
            self._under_way[address] = task
            task.add_done_callback(partial(self._finished, address))

    def _finished(self, address: Address, task: asyncio.Task[None]) -> None:
        del self._under_way[address]
        self._doubted.discard(address)
        if not task.cancelled() and task.exception() is not None:
            log.error("ping_failed", address=shown(address), exc_info=task.exception())

    async def ping(self, address: Address) -> None:
        """Ask once whether anybody is there."""
        request = self._options_to(address)
        # The response does not end a rest that began after the ping was sent.
        rested = self._health.rests(address)
        patience = self._doubted_patience if address in self._doubted else self._patience
        try:
            async with asyncio.timeout(patience) as deadline:
                self._deadlines[address] = deadline
                done = await self._ask(request)
        except TimeoutError:
            done = None
        finally:
            self._deadlines.pop(address, None)
        if done is None or done.why in {"timeout", "transport"}:
            if self._health.missed_ping(address) and address in self._doubted:
                self._on_silence(address)
        else:
            self._health.answered_ping(address, ends_rest=rested and done.code != 503)
