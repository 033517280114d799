"""Receivers on 127.0.0.1 for tests: they answer what they are told to, or misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.support.tcp_server import tcp_server


@dataclass(frozen=True)
class Received:
    """A request as it came."""

    path: str
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    connection: int
    """Which of the receiver's connections it came on, from 0."""
    server_name: str | None
    """The name that the TLS client asked for."""

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def event(self) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(self.body)
        return event


Answerer = Callable[[Received, asyncio.StreamWriter], Awaitable[None]]


def answer(status: int = 200, body: bytes = b"ok", **headers: str) -> Answerer:
    """Answers properly. `headers` have _ for -."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{lines}\r\n"
    return raw(head.encode() + body)


def raw(data: bytes, *, close: bool = False) -> Answerer:
    """Answers with these bytes, and may close the connection then."""

    async def work(_: Received, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        if close:
            writer.close()

    return work


async def hang(_: Received, __: asyncio.StreamWriter) -> None:
    """Never answers."""
    await asyncio.Event().wait()


async def endless(_: Received, writer: asyncio.StreamWriter) -> None:
    """Answers 200 with a body without an end, as fast as it is read."""
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    piece = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
    while True:
        writer.write(piece)
        await writer.drain()


@dataclass
class Receiver:
    """A small HTTP server; `answerer` may be changed at any time."""

    answerer: Answerer = field(default_factory=answer)
    received: list[Received] = field(default_factory=list)
    connections: int = 0
    sent: int = 0
    port: int = 0
    scheme: str = "http"
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/hook"

    async def until(self, count: int, timeout: float = 10.0) -> list[Received]:
        """What was received, once it is at least `count` requests."""
        async with asyncio.timeout(timeout), self.changed:
            await self.changed.wait_for(lambda: len(self.received) >= count)
        return self.received

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, self.connections = self.connections, self.connections + 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while not writer.is_closing():
                request = await self._read(reader, writer, number)
                async with self.changed:
                    self.received.append(request)
                    self.changed.notify_all()
                await self.answerer(request, writer)
        writer.close()

    async def _read(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int
    ) -> Received:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        request_line, *lines = head.strip().split("\r\n")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        tls = writer.get_extra_info("ssl_object")
        name = getattr(tls.context, "asked_for", None) if tls else None
        return Received(request_line.split(" ")[1], headers, body, number, name)


@contextlib.asynccontextmanager
async def receiver(
    answerer: Answerer | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Receiver]:
    """A receiver that listens inside the block."""
    one = Receiver() if answerer is None else Receiver(answerer)
    async with tcp_server(one.serve, tls=tls) as (_, one.port):
        one.scheme = "https" if tls else "http"
        yield one
