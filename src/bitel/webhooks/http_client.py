"""HTTP/1.1 client for webhooks: one POST, within limits, to an address that was checked.

A host name is resolved once for each connection. Every address is checked, and the connection is
made to an address that passed, which prevents DNS rebinding. TLS verification and the Host header
use the name.

llhttp (httptools) parses responses; this module bounds their size and time, pools connections, and
follows no redirect. aiohttp can't replace it: it takes bytes that were left on a pooled connection
for the next response, counts no bytes of interim responses, and keeps any number of idle
connections.
"""

from __future__ import annotations

import asyncio
import os
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, cast

import httptools

from bitel.domain.webhooks import Target, parse_url, why_blocked
from bitel.errors import InvalidRequestError
from bitel.ip_addresses import IPAddress
from bitel.webhooks import retry_policy
from bitel.webhooks.resolver import Resolve

_Head = tuple[int, Mapping[str, str]]
"""Status and headers; names are in lower case, and the last of equal ones counts."""

USER_AGENT: Final = "bitel-webhooks/1"
MAX_BYTES: Final = 64 * 1024
"""Bytes of a response before its body, interim responses included, and of its body."""
MAX_ADDRESSES: Final = 4
"""Addresses of one name that are tried in turn, within the time to connect."""
MAX_ERROR: Final = 200
"""Characters of an error."""
IDLE_SECONDS: Final = 15.0
"""Seconds for which an idle connection is kept."""


class RequestError(Exception):
    """No connection or no HTTP response; the message says why in a few words."""


class ConnectionClosed(RequestError):
    """The receiver closed the connection before it sent anything."""


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """Seconds that a receiver has."""

    connect: float = 5.0
    """For name resolution, TCP and TLS."""
    answer: float = 15.0
    """Until the status is received, `connect` included."""
    body: float = 2.0
    """For the body after that. The status counts also if the body does not follow."""


DEFAULT_LIMITS: Final = TimeLimits()


@dataclass(frozen=True, slots=True)
class DeliveryResponse:
    """Result of a POST: a status, or an error if no status came."""

    status: int | None
    error: str
    """Empty if there is a status; else what went wrong, in one line."""
    seconds: float
    """Duration of the POST."""
    retry_after: float | None = None
    """Seconds that the receiver asked to wait."""

    @property
    def delivered(self) -> bool:
        """Whether the receiver took the event."""
        return self.status is not None and retry_policy.is_success(self.status)


class HttpClient:
    """Posts to any number of receivers, with a pool of connections.

    Follows no redirect and uses no proxy. The caller limits how many posts run at once. Close it
    when done.
    """

    def __init__(
        self,
        resolve: Resolve,
        tls: ssl.SSLContext,
        *,
        allow_private: bool = False,
        limits: TimeLimits = DEFAULT_LIMITS,
        max_idle: int = 64,
    ) -> None:
        self._resolve = resolve
        self._tls = tls
        self._allow_private = allow_private
        self._limits = limits
        self._max_idle = max_idle
        self._idle: list[_Connection] = []

    def close(self) -> None:
        """Close every idle connection."""
        for connection in self._idle:
            connection.close()

    async def post(
        self, url: str, headers: Mapping[str, str], body: bytes, now: float
    ) -> DeliveryResponse:
        """Post `body` to `url`. Never raises for what a receiver does.

        `now` is the Unix time, needed for a date in `Retry-After`.
        """
        begun = time.monotonic()
        try:
            target = parse_url(url)
            status, received = await self._exchange(target, _request(target, headers, body))
        except (InvalidRequestError, RequestError, OSError) as fault:
            error = self._describe(fault)
            _drop_tracebacks(fault)
        else:
            retry_after = retry_policy.retry_after(received, now)
            return DeliveryResponse(status, "", time.monotonic() - begun, retry_after)
        return DeliveryResponse(None, _one_line(error), time.monotonic() - begun)

    def _describe(self, fault: Exception) -> str:
        if isinstance(fault, TimeoutError):
            return f"no answer within {self._limits.answer:g} s"
        # asyncio's text for a refused connection repeats the address.
        if isinstance(fault, OSError) and fault.errno and not isinstance(fault, ssl.SSLError):
            return os.strerror(fault.errno)
        return str(fault) or type(fault).__name__

    async def _exchange(self, target: Target, request: bytes) -> _Head:
        connection = self._take_idle(target)
        try:
            async with asyncio.timeout(self._limits.answer):
                head = None
                if connection is not None:
                    try:
                        head = await connection.send(request)
                    except (ConnectionClosed, ConnectionError) as fault:
                        _drop_tracebacks(fault)  # closed while idle: no failure of this request
                if connection is None or head is None:
                    connection = await self._connect(target)
                    head = await connection.send(request)
            await connection.skip_body(self._limits.body)
        except BaseException:
            if connection is not None:
                connection.close()
            raise
        self._keep(connection)
        return head

    def _take_idle(self, target: Target) -> _Connection | None:
        for connection in reversed(self._idle):
            if connection.is_open and connection.origin == target.origin:
                self._idle.remove(connection)
                connection.cancel_expiry()
                return connection
        return None

    def _keep(self, connection: _Connection) -> None:
        self._idle = [each for each in self._idle if each.is_open]
        if len(self._idle) >= self._max_idle:
            connection.close()
        elif connection.is_open:
            self._idle.append(connection)
            loop = asyncio.get_running_loop()
            connection.expiry = loop.call_later(IDLE_SECONDS, connection.close)

    async def _connect(self, target: Target) -> _Connection:
        try:
            async with asyncio.timeout(self._limits.connect):
                addresses = await self._allowed_addresses(target.host)
                # Each address gets a share of the time, so that a dead one leaves some for others.
                share = self._limits.connect / len(addresses)
                for address in addresses[:-1]:
                    try:
                        async with asyncio.timeout(share):
                            return await self._open(address, target)
                    except OSError:  # also a TimeoutError
                        continue
                return await self._open(addresses[-1], target)
        except TimeoutError:
            raise RequestError(f"no connection within {self._limits.connect:g} s") from None

    async def _allowed_addresses(self, host: str) -> Sequence[IPAddress]:
        try:
            addresses = await self._resolve(host)
        except OSError as error:
            raise RequestError(f"the name {host} can't be resolved: {error.strerror}") from None
        blocked = {} if self._allow_private else {a: why_blocked(a) for a in addresses}
        allowed = [address for address in addresses if not blocked.get(address)]
        if not allowed:
            why = next(iter(blocked.values()), None)
            raise RequestError(f"refused: {why}" if why else f"the name {host} has no address")
        return allowed[:MAX_ADDRESSES]

    async def _open(self, address: IPAddress, target: Target) -> _Connection:
        secure = target.scheme == "https"
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: _Connection(target.origin),
            str(address),
            target.port,
            ssl=self._tls if secure else None,
            server_hostname=target.host if secure else None,
        )
        return connection


class _Connection(asyncio.Protocol):
    """A connection to a receiver: one request at a time. The parser calls its `on_` methods."""

    def __init__(self, origin: tuple[str, str, int]) -> None:
        self.origin = origin
        self.is_open = True
        self.expiry: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._expect_response()
        self._end.set_result(None)

    def _expect_response(self) -> None:
        loop = asyncio.get_running_loop()
        self._head: asyncio.Future[_Head] = loop.create_future()
        self._end: asyncio.Future[None] = loop.create_future()
        self._headers: dict[str, str] = {}
        self._head_bytes = self._body_bytes = 0

    async def send(self, request: bytes) -> _Head:
        """Send a request, and return the head of its final response.

        Raises RequestError or OSError.
        """
        if self._transport is None or not self.is_open:
            raise ConnectionClosed("the connection was closed already")
        self._expect_response()
        self._transport.write(request)
        return await self._head

    async def skip_body(self, seconds: float) -> None:
        """Read the rest of the response; close the connection if that is too much or too slow."""
        try:
            async with asyncio.timeout(seconds):
                await self._end
        except TimeoutError:
            self.close()

    def cancel_expiry(self) -> None:
        """Stop the timer that closes an idle connection."""
        if self.expiry is not None:
            self.expiry.cancel()
            self.expiry = None

    def close(self) -> None:
        """Close the connection at once."""
        self.is_open = False
        self.cancel_expiry()
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._parser = httptools.HttpResponseParser(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._parser = None  # it refers to this object, and the garbage collector hardly ever runs
        if exc is None and self._head_bytes:
            exc = RequestError("it closed the connection in the middle of its answer")
        self._fail(exc or ConnectionClosed("it closed the connection without an answer"))

    def data_received(self, data: bytes) -> None:
        if self._parser is None or self._end.done():
            self.close()  # no request was sent, or no more is wanted
            return
        if not self._head.done():
            self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as fault:
            self._fail(RequestError(f"what it sent is no answer in HTTP: {fault}"))
        if self._body_bytes > MAX_BYTES or (not self._head.done() and self._head_bytes > MAX_BYTES):
            self._fail(RequestError(f"its answer began with more than {MAX_BYTES} bytes of head"))

    def _fail(self, fault: Exception) -> None:
        """Close the connection. A status without its whole body counts as a response."""
        self.close()
        if not self._end.done():
            self._end.set_result(None)
            if not self._head.done():
                self._head.set_exception(fault)

    def on_message_begin(self) -> None:
        if self._end.done():
            self.close()  # a second response to one request

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        status = self._parser.get_status_code()
        headers, self._headers = self._headers, {}
        if not self._head.done() and (status >= 200 or status == 101):  # others are interim
            self._head.set_result((status, headers))

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)

    def on_message_complete(self) -> None:
        assert self._parser is not None
        if self._head.done() and not self._end.done():
            self._end.set_result(None)
            if not self._parser.should_keep_alive():
                self.close()


def _request(target: Target, headers: Mapping[str, str], body: bytes) -> bytes:
    """A POST as it is sent. No header may hold a line break."""
    sent = {
        "host": target.host_header,
        "user-agent": USER_AGENT,
        "accept": "*/*",
        **headers,
        "content-length": str(len(body)),
    }
    lines = [f"POST {target.path} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items())]
    assert not any("\r" in line or "\n" in line for line in lines)
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body


def _drop_tracebacks(fault: BaseException | None) -> None:
    """Break the cycle of a caught error, its frames and the future that raised it.

    The garbage collector hardly ever runs.
    """
    seen: set[int] = set()
    while fault is not None and id(fault) not in seen:
        seen.add(id(fault))
        fault.__traceback__ = None
        fault = fault.__cause__ or fault.__context__


def _one_line(text: str) -> str:
    printable = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(printable.split())[:MAX_ERROR]
