"""Runs an ASGI application with uvicorn, as a part of the service."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Final

import structlog
import uvicorn
from fastapi import FastAPI

from bitel.api import server as http_server
from bitel.errors import BitelError
from bitel.service.shutdown import Shutdown
from bitel.settings import HttpSettings

log = structlog.get_logger(__name__)

DRAIN_TIMEOUT: Final = 10
"""Seconds that requests in progress may take at the end."""


@contextlib.asynccontextmanager
async def serving(
    app: FastAPI,
    http: HttpSettings,
    address: tuple[str, int],
    setting: str,
    shutdown: Shutdown,
    stop: asyncio.Event,
) -> AsyncIterator[tuple[str, int]]:
    """Answer HTTP at `address` inside the block; yields the bound address.

    `stop` is set if the server ends by itself: the service must not go on without HTTP. Raises
    BitelError, which names `setting`, if the address can't be bound.
    """
    host, port = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as fault:
        listener.close()
        raise BitelError(
            f"HTTP can't be answered at {host}:{port}: {fault.strerror}; choose another {setting}"
        ) from fault
    server = _Server(http_server.config(app, http, timeout_graceful_shutdown=DRAIN_TIMEOUT))
    task = asyncio.create_task(server.serve([listener]))
    task.add_done_callback(lambda _: stop.set())
    try:
        accepting = asyncio.create_task(server.accepting.wait())
        await asyncio.wait({task, accepting}, return_when=asyncio.FIRST_COMPLETED)
        accepting.cancel()
        if task.done():
            task.result()
            raise BitelError(f"HTTP at {host}:{port} ended when it began; see the log")
        yield listener.getsockname()[:2]
    finally:
        timeout = shutdown.left(DRAIN_TIMEOUT)
        server.config.timeout_graceful_shutdown = max(1, int(timeout))
        server.should_exit = True
        # One second more: cancelled requests need time to end.
        await asyncio.wait([task], timeout=shutdown.left(timeout + 1))
        if not task.done():
            log.warning("not_stopped_in_time", part="HTTP")
            task.cancel()
            await asyncio.wait([task], timeout=0.5)
        else:
            task.result()


class _Server(uvicorn.Server):
    """Leaves signals to the service, and sets `accepting` when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.accepting = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.accepting.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
