"""From events that are due to events that were taken, for all projects at once.

The outbox in the store is the queue: an event is written there with the end of its call, and
claimed here for the time of one try. A claim is a lease: if this process ends before it has written
what became of the try, the event is due again when the lease runs out. So every event is delivered
at least once, always with the same id; a receiver that has seen the id already may pass over it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import httpx
import structlog
from sqlalchemy import Connection

from bitel.errors import InvalidRequestError, UnavailableError
from bitel.store import webhooks as outbox
from bitel.store.database import Database
from bitel.store.webhooks import Delivery
from bitel.webhooks import payload, schedule, signing
from bitel.webhooks.connecting import Resolver
from bitel.webhooks.load import Load
from bitel.webhooks.posting import Answer, Poster, TimeLimits

log = structlog.get_logger(__name__)

LEASE: Final = 60.0
"""Seconds that a claim holds; more than a try takes, with time to write what became of it."""

GONE: Final = "its receiver answered 410 Gone"
"""Why a project gets no events any more."""

_POLL = 1.0
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0


@dataclass(frozen=True, slots=True)
class Options:
    """How events are delivered."""

    allow_private: bool = False
    """Whether receivers may have addresses that are not public, this machine's own included."""
    concurrency: int = 64
    """Tries under way at once."""
    per_project: int = 4
    """Of these, for one project."""
    limits: TimeLimits = TimeLimits()


def build(options: Options, database: Database, clock: Callable[[], float]) -> Deliverer:
    """A deliverer for the system's resolver and certificates; `clock` says Unix seconds."""
    poster = Poster(
        Resolver(),
        # SSL_CERT_FILE may name the authority of an inner network; proxies are not looked for.
        httpx.create_ssl_context(),
        allow_private=options.allow_private,
        limits=options.limits,
        kept_connections=options.concurrency,
    )
    return Deliverer(options, database, poster, clock)


class Deliverer:
    """Delivers events until it is drained. Run it once."""

    def __init__(
        self,
        options: Options,
        database: Database,
        poster: Poster,
        clock: Callable[[], float],
        luck: Callable[[], float] = random.random,
    ) -> None:
        self._database = database
        self._poster = poster
        self._clock = clock
        self._luck = luck
        self._load = Load(options.concurrency, options.per_project)
        self._tasks: set[asyncio.Task[None]] = set()
        self._doorbell = asyncio.Event()
        self._draining = False
        self._drained = asyncio.Event()

    @property
    def running(self) -> int:
        """Tries under way."""
        return len(self._tasks)

    def ring(self) -> None:
        """Something may be due now: look at once."""
        self._doorbell.set()

    async def run(self) -> None:
        """Deliver what is due, until `drain` is over."""
        try:
            while not self._draining:
                self._doorbell.clear()
                pause = await self._look()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause):
                        await self._doorbell.wait()
            await self._drained.wait()
        finally:
            await self._cut_off()
            await self._poster.close()

    async def drain(self, timeout: float) -> None:
        """Begin no more tries, give those under way `timeout` seconds, and end.

        A try that is cut off is made again when its lease has run out, here or elsewhere.
        """
        self._draining = True
        self.ring()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout)
        self._drained.set()

    async def _cut_off(self) -> None:
        cut_off = list(self._tasks)
        for task in cut_off:
            task.cancel()
        await asyncio.gather(*cut_off, return_exceptions=True)
