"""A relay before a PostgreSQL server's Unix socket, which can hold back all that is sent."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import threading
import time
from pathlib import Path


class Relay:
    """Passes a process's connections on to the server's Unix socket, unless it is cut off."""

    def __init__(self, server: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="bitel-relay-"))
        self._server = server
        self._open = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait()

    def cut(self, seconds: float) -> None:
        """Hold back all that is sent, in both directions; blocks for so long."""
        self._loop.call_soon_threadsafe(self._open.clear)
        time.sleep(seconds)
        self._loop.call_soon_threadsafe(self._open.set)

    def close(self) -> None:
        """Remove its folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self) -> None:
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        self._open.set()
        path = self.folder / ".s.PGSQL.5432"
        server = await asyncio.start_unix_server(self._connected, path)
        self._ready.set()
        await server.serve_forever()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._open.wait()
        try:
            to = await asyncio.open_unix_connection(str(self._server / ".s.PGSQL.5432"))
        except OSError:
            writer.close()
            return
        passing = [
            asyncio.create_task(self._passed(reader, to[1])),
            asyncio.create_task(self._passed(to[0], writer)),
        ]
        await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
        for each in (writer, to[1]):
            each.close()
        for task in passing:
            task.cancel()

    async def _passed(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await self._open.wait()
                writer.write(data)
                await writer.drain()
