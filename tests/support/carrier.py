"""A fake carrier: answers each SIP request as a function of the test says, over any transport."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

from bitel.sip import Transport
from bitel.sip.message import Request, Response, parse, write_response

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Answer:
    """A response; `sdp` adds an answer that takes PCMA, unless there is a `body`."""

    code: int
    headers: Sequence[tuple[str, str]] = ()
    sdp: bool = False
    body: bytes = b""
    content_type: str = "application/sdp"


Behaviour = Callable[[Request], Sequence[Answer]]
"""What is sent for a request; nothing is silence."""


def answering(*answers: Answer | int) -> Behaviour:
    """Send these, one after the other; the number 200 is an answer with SDP to an INVITE."""
    return lambda request: [
        each if isinstance(each, Answer) else Answer(each, sdp=request.method == "INVITE")
        for each in answers
    ]


def silent(request: Request) -> Sequence[Answer]:
    """Send nothing."""
    return []


def sdp(
    port: int,
    *,
    host: str = HOST,
    formats: str = "8 101",
    events: int | None = 101,
    more: str = "",
    version: int = 1,
) -> bytes:
    """A description of audio that takes PCMA, and telephone events as payload type `events`."""
    family = "IP6" if ":" in host else "IP4"
    if events is not None:
        more = f"a=rtpmap:{events} telephone-event/8000\r\n{more}"
    return (
        f"v=0\r\no=- 1 {version} IN {family} {host}\r\ns=-\r\nc=IN {family} {host}\r\nt=0 0\r\n"
        f"m=audio {port} RTP/AVP {formats}\r\na=rtpmap:8 PCMA/8000\r\n{more}"
    ).encode()


class Carrier:
    """`does` says what is done, by method; all else is answered 200. `requests` come in order,
    repetitions left out; `connections` are those of TCP and TLS, the closed ones too."""

    def __init__(self, host: str = HOST, transport: Transport = Transport.UDP) -> None:
        self.does: dict[str, Behaviour] = {"ACK": silent, "INVITE": answering(100, 200)}
        self.requests: list[Request] = []
        self.received: list[str] = []
        """The methods of all requests, repetitions too."""
        self.connections: list[asyncio.Transport] = []
        self.port = 0
        self.seen_as: tuple[str, int] | None = None
        """What Via's `received` and `rport` say of the dialer."""
        self.host = host
        self.tag = ""
        """The tag of its responses; made of the port where it is empty."""
        self._transport = transport
        self._senders: dict[tuple[str, str], Callable[[bytes], None]] = {}

    @property
    def uri(self) -> str:
        return f"sip:{self.place}{self._parameter}"

    @property
    def place(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def _parameter(self) -> str:
        udp = self._transport is Transport.UDP
        return "" if udp else f";transport={self._transport.lower()}"

    def of(self, method: str) -> list[Request]:
        """The requests of that method."""
        return [request for request in self.requests if request.method == method]

    def receive(self, data: bytes, send: Callable[[bytes], None]) -> None:
        """Take a message, and answer it by `send`."""
        request = parse(data)
        if isinstance(request, Response):
            self.take_response(request)
            return
        self.received.append(request.method)
        key = request.branch, request.method
        if key not in self._senders:
            self.requests.append(request)
        self._senders[key] = send
        for answer in self.does.get(request.method, answering(200))(request):
            self.say(request, answer)

    def take_response(self, response: Response) -> None:
        """Take a response to a request of its own, of which it makes none."""

    def say(self, request: Request, answer: Answer) -> None:
        """Answer `request`, be it late or again."""
        headers = [("Contact", f"<{self.uri}>"), *answer.headers]
        if any(name == "Contact" for name, _ in answer.headers):
            headers = list(answer.headers)
        body = answer.body
        if answer.sdp and answer.code == 200 and not body:
            body = sdp(self.port, host=self.host, formats="8", events=None)
        if body:
            headers.append(("Content-Type", answer.content_type))
        tag = "" if answer.code == 100 else self.tag or f"t{self.port}"
        via = request.values("via")[0]
        if self.seen_as is not None:
            host, port = self.seen_as
            via = via.replace(";rport", f";rport={port};received={host}")
        data = write_response(request, answer.code, tag, headers, body, top_via=via)
        self._senders[request.branch, request.method](data)


class _Datagrams(asyncio.DatagramProtocol):
    """Passes over what is no SIP: RTP comes to the same port."""

    def __init__(self, carrier: Carrier) -> None:
        self._carrier = carrier
        self._transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)
        # A thousand calls at once fit in.
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        self._carrier.port = transport.get_extra_info("sockname")[1]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if data[:1].isalpha():
            self._carrier.receive(data, lambda answer: self._transport.sendto(answer, addr))


class _Stream(asyncio.Protocol):
    """Cuts a stream into messages, and answers pings (RFC 5626 §3.5.1)."""

    def __init__(self, carrier: Carrier) -> None:
        self._carrier = carrier
        self._buffer = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._carrier.connections.append(self._transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while self._buffer:
            if self._buffer.startswith(b"\r\n\r\n"):
                self._transport.write(b"\r\n")
                self._buffer = self._buffer[4:]
                continue
            head, blank, rest = self._buffer.partition(b"\r\n\r\n")
            if not blank:
                return
            length = next(
                int(line.partition(b":")[2])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length")
            )
            if len(rest) < length:
                return
            self._buffer = rest[length:]
            self._carrier.receive(head + blank + rest[:length], self._transport.write)


@asynccontextmanager
async def over_udp(carrier: Carrier, port: int = 0) -> AsyncIterator[None]:
    """Have it on a UDP port of its host inside the block, a free one by default."""
    endpoint, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: _Datagrams(carrier), local_addr=(carrier.host, port)
    )
    try:
        yield
    finally:
        endpoint.close()


@asynccontextmanager
async def carrier(
    host: str = HOST,
    transport: Transport = Transport.UDP,
    tls: ssl.SSLContext | None = None,
    port: int = 0,
) -> AsyncIterator[Carrier]:
    """A carrier on `port` of `host`, a free one by default."""
    made = Carrier(host, transport)
    if transport is Transport.UDP:
        async with over_udp(made, port):
            yield made
        return
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Stream(made), host, port, ssl=tls)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        for connection in made.connections:
            connection.abort()
