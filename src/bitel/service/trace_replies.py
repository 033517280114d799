"""Replies to requests for SIP traces by other machines: see `bitel.store.trace_requests`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog

from bitel.dialer import sip_trace
from bitel.errors import UnavailableError
from bitel.store import trace_requests
from bitel.store.database import Database
from bitel.store.trace_requests import TraceLines

log = structlog.get_logger(__name__)

EVERY: Final = 2.0
"""Seconds between two looks for requests, besides those after a wake-up."""


class TraceReplies:
    """Replies for the traces in one folder; `run` it in a task."""

    def __init__(
        self, database: Database, folder: Path, worker: str, clock: Callable[[], float]
    ) -> None:
        self._database = database
        self._folder = folder
        self._worker = worker
        self._clock = clock
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Look for requests at once."""
        self._woken.set()

    async def run(self) -> None:
        """Reply until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EVERY):
                    await self._woken.wait()
            self._woken.clear()
            with contextlib.suppress(UnavailableError):  # asked again with the next look
                await self._reply()

    async def _reply(self) -> None:
        now = self._clock()
        wanted = await self._database.read(
            lambda conn: trace_requests.unanswered(conn, self._worker, now)
        )
        for request in wanted:
            lines = await asyncio.to_thread(lines_of, self._folder, request.call_id)
            await self._database.write(
                lambda conn: trace_requests.reply(conn, request, self._worker, lines)  # noqa: B023
            )


def lines_of(folder: Path, call_id: str) -> TraceLines:
    """The messages of a call in the folder as text; none if there are none, or it can't be read."""
    try:
        entries = sip_trace.read(folder, call_id)
    except OSError as fault:
        log.error("trace_not_read", call=call_id, fault=str(fault))
        entries = []
    short = [each if isinstance(each, str) else sip_trace.arrow(each) for each in entries]
    full = [each if isinstance(each, str) else sip_trace.in_full(each) for each in entries]
    return TraceLines(short, full)
