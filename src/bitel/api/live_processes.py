"""Counts the processes that answer the API over one database, which share rate limits.

Each sends a heartbeat, a row whose `beats` change. A process counts from its first heartbeat until
its row has not changed for `DEAD_AFTER` seconds by the counting process's own monotonic clock, so
that differences between the machines' clocks do not matter. After a pause of this process, or an
outage of the database, in which nobody could send heartbeats, that time begins again.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import structlog

from bitel.domain.ids import new_id
from bitel.errors import UnavailableError
from bitel.store import api_processes
from bitel.store.database import Database

log = structlog.get_logger(__name__)

BEAT: Final = 2.0
"""Seconds between two heartbeats: a new process is counted within that time."""
DEAD_AFTER: Final = 6.0
"""Seconds without a heartbeat after which a process is not counted."""
LONGEST_GAP: Final = 2 * BEAT
"""Seconds between two looks; after longer ones all processes are taken to be alive."""
FORGET_AFTER: Final = 60.0
"""Seconds without a heartbeat after which the row of a process is removed."""


@dataclass(frozen=True, slots=True)
class _Seen:
    beats: int
    since: float
    """When the row was first seen with these `beats`, in monotonic seconds."""


class LiveProcesses:
    """The processes that answer the API, this one included.

    `clock` gives the Unix seconds of stored times, `monotonic` those of a monotonic clock.
    """

    def __init__(
        self,
        database: Database,
        clock: Callable[[], float],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.count = 1
        """At least 1."""
        self.is_first = False
        """This process is the one that has been running longest; never before its heartbeat."""
        self._database = database
        self._clock = clock
        self._monotonic = monotonic
        self._id = new_id(clock())
        self._name = f"{socket.gethostname()}-{os.getpid()}"
        self._beats = 0
        self._seen: dict[str, _Seen] = {}
        self._looked_at = -LONGEST_GAP

    async def run(self) -> None:
        """Send heartbeats until cancelled."""
        while True:
            await asyncio.sleep(BEAT)
            try:
                await self.beat()
            except UnavailableError as fault:
                log.debug("api_processes_not_counted", fault=str(fault))

    async def beat(self) -> None:
        """Send a heartbeat, and count the others'. Raises UnavailableError."""
        self._beats += 1
        found = await self._database.write(
            partial(
                api_processes.beat,
                process_id=self._id,
                name=self._name,
                beats=self._beats,
                now=self._clock(),
            )
        )
        now = self._monotonic()
        if now - self._looked_at > LONGEST_GAP:
            self._seen.clear()
        self._looked_at = now
        self._seen = {
            each: seen
            if (seen := self._seen.get(each)) is not None and seen.beats == beats
            else _Seen(beats, now)
            for each, beats in found.items()
        }
        silent = {each: now - seen.since for each, seen in self._seen.items()}
        live = {self._id, *(each for each, seconds in silent.items() if seconds < DEAD_AFTER)}
        if len(live) != self.count:
            log.info("api_processes", count=len(live))
        self.count, self.is_first = len(live), min(live) == self._id
        if gone := {
            each: found[each] for each, seconds in silent.items() if seconds >= FORGET_AFTER
        }:
            await self._database.write(partial(api_processes.remove, processes=gone))

    async def leave(self) -> None:
        """Be counted no longer, at the end of the process. Raises UnavailableError."""
        await self._database.write(partial(api_processes.remove, processes={self._id: self._beats}))
