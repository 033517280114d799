"""A TCP server for tests that closes every connection it has taken.

A connection that a test leaves open is collected during some later test, after its event loop is
gone, and pytest reports that as a failure of the later one.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

Take = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def tcp_server(
    take: Take, port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[str, int]]:
    """Listen on loopback inside the block, and give the address.

    Each connection is given to `take`, and stays open after it has returned. At the end of the
    block, `take` is cancelled where it has not returned, and all connections are closed.
    """
    writers: list[asyncio.StreamWriter] = []
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await take(reader, writer)

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        task = asyncio.create_task(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(begin, "127.0.0.1", port, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[:2]
    finally:
        server.close()
        for _ in range(5):
            await asyncio.sleep(0)  # connections that were being accepted are known after that
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for writer in writers:
            # Not closed: with data that the peer never reads, that would wait for it.
            writer.transport.abort()
        await asyncio.sleep(0)  # the transports' sockets are closed in the next turn
