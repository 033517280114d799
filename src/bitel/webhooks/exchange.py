"""HTTP/1.1 as a sender of events needs it: one request at a time on a connection, little read.

llhttp, by way of httptools, reads what a receiver sends; this puts bounds on it. Client libraries
for every use spend many times the CPU on the few hundred bytes that a webhook is each way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, cast

import httptools

MOST_HEAD: Final = 64 * 1024
"""Bytes of an answer before its body, interim answers included."""
MOST_BODY: Final = 64 * 1024
"""Bytes of a body that are read, so that its connection can be used again."""

_SWITCHING: Final = 101
_FIRST_FINAL: Final = 200


class ExchangeError(Exception):
    """The receiver sent no answer, or something that is none."""


class ClosedEarly(ExchangeError):
    """The receiver closed the connection before it sent anything."""


@dataclass(frozen=True, slots=True)
class Head:
    """The beginning of an answer. `headers` have names in lower case; of equal ones, the last."""

    status: int
    headers: Mapping[str, str]


def request(path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """A POST as it goes over the wire. Nothing given may hold a line break."""
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    assert not any("\r" in line or "\n" in line for line in lines)
    head = "\r\n".join([*lines, f"content-length: {len(body)}", "", ""])
    return head.encode("ascii") + body


class Connection(asyncio.Protocol):
    """A connection to a receiver, for one exchange after the other."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._reading: _Reading | None = None
        self.lost = False
        """Whether it can be used no more."""
        self.uses = 0
        """Exchanges begun on it."""

    async def exchange(self, data: bytes) -> Head:
        """Send a request; the head of its final answer. Raises ExchangeError or OSError."""
        if self._transport is None or self.lost:
            raise ClosedEarly("the connection was closed already")
        self.uses += 1
        self._reading = reading = _Reading()
        self._transport.write(data)
        return await reading.head

    async def drop_body(self) -> None:
        """Read what follows the head, as far as `MOST_BODY`; then it can be used again or not."""
        assert self._reading is not None
        reading = self._reading
        await reading.end
        self._reading = None
        if not reading.reusable:
            self.close()

    def close(self) -> None:
        """Give it up at once."""
        self.lost = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._reading is None or not self._reading.feed(data):
            self.close()  # nobody has asked for it, or nobody wants more of it

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self._reading is not None:
            self._reading.cut_off(exc)


class _Reading:
    """What has come of one answer; called by the parser for its parts."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.head: asyncio.Future[Head] = loop.create_future()
        self.end: asyncio.Future[None] = loop.create_future()
        self.reusable = False
        # It refers to us by our methods, so it is let go of at the end: the collector of cyclic
        # garbage hardly ever runs.
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._head_bytes = 0
        self._body_bytes = 0

    def feed(self, data: bytes) -> bool:
        """Read on; False when nothing more is wanted from this connection."""
        if self._parser is None:
            self.reusable = False  # something behind the end
            return False
        if not self.head.done():
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as fault:
            self._fail(ExchangeError(f"what it sent is no answer in HTTP: {fault}"))
            return False
        if not self.head.done() and self._head_bytes > MOST_HEAD:
            self._fail(ExchangeError(f"its answer began with more than {MOST_HEAD} bytes of head"))
            return False
        if self._body_bytes > MOST_BODY:
            self._finish()
            return False
        return True

    def cut_off(self, fault: Exception | None) -> None:
        """The connection is gone."""
        if fault is not None:
            self._fail(fault)
        elif self._head_bytes:
            self._fail(ExchangeError("it closed the connection in the middle of its answer"))
        else:
            self._fail(ClosedEarly("it closed the connection without an answer"))

    def on_message_begin(self) -> None:
        self.reusable = False  # something after the end, if there was one

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        if status < _FIRST_FINAL and status != _SWITCHING:
            self._headers = {}
        elif not self.head.done():
            self.head.set_result(Head(status, self._headers))

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)

    def on_message_complete(self) -> None:
        if self.head.done() and not self.end.done():
            assert self._parser is not None
            self.reusable = self._parser.should_keep_alive()
            self._finish()

    def _fail(self, fault: Exception) -> None:
        if not self.head.done():
            self.head.set_exception(fault)
        self.reusable = False
        self._finish()

    def _finish(self) -> None:
        self._parser = None
        # A head without its whole body is an answer all the same.
        if not self.end.done():
            self.end.set_result(None)
