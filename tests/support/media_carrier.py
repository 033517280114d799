"""A carrier with real RTP and RTCP ports, which answers over SIP as the test says."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import struct
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

from bitel.rtp.packet import RtpHeader
from bitel.sip.message import Request, Response, parse
from bitel.sip.message_writer import write_response
from tests.rtp_packets import pack
from tests.support.free_ports import free_range
from tests.support.waiting import until

HOST = "127.0.0.1"
Address = tuple[str, int]


class RtpPort:
    """A UDP port of the far end, and all that has come to it."""

    def __init__(self, host: str = HOST, port: int = 0) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_DGRAM)
        try:
            self.socket.bind((host, port))
        except OSError:
            self.socket.close()
            raise
        self.socket.setblocking(False)
        self.port: int = self.socket.getsockname()[1]
        self.ssrc = 1
        self._datagrams: list[bytes] = []
        self._sequence = 0

    @property
    def datagrams(self) -> list[bytes]:
        """All that has arrived, until the port was closed."""
        while self.socket.fileno() >= 0:
            try:
                self._datagrams.append(self.socket.recv(2048))
            except BlockingIOError:
                break
        return self._datagrams

    def close(self) -> None:
        """Hear no more."""
        _ = self.datagrams
        self.socket.close()

    @property
    def packets(self) -> list[tuple[RtpHeader, bytes]]:
        """All RTP that has arrived."""
        return [RtpHeader.parse(data) for data in self.datagrams]

    async def quiet(self, seconds: float) -> int:
        """Return once nothing has come for so long; how many datagrams have come until then.

        TimeoutError where something still comes after 20 s.
        """
        loop = asyncio.get_running_loop()
        count, since = len(self.datagrams), loop.time()

        def is_quiet() -> bool:
            nonlocal count, since
            if len(self.datagrams) != count:
                count, since = len(self.datagrams), loop.time()
            return loop.time() >= since + seconds

        await until(is_quiet)
        return count

    def speak(self, to: Address, packets: int) -> None:
        """Send so many packets of silence."""
        for _ in range(packets):
            number = self._sequence
            self._sequence += 1
            header = RtpHeader(8, number % 2**16, 160 * number, self.ssrc)
            self.socket.sendto(pack(header) + b"\xd5" * 160, to)

    async def speak_for(self, to: Address, seconds: float) -> float:
        """Send four packets of silence each 20 ms, for so long; the Unix time of the end."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while loop.time() < end:
            self.speak(to, 4)
            await asyncio.sleep(0.02)  # as a phone does
        return time.time()

    def key(self, to: Address, code: int, event_type: int, at: int) -> None:
        """Send the packets of one keyed digit (RFC 4733), its end three times."""
        for end in (False, True, True, True):
            self._sequence += 1
            header = RtpHeader(event_type, self._sequence % 2**16, at, self.ssrc)
            self.socket.sendto(pack(header) + struct.pack("!BBH", code, 0x80 * end, 800), to)


def rtp_ports(host: str = HOST) -> tuple[RtpPort, RtpPort]:
    """An RTP port, and the RTCP port above it."""
    while True:
        with contextlib.ExitStack() as opened, contextlib.suppress(OSError):
            rtp = RtpPort(host, free_range(1, host).start)
            opened.callback(rtp.close)
            rtcp = RtpPort(host, rtp.port + 1)
            opened.pop_all()
            return rtp, rtcp


async def packets_come(count: int, *ears: RtpPort) -> None:
    """Return once so many more packets have come to these ports together."""
    before = sum(len(ear.packets) for ear in ears)
    await until(lambda: sum(len(ear.packets) for ear in ears) >= before + count)


def reception(ssrc: int, highest: int, lost: int, jitter: int) -> bytes:
    """A receiver report on our stream; `jitter` is in samples (RFC 3550 section 6.4.2)."""
    return struct.pack("!BBHIIIIIII", 0x81, 201, 7, 99, ssrc, lost, highest, jitter, 0, 0)


def sdp(
    port: int,
    *,
    host: str = HOST,
    formats: str = "8 101",
    events: int = 101,
    more: str = "",
    version: int = 1,
) -> bytes:
    """A description of audio that takes PCMA, and telephone events as payload type `events`."""
    family = "IP6" if ":" in host else "IP4"
    return (
        f"v=0\r\no=- 1 {version} IN {family} {host}\r\ns=-\r\nc=IN {family} {host}\r\nt=0 0\r\n"
        f"m=audio {port} RTP/AVP {formats}\r\na=rtpmap:8 PCMA/8000\r\n"
        f"a=rtpmap:{events} telephone-event/8000\r\n{more}"
    ).encode()


class MediaCarrier(asyncio.DatagramProtocol):
    """One call's far end. `codes` answer the INVITE, the ones over 100 with `body`."""

    def __init__(self, host: str = HOST) -> None:
        self.host = host
        self.rtp, self.rtcp = rtp_ports(host)
        self.codes: list[int] = [100, 200]
        self.body = sdp(self.rtp.port, host=host)
        self.bodies: dict[int, bytes] = {}
        """What else than `body` answers the INVITE, by status."""
        self.content_type = "application/sdp"
        self.headers: list[tuple[str, str]] = []
        """Added to each answer to the INVITE."""
        self.answers_bye = True
        self.invite: Request
        self.methods: list[str] = []
        self.port = 0
        self._cseq = 100
        self._responses: asyncio.Queue[Response] = asyncio.Queue()
        self._from: Address = ("", 0)
        self._transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)
        self.port = transport.get_extra_info("sockname")[1]

    @property
    def uri(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"sip:{host}:{self.port}"

    @property
    def caller(self) -> Address:
        """Where the dialer's offer wants RTP."""
        found = re.search(rb"m=audio (\d+)", self.invite.body)
        assert found is not None
        return self.host, int(found[1])

    def datagram_received(self, data: bytes, addr: Address) -> None:
        message = parse(data)
        self._from = addr
        if isinstance(message, Response):
            if message.code >= 200:
                self._responses.put_nowait(message)
            return
        if message.method not in self.methods or message.method == "ACK":
            self.methods.append(message.method)
        if message.method == "INVITE":
            self.invite = message
            for code in self.codes:
                self.answer(code)
        elif message.method == "BYE" and self.answers_bye:
            self._respond(message, 200)

    def answer(self, code: int) -> None:
        """Answer the INVITE."""
        body = self.body if 100 < code < 300 else b""
        self._respond(self.invite, code, self.bodies.get(code, body))

    def _respond(self, request: Request, code: int, body: bytes = b"") -> None:
        headers = [("Contact", f"<{self.uri}>")]
        if request.method == "INVITE":
            headers += self.headers
        if body:
            headers.append(("Content-Type", self.content_type))
        tag = "" if code == 100 else "far"
        via = request.values("via")[0]
        data = write_response(request, code, tag, headers, body, top_via=via)
        self._transport.sendto(data, self._from)

    async def ask(
        self,
        method: str,
        body: bytes = b"",
        ack: bytes = b"",
        content_type: str = "application/sdp",
    ) -> Response:
        """Send a request within the call; its final response. `ack` is the body of an ACK."""
        self._cseq += 1
        self._transport.sendto(self._request(method, self._cseq, body, content_type), self._from)
        async with asyncio.timeout(10):
            response = await self._responses.get()
        if method == "INVITE":
            self._transport.sendto(self._request("ACK", self._cseq, ack), self._from)
        return response

    async def key(self, digit: str) -> int:
        """Key a digit by INFO; the status of the response."""
        body = f"Signal={digit}\r\nDuration=160\r\n".encode()
        return (await self.ask("INFO", body, content_type="application/dtmf-relay")).code

    def _request(
        self,
        method: str,
        cseq: int,
        body: bytes = b"",
        content_type: str = "application/sdp",
    ) -> bytes:
        contact = re.search(r"<([^>]+)>", self.invite.header("contact"))
        assert contact is not None
        lines = [
            f"{method} {contact[1]} SIP/2.0",
            f"Via: SIP/2.0/UDP {self.uri[4:]};branch=z9hG4bK{method}{cseq}",
            "Max-Forwards: 70",
            f"From: {self.invite.header('to')};tag=far",
            f"To: {self.invite.header('from')}",
            f"Call-ID: {self.invite.call_id}",
            f"CSeq: {cseq} {method}",
            f"Contact: <{self.uri}>",
            *([f"Content-Type: {content_type}"] if body else []),
            f"Content-Length: {len(body)}",
        ]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    def close(self) -> None:
        """Give the ports back."""
        self.rtp.close()
        self.rtcp.close()


@asynccontextmanager
async def media_carrier(host: str = HOST) -> AsyncIterator[MediaCarrier]:
    """A far end on free ports of `host`."""
    transport, made = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: MediaCarrier(host), local_addr=(host, 0)
    )
    try:
        yield made
    finally:
        transport.close()
        made.close()
