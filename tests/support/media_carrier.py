"""A carrier with real RTP and RTCP ports, which answers over SIP as the test says."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from bitel.rtp.packet import RtpHeader
from bitel.sip.message import Request, Response
from tests.support.carrier import HOST, Answer, Carrier, over_udp, sdp
from tests.support.free_ports import free_range
from tests.support.rtp_packets import pack
from tests.support.waiting import until

Address = tuple[str, int]
PACKET = 160
"""Bytes of audio in 20 ms."""


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


def sound(packets: int) -> bytes:
    """Random audio of so many packets of 20 ms."""
    return random.randbytes(packets * PACKET)


def payloads(*ports: RtpPort) -> bytes:
    """The audio that has come to these ports, one after the other."""
    return b"".join(payload for port in ports for _, payload in port.packets)


async def packets_come(count: int, *ears: RtpPort) -> None:
    """Return once so many more packets have come to these ports together."""
    before = sum(len(ear.packets) for ear in ears)
    await until(lambda: sum(len(ear.packets) for ear in ears) >= before + count)


def reception(ssrc: int, highest: int, lost: int, jitter: int) -> bytes:
    """A receiver report on our stream; `jitter` is in samples (RFC 3550 section 6.4.2)."""
    return struct.pack("!BBHIIIIIII", 0x81, 201, 7, 99, ssrc, lost, highest, jitter, 0, 0)


class MediaCarrier(Carrier):
    """A carrier of one call. `codes` answer the INVITE, those from 101 to 299 with `body`."""

    def __init__(self, host: str = HOST) -> None:
        super().__init__(host)
        self.rtp, self.rtcp = rtp_ports(host)
        self.codes: list[int] = [100, 200]
        self.body = sdp(self.rtp.port, host=host)
        self.bodies: dict[int, bytes] = {}
        """What else than `body` answers the INVITE, by status."""
        self.content_type = "application/sdp"
        self.headers: list[tuple[str, str]] = []
        """Added to each answer to the INVITE."""
        self.answers_bye = True
        self.tag = "far"
        self.does["INVITE"] = lambda request: [self._answer(code) for code in self.codes]
        self.does["BYE"] = lambda request: [Answer(200)] if self.answers_bye else []
        self._cseq = 100
        self._responses: asyncio.Queue[Response] = asyncio.Queue()
        self._send: Callable[[bytes], None]

    @property
    def invite(self) -> Request:
        """The newest INVITE."""
        return self.of("INVITE")[-1]

    @property
    def methods(self) -> list[str]:
        """The methods of the requests, each once, but every ACK."""
        found: list[str] = []
        for method in self.received:
            if method not in found or method == "ACK":
                found.append(method)
        return found

    @property
    def caller(self) -> Address:
        """Where the dialer's offer wants RTP."""
        found = re.search(rb"m=audio (\d+)", self.invite.body)
        assert found is not None
        return self.host, int(found[1])

    def receive(self, data: bytes, send: Callable[[bytes], None]) -> None:
        self._send = send
        super().receive(data, send)

    def take_response(self, response: Response) -> None:
        if response.code >= 200:
            self._responses.put_nowait(response)

    def answer(self, code: int) -> None:
        """Answer the INVITE."""
        self.say(self.invite, self._answer(code))

    def _answer(self, code: int) -> Answer:
        body = self.bodies.get(code, self.body if 100 < code < 300 else b"")
        return Answer(code, self.headers, body=body, content_type=self.content_type)

    async def ask(
        self,
        method: str,
        body: bytes = b"",
        ack: bytes = b"",
        content_type: str = "application/sdp",
    ) -> Response:
        """Send a request within the call; its final response. `ack` is the body of an ACK."""
        self._cseq += 1
        self._send(self._request(method, self._cseq, body, content_type))
        async with asyncio.timeout(10):
            response = await self._responses.get()
        if method == "INVITE":
            self._send(self._request("ACK", self._cseq, ack))
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
    """A carrier with RTP ports on free ports of `host`."""
    made = MediaCarrier(host)
    try:
        async with over_udp(made):
            yield made
    finally:
        made.close()
