"""What a stranger may do to a connection before there is a request: little, and not for long."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from bitel.api import server
from bitel.api.server import BoundedProtocol

if TYPE_CHECKING:
    from tests.api.stage import Stage

REQUEST = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


async def is_cut(reader: asyncio.StreamReader) -> bool:
    """Whether the connection ends, within a time that is long enough for any limit here."""
    try:
        async with asyncio.timeout(5):
            while await reader.read(65_536):
                pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


async def test_a_head_without_end_is_cut(sqlite_stage: Stage, served: Any) -> None:
    async with served(sqlite_stage) as url:
        for start in (b"GET /", b"GET / HTTP/1.1\r\nX: ", b"GET / HTTP/1.1\r\n"):
            reader, writer = await connect(url)
            writer.write(start + b"x: y\r\n" * 20_000)
            assert await is_cut(reader)
            writer.close()


async def test_trailers_without_end_are_cut(sqlite_stage: Stage, served: Any) -> None:
    async with served(sqlite_stage) as url:
        reader, writer = await connect(url)
        writer.write(
            b"POST /nowhere HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
        )
        writer.write(b"x: y\r\n" * 20_000)
        assert await is_cut(reader)
        writer.close()


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n", REQUEST + b"GET"])
async def test_a_head_that_does_not_come_is_not_waited_for(
    sqlite_stage: Stage, served: Any, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.05)
    async with served(sqlite_stage) as url:
        reader, writer = await connect(url)
        writer.write(sent[: len(REQUEST)])
        if sent[len(REQUEST) :]:
            await reader.readuntil(b"}")
            writer.write(sent[len(REQUEST) :])
        assert await is_cut(reader)
        writer.close()


async def test_a_connection_that_asked_may_ask_again(
    sqlite_stage: Stage, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "HEAD_SECONDS", 0.05)
    async with served(sqlite_stage) as url:
        reader, writer = await connect(url)
        for _ in range(3):
            writer.write(REQUEST)
            assert b'{"status":"ok"}' in await reader.readuntil(b"}")
            await asyncio.sleep(0.1)  # longer than the first head may take
        writer.close()


async def test_too_many_connections_are_turned_away(
    sqlite_stage: Stage, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MOST_CONNECTIONS", 3)
    async with served(sqlite_stage) as url:
        kept = [await connect(url) for _ in range(3)]
        reader, writer = await connect(url)
        assert await is_cut(reader)
        kept[0][1].write(REQUEST)
        assert b'{"status":"ok"}' in await kept[0][0].readuntil(b"}")
        for _, each in [*kept, (reader, writer)]:
            each.close()


async def test_requests_sent_ahead_are_answered_in_order_and_bounded(
    sqlite_stage: Stage, served: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with served(sqlite_stage) as url:
        reader, writer = await connect(url)
        writer.write(REQUEST * 20)
        for _ in range(20):
            assert b'{"status":"ok"}' in await reader.readuntil(b"}")
        writer.write(REQUEST * 500)
        assert await is_cut(reader)
        writer.close()
        reader, writer = await connect(url)
        writer.write(REQUEST * 20)
        writer.transport.abort()
        # Its end was seen before the next request.
        reader, writer = await connect(url)
        writer.write(REQUEST)
        await reader.readuntil(b"}")
        writer.close()
    # A client that goes away is nothing to write a page about.
    assert "Exception" not in caplog.text


async def test_a_body_in_tiny_chunks_is_read(sqlite_stage: Stage, served: Any) -> None:
    stage = sqlite_stage

    async def chunks() -> Any:
        for char in '{"phoneNumber": "x"}' + " " * 5_000:
            yield char.encode()

    async with served(stage) as url, stage.client(url=url) as client:
        answer = await client.post("/api/v2/voice/single", content=chunks())
    assert answer.json()["message"] == "voiceId is missing"


def small_buffers(reader_of: socket.socket) -> None:
    reader_of.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)


async def test_an_answer_that_is_not_read_is_not_kept_for_long(
    sqlite_stage: Stage, served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor are its connection and its buffers."""
    monkeypatch.setattr(server, "UNREAD_SECONDS", 0.3)
    answers: list[BoundedProtocol] = []
    lost = asyncio.Event()
    made, over = BoundedProtocol.connection_made, BoundedProtocol.connection_lost

    def note_made(self: BoundedProtocol, transport: asyncio.Transport) -> None:
        answers.append(self)
        made(self, transport)

    def note_lost(self: BoundedProtocol, exc: Exception | None) -> None:
        over(self, exc)
        lost.set()

    monkeypatch.setattr(BoundedProtocol, "connection_made", note_made)
    monkeypatch.setattr(BoundedProtocol, "connection_lost", note_lost)
    async with served(sqlite_stage) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.socket() as client:
            small_buffers(client)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, (host, int(port)))
            # Many answers of some hundred bytes each, more than the kernel's buffers hold.
            asking = asyncio.create_task(_ask_for_ever(client))
            try:
                await asyncio.wait_for(lost.wait(), 20)
            finally:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
    assert len(answers) == 1


async def _ask_for_ever(client: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    request = b"GET /docs HTTP/1.1\r\nHost: x\r\n\r\n"
    while True:
        await loop.sock_sendall(client, request * 16)
        await asyncio.sleep(0.01)


async def test_one_source_has_so_many_connections(
    make_stage: Callable[..., Stage], served: Any
) -> None:
    stage = make_stage(http={"connections_per_source": 3, "trusted_proxies": []})
    async with served(stage) as url:
        kept = [await connect(url) for _ in range(3)]
        for reader, writer in kept:
            writer.write(REQUEST)
            assert b'{"status":"ok"}' in await reader.readuntil(b"}")
        reader, writer = await connect(url)
        assert await is_cut(reader)
        writer.close()
        kept.pop()[1].close()
        async with asyncio.timeout(5):
            while True:
                reader, writer = await connect(url)
                writer.write(REQUEST)
                with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                    assert b'{"status":"ok"}' in await reader.readuntil(b"}")
                    break
        for _, each in [*kept, (reader, writer)]:
            each.close()


async def test_a_trusted_proxy_has_as_many_as_it_likes(
    make_stage: Callable[..., Stage], served: Any
) -> None:
    stage = make_stage(http={"connections_per_source": 3, "trusted_proxies": ["127.0.0.1"]})
    async with served(stage) as url:
        kept = [await connect(url) for _ in range(10)]
        for reader, writer in kept:
            writer.write(REQUEST)
            assert b'{"status":"ok"}' in await reader.readuntil(b"}")
            writer.close()


def test_sources_are_counted_by_network() -> None:
    sources = server.Sources(2, ["10.0.0.0/8", "fd00::/8"])
    for host in ("2001:db8::1", "2001:db8::2", "198.51.100.1", "::ffff:198.51.100.1"):
        assert sources.enter(host)
    assert not sources.enter("2001:db8::3")
    assert not sources.enter("198.51.100.1")
    assert sources.enter("2001:db8:0:1::1")
    for host in ("10.1.2.3", "fd12::1", "::ffff:10.1.2.3"):
        assert all(sources.enter(host) for _ in range(100))
    sources.leave("2001:db8::2")
    assert sources.enter("2001:db8::3")
