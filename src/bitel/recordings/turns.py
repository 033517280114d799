"""Turns of projects at a few workers, so that the heavy uploads of one hold up no other."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

SERVICE = ""
"""The owner of work that calls wait for; its share is not bounded."""


class Turns:
    """At most `slots` pieces of work at once, of one owner at most half of them.

    A turn that becomes free goes to the owner with the fewest turns; among equals to the one that
    has waited longest.
    """

    def __init__(self, slots: int) -> None:
        self._free = max(slots, 2)
        self._share = self._free // 2
        self._running = Counter[str]()
        # In the order in which the oldest of each owner began to wait.
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}

    @asynccontextmanager
    async def turn(self, owner: str = SERVICE) -> AsyncIterator[None]:
        """Wait for a turn of `owner`, which ends with the block."""
        await self._wait(owner)
        try:
            yield
        finally:
            self._end(owner)

    async def _wait(self, owner: str) -> None:
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(granted)
        self._grant()
        try:
            await granted
        except asyncio.CancelledError:
            if granted.done() and not granted.cancelled():
                self._end(owner)
            raise

    def _end(self, owner: str) -> None:
        self._free += 1
        self._running[owner] -= 1
        if not self._running[owner]:
            del self._running[owner]
        self._grant()

    def _grant(self) -> None:
        while self._free and (owner := self._next_owner()) is not None:
            waiting = self._waiting.pop(owner)
            granted = waiting.popleft()
            if waiting:
                self._waiting[owner] = waiting  # behind the others
            if not granted.cancelled():
                self._free -= 1
                self._running[owner] += 1
                granted.set_result(None)

    def _next_owner(self) -> str | None:
        able = [
            owner
            for owner in self._waiting
            if owner == SERVICE or self._running[owner] < self._share
        ]
        return min(able, key=lambda owner: self._running[owner], default=None)
