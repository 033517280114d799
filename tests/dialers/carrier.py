"""A carrier that does as it is told: answers each SIP request as a function of the test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

from bitel.sip.message import Request, Response, parse, write_response

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Answer:
    """A response; `sdp` adds an answer that takes PCMA."""

    code: int
    headers: Sequence[tuple[str, str]] = ()
    sdp: bool = False


Behaviour = Callable[[Request], Sequence[Answer]]
"""What is sent for a request; nothing is silence."""


def answering(*codes: int) -> Behaviour:
    """Send these, one after the other; a 200 to an INVITE carries SDP."""
    return lambda request: [Answer(code, sdp=request.method == "INVITE") for code in codes]


def silent(request: Request) -> Sequence[Answer]:
    """Send nothing."""
    return []


class Carrier(asyncio.DatagramProtocol):
    """`does` says what is done, by method; all else is answered 200. `requests` come in order,
    repetitions left out."""

    def __init__(self) -> None:
        self.does: dict[str, Behaviour] = {"ACK": silent, "INVITE": answering(100, 200)}
        self.requests: list[Request] = []
        self.port = 0
        self._seen: set[tuple[str, str]] = set()
        self._transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)
        self.port = transport.get_extra_info("sockname")[1]

    @property
    def uri(self) -> str:
        return f"sip:{HOST}:{self.port}"

    def of(self, method: str) -> list[Request]:
        """The requests of that method."""
        return [request for request in self.requests if request.method == method]

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        request = parse(data)
        if isinstance(request, Response):
            return
        key = request.branch, request.method
        if key not in self._seen:
            self._seen.add(key)
            self.requests.append(request)
        for answer in self.does.get(request.method, answering(200))(request):
            headers = [("Contact", f"<{self.uri}>"), *answer.headers]
            if any(name == "Contact" for name, _ in answer.headers):
                headers = list(answer.headers)
            body = b""
            if answer.sdp and answer.code == 200:
                headers.append(("Content-Type", "application/sdp"))
                body = (
                    f"v=0\r\no=- 1 1 IN IP4 {HOST}\r\ns=-\r\nc=IN IP4 {HOST}\r\nt=0 0\r\n"
                    f"m=audio {self.port} RTP/AVP 8\r\na=rtpmap:8 PCMA/8000\r\n"
                ).encode()
            tag = "" if answer.code == 100 else f"t{self.port}"
            via = request.values("via")[0]
            self._transport.sendto(
                write_response(request, answer.code, tag, headers, body, top_via=via), addr
            )


class _ByReading(Carrier):
    """Passes over what is no SIP: RTP comes to the same port."""

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if data[:1].isalpha():
            super().datagram_received(data, addr)


@asynccontextmanager
async def carrier() -> AsyncIterator[Carrier]:
    """A carrier on a free port of 127.0.0.1."""
    transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
        _ByReading, local_addr=(HOST, 0)
    )
    try:
        yield protocol
    finally:
        transport.close()
